"""Latents of an SAE beside neurons, one grid for all, r without its sign, maps that are kept, and images that go wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.inputs import StoreInputs
from jobs.mine_rosetta import maps as maps_module
from jobs.mine_rosetta.plan import units_stage
from jobs.mine_rosetta.units_work import check_units, notes_on_rare
from jobs.sae_files import WEIGHTS
from miclip_core.rosetta.statistics import UnitStatistics
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.reducers import Moments
from schemas.errors import BadMaps
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan
from schemas.rosetta_specs import MineRosettaSpec
from tests.interpolated_maps import pearson
from tests.jobs.mine_rosetta.lake_of_maps import (
    GRIDS,
    RESNET,
    VIT,
    alive,
    correlations,
    extract,
    make_spec,
    neighbours,
    run,
)
from tests.jobs.mine_rosetta.made_up_zoo import make_member
from tests.jobs.mine_rosetta.test_pair import rows_of
from tests.lakes import Lake, export

SAE_SITE = "mlp_act.4@patch"


@pytest.fixture(scope="module")
def with_sae(tmp_path_factory: pytest.TempPathFactory):
    """An SAE that was trained for a few steps on the ViT, beside the neurons of both models."""
    lake = Lake(tmp_path_factory.mktemp("sae"))
    spec = make_spec(anchors=[RESNET], min_active_images=2, min_active_positions=5)
    data = spec.model_dump(mode="json")
    data["stages"]["shared"] |= {"reads": ["sae"], "model": [VIT, RESNET]}
    forward = {"batch_size": 16, "geometry": "square", "model": [VIT]}
    acts = {"kind": "extract", "sites": ["mlp_act.-1@patch"], "outputs": ["activations"], "round_to": "fp32", **forward}
    sae = {"kind": "train_sae", "reads": "acts", "model": [VIT], "latents": [48], "k": [4], "steps": 30,
           "batch_tokens": 128, "buffer_batches": 4, "block_images": 8, "holdout": 0.2}  # fmt: skip
    data["stages"] = {"acts": acts, "sae": sae, **data["stages"]}
    report = lake.run(PipelineSpec.model_validate(data, strict=False))
    assert report.exit_code == 0, report.failures
    (stage,) = [state.digest for state in report.state.stages if state.kind == "train_sae"]
    return lake, report, extract(lake), load_sae(StoreInputs(lake.store).published(stage, WEIGHTS)), f"sae:{stage}"


def test_latents_of_an_sae_are_compared_with_neurons_of_another_model(with_sae: Any) -> None:
    lake, report, maps, sae, ref = with_sae
    rows_BPC = maps[VIT, SAE_SITE]
    codes = sae.encode(rows_BPC.flatten(0, 1)).dense().unflatten(0, rows_BPC.shape[:2])
    units = lake.table(report, "rosetta_units", unit_kind="features").to_pylist()
    assert [u["sae"] for u in units] == [ref] * codes.shape[2] and {u["site"] for u in units} == {SAE_SITE}
    dead = np.array([u["is_dead"] for u in units])
    assert (dead == (codes.flatten(0, 1).std(0) == 0).numpy()).all() and dead.any() and not dead.all()
    live = ~dead & ~np.array([u["is_rare"] for u in units])
    found = lake.table(report, "rosetta_neighbours").to_pylist()
    ours = [row for row in found if row["sae_a"] == ref]
    assert {row["unit_a"] for row in ours} == set(np.flatnonzero(live)) and {row["model_b"] for row in ours} == {RESNET}
    neurons = alive(lake, report, RESNET)
    for site in ("stage.2@map", "stage.3@map"):
        target = tuple(max(x, y) for x, y in zip(GRIDS[SAE_SITE], GRIDS[site]))
        with np.errstate(invalid="ignore", divide="ignore"):
            r = pearson(codes, GRIDS[SAE_SITE], maps[RESNET, site], GRIDS[site], target)  # type: ignore[arg-type]
        r[:, ~neurons[site]] = -np.inf
        for row in ours:
            if row["site_b"] == site:
                assert row["r"] == pytest.approx(r[row["unit_a"], row["unit_b"]], abs=1e-6)
            worst = min(other["r"] for other in ours if other["unit_a"] == row["unit_a"])
            assert r[row["unit_a"]].max() <= worst + 1e-6 or row["rank"] < 3
    assert {row["unit_b"] for row in found if row["sae_b"] == ref} <= set(np.flatnonzero(live))


def test_one_grid_for_all_and_r_without_its_sign(tmp_path: Path, mined_maps: Any) -> None:
    lake, report = run(tmp_path / "lake", grid=[3, 5], rank_by="abs_r", anchors=[RESNET])
    found, live = neighbours(lake, report, VIT, RESNET), {m: alive(lake, report, m) for m in (VIT, RESNET)}
    sites = [(RESNET, "stage.2@map"), (RESNET, "stage.3@map")]
    r = np.hstack([correlations(mined_maps, (VIT, SAE_SITE), site, grid=(3, 5)) for site in sites])
    r[:, ~np.concatenate([live[RESNET][site] for _, site in sites])] = 0
    negative = 0
    for (_, unit), listed in found.items():
        best = np.sort(np.abs(r[unit]))[::-1][:3]
        assert [abs(x) for *_, x in listed] == pytest.approx(best, abs=1e-6)
        negative += sum(x < 0 for *_, x in listed)
    assert negative > 10 and len(found) == live[VIT][SAE_SITE].sum()
    (pair,) = [p for p in lake.table(report, "rosetta_pairs", model_a=VIT, model_b=RESNET).to_pylist() if p["k"] == 3]
    assert pair["rule"] == "3x5"


@pytest.fixture(scope="module")
def mined_maps(with_sae: Any) -> Any:
    return with_sae[2]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that workers open from here on."""
    names: list[str] = []
    real = maps_module.ModelTaps.read

    def read(self: Any, inputs: Any, members: Any, ranges: Any, *args: Any) -> Any:
        names.extend([members[0].model] * bool(ranges))
        return real(self, inputs, members, ranges, *args)

    monkeypatch.setattr(maps_module.ModelTaps, "read", read)
    return names


