"""Which units and concepts a page shows of what was named, who beats whom, and what bars and traces are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.report.bars import Bar, Span, bar_cell, make_span, mean_bar
from cluster.report.data import ReportData, load_report
from cluster.report.sections.by_class import load_classes
from cluster.report.sections.effects import Effect, is_removal, load_effects, say_change, winners
from cluster.report.sections.encoders import colours_of, full_batches, loss_of, names_of
from cluster.report.sections.finder import LENGTHS, LIST_BYTES, UNIT_BYTES, plan_index
from cluster.report.sections.judged import Contest, Judgements, leaders, pairs_once
from cluster.report.sections.named import Found, Method, Named, load_named
from cluster.report.sections.places import Place, place_of
from cluster.report.sections.trace_cards import choose_traces, outcome_of
from cluster.report.sections.unit_choice import choose_units, vote
from cluster.report.sections.unit_images import Grids, heat_of
from cluster.report.sections.variants import Variants, place
from cluster.report.tiles import Views
from cluster.stores import make_store
from jobs.shown import WHOLE
from schemas.intervene import Change
from tests.made_up_saes import make_features, publish_rows, save_run, stage_of
from tests.made_up_units import CONCEPTS, METHODS, MODELS, SITE, make_effects, publish_units

IMAGES = [{"image_id": f"{i:032x}", "image_index": i, "uri": f"world:{i}"} for i in range(12)]
NEURONS = Place(MODELS[0], SITE, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    save_run(store, "units-00001", publish_units(store, IMAGES, seeds=2))
    return load_report(store)


# ---------------------------------------------------------------- which units


def test_the_vote_is_what_most_say_and_of_equals_the_first() -> None:
    assert vote(["red", "blue", "red"]) == ("red", 2, 3)
    assert vote(["blue", "red"]) == ("blue", 1, 2)
    assert vote([]) is None


def made(
    first: dict[str, dict[int, str]], located: dict[str, dict[str, list[tuple[int, float]]]]
) -> tuple[Named, Found]:
    methods = tuple(Method(stage, stage) for stage in first)
    return Named(0, NEURONS, "t", methods, 20), Found(first, located)


def test_half_of_the_units_are_located_a_quarter_agreed_and_the_rest_by_chance() -> None:
    names = {unit: f"n{unit}" for unit in range(20)}
    other = {unit: f"n{unit}" if unit in (11, 12, 13) else "x" for unit in range(20)}
    a = {"red": [(3, 0.9), (4, 0.8)], "blue": [(5, 0.9)]}
    b = {"red": [(3, 0.7)], "blue": [(6, 0.4)], "green": [(7, 0.1)]}
    named, found = made({"a": names, "b": other}, {"a": a, "b": b})
    chosen = choose_units(named, found, 8)
    # red's most voted unit is 3, blue's 5 before 6 (equal votes), green's 7; then every concept's second: 6
    assert [u for u, why in chosen.items() if why == "located"] == [3, 5, 6, 7]
    assert [u for u, why in chosen.items() if why == "agreed"] == [11, 12]
    assert sum(why == "random" for why in chosen.values()) == 2 and len(chosen) == 8
    assert choose_units(named, found, 8) == chosen
    assert set(choose_units(named, found, 100)) == set(range(20))


def test_the_second_of_a_concept_comes_after_the_first_of_all() -> None:
    a = {"red": [(1, 0.9)], "blue": [(2, 0.9)]}
    b = {"red": [(9, 0.9)], "blue": [(2, 0.9)]}
    named, found = made({"a": dict.fromkeys(range(10), "x")}, {"a": a, "b": b})
    assert [u for u, why in choose_units(named, found, 4).items() if why == "located"] == [1, 2]


def test_of_several_seeds_the_first_is_shown(data: ReportData) -> None:
    named = load_named(data)
    assert [n.place for n in named] == [NEURONS, Place(MODELS[1], SITE, None)]
    ours = named[0].methods[0]
    assert ours.variant == "miclip in+out"
    (row,) = data.table("descriptions", ["stage", "seed"], {"stage": ours.stage}).to_pylist()
    assert row["seed"] == 0
    assert [m.variant for m in named[0].methods] == list(METHODS) and named[0].methods[-1].is_truth


def test_methods_stand_in_one_order_with_one_colour_each(data: ReportData) -> None:
    variants = Variants(data)
    assert variants.names == tuple(METHODS) and [variants.colour(v) for v in METHODS] == [0, 1, 2, 3, 4]
    assert sorted(["auroc", "zeta", "act_values", "miclip out"], key=place) == [
        "miclip out",
        "act_values",
        "zeta",
        "auroc",
    ]


def test_neurons_come_before_features_and_both_by_model_and_site() -> None:
    shuffled = [("b", "r", None), ("a", "t", None), ("a", "s", "sae:y"), ("a", "s", None), ("a", "s", "sae:x")]
    ordered = sorted((Place(*of) for of in shuffled), key=lambda of: of.key)
    assert ordered == [("a", "s", None), ("a", "s", "sae:x"), ("a", "s", "sae:y"), ("a", "t", None), ("b", "r", None)]


# ---------------------------------------------------------------- which concepts


def lists(concepts: int, places: int = 1) -> list[Found]:
    located = {"a": {f"c{i:03d}": [(i, 1.0)] * 5 for i in range(concepts)}}
    return [Found({"a": {}}, located)] * places


def test_the_finder_shortens_lists_before_it_leaves_concepts_out() -> None:
    each = LIST_BYTES + LENGTHS[0] * UNIT_BYTES
    assert plan_index(lists(10), 10 * each) == (tuple(f"c{i:03d}" for i in range(10)), LENGTHS[0], 0)
    assert plan_index(lists(10), 10 * each - 1).length == LENGTHS[1]
    few = plan_index(lists(10), 4 * (LIST_BYTES + UNIT_BYTES))
    assert (len(few.concepts), few.length, few.left_out) == (4, 1, 6)


# ---------------------------------------------------------------- pictures of units


class TwoByThree(Grids):
    """Every site of patches has two rows of three."""

    def of(self, place: Place) -> tuple[int, int]:
        return (2, 3) if place.site.endswith("@patch") else super().of(place)


def test_a_neuron_of_patches_has_its_one_patch_and_one_of_a_class_token_none(data: ReportData) -> None:
    image = {"stage": "s", "image_id": IMAGES[0]["image_id"], "token": 5, "value": 2.0}
    grids, views = TwoByThree(data), Views(data)
    heat = heat_of(image, 4.0, NEURONS, grids, views)
    assert (
        heat is not None
        and heat.values == [0, 0, 0, 0, 0, 2.0]
        and (heat.rows, heat.columns, heat.box) == (2, 3, WHOLE)
    )
    assert heat_of(image, 4.0, Place(MODELS[0], "resid_post.3@cls", None), grids, views) is None
    assert heat_of({**image, "token": 6}, 4.0, NEURONS, grids, views) is None
    assert heat_of({**image, "map": [1.0, 2.0], "grid_h": 1, "grid_w": 2}, 2.0, NEURONS, Grids(data), views) is not None


def test_the_grid_of_a_map_is_that_of_the_features_found_there(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    rows = make_features("sae:x", 2, IMAGES, 0)["sae_top_images"]
    stage = stage_of("sae_features", "features")
    publish_rows(
        store, stage, {"sae_top_images": [{**row, "site": "stage.3@map", "grid_h": 3, "grid_w": 4} for row in rows]}
    )
    save_run(store, "grids-00001", [stage])
    grids = Grids(load_report(store))
    assert grids.of(Place(rows[0]["model"], "stage.3@map", None)) == (3, 4) and grids.largest == 12
    assert grids.of(Place(rows[0]["model"], "stage.2@map", None)) == (0, 0)


# ---------------------------------------------------------------- who wins


def effects(**values: float) -> dict[str, dict[Change, Effect]]:
    return {v: {Change(beta=0.0): Effect(Bar(value), None, ("s",))} for v, value in values.items()}


def test_to_remove_is_to_lower_and_nobody_wins_with_the_wrong_sign() -> None:
    assert winners(effects(a=-3.0, b=-9.0, auroc=-50.0), Change(beta=0.0)) == ["b"]
    assert winners(effects(a=3.0, b=0.0), Change(beta=0.0)) == []
    assert winners(effects(a=-3.0, b=-3.0 - 1e-12, c=-2.9), Change(beta=0.0)) == ["a", "b"]
    assert leaders({"act_values": 1.0, "miclip out": 1.0, "miclip in+out": 1.0}) == [
        "miclip in+out",
        "miclip out",
        "act_values",
    ]
    assert leaders({}) == [] and leaders({"auroc": 1.0}) == []
    assert [is_removal(c) for c in (Change(beta=0.5), Change(beta=2.0), Change(op="add", beta=-1.0), Change(op="add", beta=1.0))] == [
        True, False, True, False
    ]  # fmt: skip
    assert [say_change(c) for c in (Change(beta=2.0), Change(beta=0.0), Change(op="add", beta=-1.0))] == [
        "enhance ×2",
        "remove ×0",
        "add −1",
    ]


def test_classes_are_those_of_one_place_and_their_images_are_added_over_seeds(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    stages = []
    for sae, variant, seeds in ((None, "miclip in+out", (0, 1)), ("sae:x", "netdissect", (None,))):
        for seed in seeds:
            keys = {
                "model": MODELS[0],
                "site": SITE,
                "sae": sae,
                "unit_kind": "neurons",
                "variant": variant,
                "seed": seed,
            }
            stages.append(stage_of("intervene", "effects", sae=sae, variant=variant, seed=seed))
            publish_rows(store, stages[-1], make_effects(keys))
    save_run(store, "classes-00001", stages)
    data = load_report(store)
    ((_, (found, _)),) = [item for item in load_effects(data).items() if item[0].place == NEURONS]
    classes = load_classes(
        data, {s: name for name, of in found.items() for effect in of.values() for s in effect.stages}
    )
    assert [c.name for c in classes] == sorted(CONCEPTS) and {
        v for c in classes for of in c.effects.values() for v in of
    } == {"miclip in+out"}
    red = next(
        c for c in classes if c.name == "red"
    )  # of 20 images 16 are right; without its units none, with them doubled all
    assert red.effects == {Change(beta=2.0): {"miclip in+out": 20.0}, Change(beta=0.0): {"miclip in+out": -80.0}}
    assert red.images == 20 and red.largest == 80.0


def test_a_contest_counts_real_differences_from_either_side(data: ReportData) -> None:
    tests = Judgements(data)
    (judge,) = {row["stage"] for row in tests.rows if place_of(row) == NEURONS}
    ours = tests.contest(judge, NEURONS, "accuracy", "miclip in+out")
    assert (ours.beats, ours.beaten_by, len(ours.against)) == (("netdissect",), (), 3)
    assert ours.words == "better than 1 of 3"
    theirs = tests.contest(judge, NEURONS, "accuracy", "netdissect")
    assert (theirs.beats, theirs.beaten_by, theirs.words) == ((), ("miclip in+out",), "")
    # to remove, less accuracy is better: the difference is negative there, and it is ours that wins
    assert tests.contest(judge, NEURONS, "dacc x0 keep", "miclip in+out", "less").beats == ("netdissect",)
    assert tests.contest(judge, NEURONS, "no such measure", "miclip in+out").words == ""
    assert Contest(("a", "b"), (), ("a", "b")).words == "better than all 2 others"
    assert Contest(("a",), (), ("a",)).words == "better than a"
    assert tests.contest(None, NEURONS, "accuracy", "miclip in+out").words == ""


def test_a_pair_is_told_once_and_the_one_that_is_ahead_first(data: ReportData) -> None:
    row = next(r for r in Judgements(data).rows if r["measure"] == "dacc x0 keep")
    assert row["difference"] < 0
    mirror = {**row, "variant": row["against"], "against": row["variant"], "difference": -row["difference"]}
    (kept,) = pairs_once([row, mirror])
    assert (kept["variant"], kept["against"], kept["difference"]) == (
        row["against"],
        row["variant"],
        -row["difference"],
    )
    assert (kept["low"], kept["high"]) == (-row["high"], -row["low"])


# ---------------------------------------------------------------- bars


def test_bars_of_one_column_share_a_span_from_zero() -> None:
    span = make_span([Bar(5.0, 4.0, 10.0), Bar(-2.0, None, None)])
    assert span.low < -2 and span.high > 10 and make_span([Bar(1.0)]).low == 0 and make_span([]) == Span(0.0, 1.0)
    assert Span(-10, 10).at(0) == 100 and Span(-10, 10).at(-10) == 0 and Span(-10, 10).at(99) == 200


def test_a_bar_goes_from_zero_to_its_value_with_its_interval_over_it() -> None:
    cell = bar_cell(Bar(-5.0, -7.5, -2.5), Span(-10, 10), 3, "−5.0", best=True, remark="better than all others")
    assert '<rect x="50.0" y="4" width="50.0"' in cell.shown and "M25.0 8H75.0" in cell.shown and cell.sort == -5.0
    assert "<b>−5.0 ★</b>" in cell.shown and "s3 best" in cell.shown and "better than all others" in cell.shown
    assert (
        "whisker" not in bar_cell(Bar(1.0), Span(0, 2), 0, "1").shown and bar_cell(None, Span(0, 1), 0, "").shown == "–"
    )


def test_seeds_are_averaged_and_their_intervals_joined() -> None:
    assert mean_bar([Bar(1.0, 0.5, 2.0), Bar(3.0, 1.5, 4.0), Bar(2.0)]) == Bar(2.0, 0.5, 4.0)
    assert mean_bar([Bar(1.0)]) == Bar(1.0, None, None)


# ---------------------------------------------------------------- encoders


def test_the_last_step_of_an_epoch_has_a_smaller_batch_if_images_are_no_multiple() -> None:
    assert full_batches(np.arange(7), 250, 100).tolist() == [True, True, False, True, True, False, True]
    assert full_batches(np.arange(4), 200, 100).all()


def test_encoders_that_differ_in_their_seed_alone_share_a_colour() -> None:
    row = {"w_out": 1.0, "w_in": 1.0, "logit_scale": 1.0, "lr": 1e-4, "pool": "mean", "clip": "c", "encoder": "align:x"}
    rows = [{**row, "w_in": w, "seed": seed} for w in (1.0, 0.0) for seed in (0, 1)]
    assert colours_of(rows) == [0, 8, 1, 9]
    assert loss_of({**row, "w_in": 0.0}) == "out" and loss_of({**row, "w_out": 0.0}) == "in"
    assert loss_of({**row, "w_in": 0.5}) == "none"
    assert names_of(rows) == ["in+out seed 0", "in+out seed 1", "out seed 0", "out seed 1"]


# ---------------------------------------------------------------- traces


def test_what_became_of_an_image() -> None:
    row = {"is_error": True, "cross_layer": None, "persistent": False, "max_lead": 0.1}
    assert outcome_of(row) == "kept" and outcome_of({**row, "max_lead": -0.1}) == "never"
    assert (
        outcome_of({**row, "cross_layer": 3}) == "crossed"
        and outcome_of({**row, "cross_layer": 3, "persistent": True}) == "lost"
    )
    assert (
        outcome_of({**row, "is_error": False}) == "right"
        and outcome_of({**row, "is_error": False, "cross_layer": 2}) == "alarm"
    )


def test_some_images_of_every_outcome_are_chosen_with_their_curves(data: ReportData) -> None:
    (stage, _) = (s for s, p in data.stages.items() if p.stage.kind == "trace_errors")
    chosen = choose_traces(data, stage, 6)
    outcomes = [example.outcome for example in chosen]
    assert outcomes[:3] == ["lost"] * 3 and "alarm" in outcomes and "right" in outcomes and len(chosen) == 6
    first = chosen[0]
    layers, cosines = first.curves["truth"]
    assert layers.tolist() == [0, 1, 2, 3] and np.argmax(cosines - first.curves["wrong"][1]) == first.row["peak_layer"]
    assert first.row["truth"] in CONCEPTS
