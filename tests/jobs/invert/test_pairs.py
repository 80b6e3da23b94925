"""Which pairs guide, their statistics, and the maps that are wanted of them: from tables of one store, without a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from jobs.activations import Forward
from jobs.invert.pairs import (
    OnGrid,
    Pair,
    check_units,
    read_moments,
    read_native_moments,
    read_pairs,
    scale_of,
    widths_of,
)
from jobs.invert.partners import Partner
from miclip_core.zoo.load import inspect_model
from schemas.errors import BadUnits, NothingToGuide
from schemas.plans import StageSpec
from schemas.refs import ModelRef
from tests.jobs.invert.lake_of_pairs import (
    COARSE,
    FINE,
    GRIDS,
    RESNET,
    STAGE,
    TOKENS,
    VIT,
    Row,
    pair_tables,
    statistics,
    unit_row,
)
from tests.made_up_descriptions import publish_rows

SAE = "5ae" + 17 * "0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path / "lake"))


def partner(model: str, pair: str, side: Literal["a", "b"] = "a", sae: str | None = None) -> Partner:
    forward = Forward(model=model, inputs={}, params={}, effort={})
    return Partner(
        forward=forward,
        sae=sae,
        pair=pair,
        side=side,
        units="",
        grid="pairwise_max",
        absolute=False,
        map_numbers=0,
        sae_numbers=0,
    )


def publish(store: Store, name: str, tables: dict[str, list[Row]]) -> str:
    stage = StageSpec(kind="mine_rosetta", method=1, subject=name, output="pair", params={})
    publish_rows(store, stage, tables)
    return stage.digest


def changed(tables: dict[str, list[Row]], row: int, **columns: Any) -> dict[str, list[Row]]:
    tables["rosetta_buddies"][row].update(columns)
    return tables


def test_the_highest_r_come_first_over_all_members_and_equal_ones_by_place(store: Store) -> None:
    vit = [(FINE, 0, TOKENS, 3, 0.5), (FINE, 1, TOKENS, 2, 0.9), (COARSE, 1, TOKENS, 1, 0.5)]
    resnet = [(FINE, 0, STAGE, 2, 0.7), (FINE, 0, STAGE, 1, 0.5)]
    partners = [
        partner(VIT, publish(store, "vit", pair_tables(True, VIT, vit))),
        partner(
            RESNET, publish(store, "resnet", pair_tables(False, RESNET, resnet)), side="b"
        ),  # the generator is later
    ]
    expected = [
        Pair((FINE, 1), 0, (TOKENS, 2), 0.9),
        Pair((FINE, 0), 1, (STAGE, 2), 0.7),
        Pair((COARSE, 1), 0, (TOKENS, 1), 0.5),
        Pair((FINE, 0), 0, (TOKENS, 3), 0.5),
        Pair((FINE, 0), 1, (STAGE, 1), 0.5),
    ]
    inputs = StoreInputs(store)
    assert read_pairs(inputs, partners, 1, None) == expected
    assert read_pairs(inputs, partners, 1, 2) == expected[:2]


def test_pairs_count_above_the_null_and_within_k_on_both_sides(store: Store) -> None:
    buddies = [(FINE, i, TOKENS, i, 0.9 - 0.1 * i) for i in range(4)]
    tables = pair_tables(True, VIT, buddies)
    for row, columns in ((0, {"is_below_null": True}), (1, {"rank_ba": 2}), (2, {"rank_ab": 1})):
        tables = changed(tables, row, **columns)
    inputs, partners = StoreInputs(store), [partner(VIT, publish(store, "vit", tables))]
    for k, units in ((1, [3]), (2, [2, 3]), (3, [1, 2, 3])):
        assert [pair.own[1] for pair in read_pairs(inputs, partners, k, None)] == units
    with pytest.raises(
        NothingToGuide, match=r"no units of the generator and of demo:clip-p8 .* with k 1; give a larger k"
    ):
        none = publish(store, "none", changed(pair_tables(True, VIT, buddies[:1]), 0, rank_ab=4))
        read_pairs(inputs, [partner(VIT, none)], 1, None)


def test_a_negative_r_counts_by_its_size(store: Store) -> None:
    buddies = [(FINE, 0, TOKENS, 0, 0.4), (FINE, 1, TOKENS, 1, -0.8)]
    found = read_pairs(
        StoreInputs(store), [partner(VIT, publish(store, "vit", pair_tables(True, VIT, buddies)))], 1, None
    )
    assert [pair.r for pair in found] == [-0.8, 0.4]


def test_statistics_are_those_of_the_unit_its_owner_and_the_grid(store: Store) -> None:
    neurons = publish(
        store, "neurons", pair_tables(True, VIT, [(FINE, 0, TOKENS, 3, 0.5), (COARSE, 0, TOKENS, 3, 0.5)])
    )
    latents = publish(store, "latents", pair_tables(True, VIT, [(FINE, 0, TOKENS, 3, 0.5)], sae=f"sae:{SAE}"))
    partners = [partner(VIT, neurons), partner(VIT, latents, sae=SAE)]
    wanted = [
        OnGrid(None, (FINE, 0), GRIDS[FINE]),
        OnGrid(0, (TOKENS, 3), GRIDS[COARSE]),
        OnGrid(1, (TOKENS, 3), GRIDS[FINE]),
    ]
    found = read_moments(StoreInputs(store), partners, wanted)
    assert found == {key: statistics(*key.place, key.grid[0]) for key in wanted}
    scale = scale_of(found, [wanted[1], wanted[0]])
    assert [scale.centre.tolist(), scale.sd.tolist()] == [list(x) for x in zip(found[wanted[1]], found[wanted[0]])]
    with pytest.raises(
        NothingToGuide, match=r"statistics of unit 3 of mlp_act.1@patch of demo:clip-p8 sae:5ae00000 on 16x16"
    ):
        read_moments(StoreInputs(store), partners, [OnGrid(1, (TOKENS, 3), GRIDS[COARSE])])


def test_native_statistics_come_from_the_units_of_the_generator(store: Store) -> None:
    stage = StageSpec(kind="mine_rosetta", method=1, subject="g", output="units", params={})
    publish_rows(store, stage, {"rosetta_units": [unit_row(FINE, 2), unit_row(COARSE, 2), unit_row(FINE, 1)]})
    grids = {site: GRIDS[site] for site in (FINE, COARSE)}
    found = read_native_moments(StoreInputs(store), stage.digest, [(FINE, 1), (COARSE, 2)], grids)
    assert found == {OnGrid(None, (s, u), GRIDS[s]): statistics(s, u, GRIDS[s][0]) for s, u in ((FINE, 1), (COARSE, 2))}
    with pytest.raises(NothingToGuide, match=r"unit 1 of act.0@map are missing from rosetta_units"):
        read_native_moments(StoreInputs(store), stage.digest, [(COARSE, 1)], grids)


def test_units_that_a_model_does_not_have_are_refused() -> None:
    facts = inspect_model(ModelRef.parse(VIT))
    width = facts.site("mlp_act.1").width
    check_units(VIT, widths_of(facts), [(TOKENS, width - 1)])
    with pytest.raises(
        BadUnits, match=f"unit {width} of mlp_act.1@patch is among the mined pairs, but {VIT} has {width} units"
    ):
        check_units(VIT, widths_of(facts), [(TOKENS, width)])
    with pytest.raises(BadUnits, match="has no units there"):
        check_units(VIT, widths_of(facts), [("act.0@map", 0)])