@pytest.mark.slow
def test_maps_that_are_kept_give_the_same_tables_as_maps_that_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICLIP_CACHE", str(tmp_path / "node"))
    fields = {"sites": ["stage.2", "stage.3"], "shard_rows": 40}
    models = (RESNET, "demo:clip-rn-typo")
    lakes = {how: run(tmp_path / how, models, maps=how, **fields) for how in ("cache", "recompute")}
    files = sorted((tmp_path / "node").rglob("*.maps"))
    assert len(files) == 4  # two models, blocks of 64 of 72 images
    asked = opened(monkeypatch)
    again = run(tmp_path / "again", models, maps="cache", **fields)
    assert asked == []
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[3].unlink()
    damaged = run(tmp_path / "damaged", models, maps="cache", **fields)
    assert len(asked) >= 2
    for other in (again, damaged, lakes["recompute"]):
        for table in ("rosetta_units", "rosetta_neighbours", "rosetta_buddies"):
            one, two = rows_of(*lakes["cache"], table), rows_of(*other, table)
            assert one.keys() == two.keys()
            name = "mean" if table == "rosetta_units" else "r"
            assert [row[name] for row in one.values()] == pytest.approx([two[key][name] for key in one], abs=1e-9)
    assert lakes["cache"][0].files().keys() == again[0].files().keys()


def test_an_image_that_cannot_be_read_is_left_out_of_both_and_said(tmp_path: Path) -> None:
    folder = export(tmp_path / "world", 40) / "images"
    victims = sorted(folder.rglob("*.png"))
    victims[3].write_bytes(victims[3].read_bytes()[:200])
    shutil.copy(victims[5], folder / "zz_repeat.png")
    lake, report = run(tmp_path / "lake", images=f"folder:{folder}", anchors=[RESNET], maps="cache")
    pairs = lake.table(report, "rosetta_pairs", model_a=VIT).to_pylist()
    assert {p["images"] for p in pairs} == {39}
    assert {u["n"] for u in lake.table(report, "rosetta_units", model=VIT).to_pylist()} == {39 * 64}
    maps = extract(lake, f"folder:{folder}")
    r = correlations(maps, (VIT, SAE_SITE), (RESNET, "stage.3@map"))
    rows = lake.table(report, "rosetta_neighbours", model_a=VIT, site_b="stage.3@map").to_pylist()
    assert rows and all(row["r"] == pytest.approx(r[row["unit_a"], row["unit_b"]], abs=1e-6) for row in rows)


@pytest.mark.parametrize(
    ("images", "values", "words"),
    [
        (40, np.zeros, "none of 3 units varies over 40 images"),
        (1, np.random.default_rng(0).standard_normal, "1 images can be used, which give 64 values"),
        (2, np.random.default_rng(0).standard_normal, "2 images can be used, which give 8 values"),
    ],
)
def test_maps_that_do_not_vary_or_are_too_few_are_refused_in_words(
    images: int, values: Callable[[tuple[int, ...]], np.ndarray], words: str
) -> None:
    positions = 4 if images == 2 else 64
    rows = torch.from_numpy(values((images, positions, 3)))
    moments = Moments()
    moments.add(rows, np.arange(positions), ())
    statistics = UnitStatistics(moments)
    statistics.add(rows, np.arange(positions), ())
    with pytest.raises(BadMaps, match=words):
        check_units("demo:x", [moments], [statistics])


@pytest.mark.parametrize(("rare", "told"), [(2, False), (3, True)])
def test_people_are_told_if_more_than_a_third_of_the_units_that_vary_are_rare(rare: int, told: bool) -> None:
    dead = [True] * 4 + [False] * 6
    marked = [True] * (4 + rare) + [False] * (6 - rare)  # what never varies is not counted as rare
    rows = pa.RecordBatch.from_pydict({"is_dead": dead, "is_rare": marked})
    stage = units_stage(MineRosettaSpec(), make_member("demo:clip-rn", {"stage.1@map": 10}))
    notes = notes_on_rare(Plan(stage=stage, rounds=(), worker="w"), "demo:clip-rn", rows)
    assert len(notes) == told
    if told:
        assert "demo:clip-rn: 3 of 6 units that vary are active on fewer than 5 images or 20 positions" in notes[0]
