"""Methods against made-up truths: every figure by hand or by scipy, through published tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cluster.stores.base import Store, make_store
from miclip_core.evaluate.significance import bootstrap_interval
from miclip_core.zoo.load import load_model
from schemas.plans import Plan
from schemas.refs import ModelRef
from tests.jobs.evaluate.made_up import (
    ALL_WRONG,
    CLIP,
    CONCEPTS,
    MODEL,
    SITE,
    SOME_WRONG,
    TRUTH,
    effects_stage,
    facts,
    known,
    plan,
    publish_effects,
    publish_names,
    publish_truth,
)
from tests.made_up_descriptions import rows_of, run_plans

OURS, VALUES, WPMI = "miclip in+out", "act_values", "clip_dissect soft_wpmi"
SEED1 = ["green", *TRUTH[1:]]


class Judged:
    """The tables of one evaluate stage."""

    def __init__(self, store: Store, judged: Plan) -> None:
        self.store, self.plan = store, judged
        self.ran = run_plans(store, [judged])
        assert not self.ran.board.failed, list(self.ran.board.failed.values())

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        return [row for row in rows_of(self.store, self.plan, table) if all(row[k] == v for k, v in where.items())]

    def score(self, measure: str, variant: str, seed: int | None = None) -> dict[str, Any]:
        (row,) = self.rows("method_scores", measure=measure, variant=variant, seed=seed)
        return row

    def test(self, measure: str, variant: str, against: str) -> dict[str, Any]:
        (row,) = self.rows("method_tests", measure=measure, variant=variant, against=against)
        return row


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Plan]]:
    """A truth and three methods, the first of two seeds; the lists of one are longer."""
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    return store, [
        publish_truth(store),
        publish_names(store, OURS, TRUTH, seed=0, tau=3),
        publish_names(store, OURS, SEED1, seed=1, tau=3),
        publish_names(store, VALUES, SOME_WRONG, tau=5),
        publish_names(store, WPMI, ALL_WRONG, tau=3),
    ]


@pytest.fixture(scope="module")
def judged(read: tuple[Store, list[Plan]]) -> Judged:
    store, stages = read
    return Judged(store, plan(stages, seed=4))


@pytest.fixture(scope="module")
def cosine() -> Mapping[tuple[str, str], float]:
    """Of any two names in the space of the CLIP."""
    vectors = load_model(ModelRef.parse(CLIP)).embed_text(list(CONCEPTS)).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {(a, b): float(vectors[i] @ vectors[j]) for i, a in enumerate(CONCEPTS) for j, b in enumerate(CONCEPTS)}


# ---------------------------------------------------------------- single methods


def test_predicting_the_true_names_gives_one_and_precision_reaches_its_ceiling(judged: Judged) -> None:
    for measure in ("accuracy", "clip_score"):
        row = judged.score(measure, OURS, 0)
        assert (row["n"], row["value"], row["low"], row["high"]) == (10, *[pytest.approx(1, abs=1e-6)] * 3)
    row = judged.score("precision", OURS, 0)
    # three units of each concept in three places, but one of star
    assert row["value"] == row["ceiling"] == pytest.approx((1 + 1 + 1 + 1 / 3) / 4)


def test_accuracy_similarity_and_precision_are_those_of_the_tables(judged: Judged, cosine: Any) -> None:
    row = judged.score("accuracy", VALUES)
    right = [1.0] * 7 + [0.0] * 3
    assert (row["n"], row["value"], row["ceiling"]) == (10, pytest.approx(0.7), None)
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(right, 4))
    row = judged.score("clip_score", VALUES)
    alike = [1.0] * 7 + [cosine["star", "circle"], cosine["red", "circle"]]
    assert (row["n"], row["value"]) == (9, pytest.approx(np.mean(alike), abs=1e-6))
    row = judged.score("precision", VALUES)
    # red: 0, 1, 2 (then 8, 11). green: 3, 4, 5. circle: 6. star: 7, 10, and unit 9 is silent
    assert (row["n"], row["value"]) == (4, pytest.approx((3 / 3 + 3 / 3 + 1 / 3 + 0) / 4))
    assert row["ceiling"] == pytest.approx(10 / 12) and row["low"] is None
    assert judged.score("accuracy", WPMI)["value"] == judged.score("precision", WPMI)["value"] == 0
    assert judged.rows("method_scores", measure="sentence_score") == []


def test_every_unit_that_stands_for_something_has_a_row(judged: Judged, cosine: Any) -> None:
    rows = judged.rows("description_eval", variant=VALUES)
    assert [(row["unit"], row["truth"], row["predicted"]) for row in rows] == [
        (unit, truth, SOME_WRONG[unit]) for unit, truth in enumerate(TRUTH)
    ]
    assert [row["correct"] for row in rows] == [True] * 7 + [False] * 3
    assert [row["truth_score"] for row in rows] == [pytest.approx(0.95)] * 10
    assert [row["clip_score"] for row in rows[7:]] == [
        pytest.approx(cosine["star", "circle"], abs=1e-6), pytest.approx(cosine["red", "circle"], abs=1e-6), None,
    ]  # fmt: skip
    keys = {(row["site"], row["sae"], row["unit_kind"], row["seed"], row["sentence_score"]) for row in rows}
    assert keys == {(SITE, None, "neurons", None, None)}
    assert {row["variant"] for row in judged.rows("description_eval")} == {OURS, VALUES, WPMI}


def test_names_that_the_text_tower_does_not_see_to_their_end_are_counted(tmp_path: Path) -> None:
    store, long = make_store(str(tmp_path)), "red " * 100 + "star"
    concepts = [long if name == "star" else name for name in CONCEPTS]
    truth = [long if name == "star" else name for name in TRUTH]
    read = [publish_truth(store, CONCEPTS), publish_names(store, OURS, truth, concepts, seed=0)]
    judged = Judged(store, plan(read, seed=4))
    notes = [note for event in judged.ran.events for note in event.get("notes", ())]
    (cut,) = [note for note in notes if "lose their end" in note]
    assert f"1 of 5 texts are longer than the context of {CLIP}" in cut


# ---------------------------------------------------------------- tests of differences


def by_all_signs(differences: list[float]) -> float:
    """The two-sided signed-rank p value by going through all signs."""
    sizes = [round(abs(d), 7) for d in differences if abs(d) > 1e-7]
    ranks = stats.rankdata(sizes)
    observed = sum(r for r, d in zip(ranks, [d for d in differences if abs(d) > 1e-7]) if d > 0)
    sums = [sum(r for r, s in zip(ranks, signs) if s) for signs in itertools.product((0, 1), repeat=len(ranks))]
    tail = min(sum(s <= observed + 1e-9 for s in sums), sum(s >= observed - 1e-9 for s in sums))
    return min(1.0, 2 * tail / len(sums))


def test_accuracies_are_compared_by_mcnemar_with_the_first_seed(judged: Judged) -> None:
    for against, alone in ((VALUES, 3), (WPMI, 10)):
        row = judged.test("accuracy", OURS, against)
        assert (row["test"], row["n_pairs"], row["difference"]) == ("mcnemar_exact", 10, pytest.approx(alone / 10))
        assert row["p_value"] == pytest.approx(stats.binomtest(alone, alone, 0.5).pvalue)
        assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval([0] * (10 - alone) + [1] * alone, 4))
        assert (row["seeds"], row["sd_seed"]) == (2, pytest.approx(np.std([1.0, 0.9], ddof=1)))
    row = judged.test("accuracy", VALUES, WPMI)
    assert (row["p_value"], row["seeds"], row["sd_seed"]) == (pytest.approx(2 / 2**7), 1, None)


def test_scores_are_averaged_over_seeds_and_compared_by_signed_ranks(judged: Judged, cosine: Any) -> None:
    both = [(1 + cosine["green", "red"]) / 2, *[1.0] * 9]
    wrong = [cosine[said, truth] for said, truth in zip(ALL_WRONG, TRUTH)]
    row = judged.test("clip_score", OURS, WPMI)
    assert (row["test"], row["n_pairs"], row["seeds"]) == ("wilcoxon_exact", 10, 2)
    differences = [a - b for a, b in zip(both, wrong)]
    assert row["difference"] == pytest.approx(np.mean(differences), abs=1e-6)
    assert row["p_value"] == pytest.approx(by_all_signs(differences))
    means = [1.0, (9 + cosine["green", "red"]) / 10]
    assert row["sd_seed"] == pytest.approx(np.std(means, ddof=1), abs=1e-6)
    row = judged.test("clip_score", VALUES, WPMI)
    said = [cosine[a, b] if a else None for a, b in zip(SOME_WRONG, TRUTH)]
    differences = [a - b for a, b in zip(said, wrong) if a is not None]
    assert (row["n_pairs"], row["p_value"]) == (9, pytest.approx(by_all_signs(differences)))


def test_fewer_than_six_pairs_are_not_tested(judged: Judged) -> None:
    row = judged.test("precision", OURS, VALUES)  # over four concepts
    assert row["n_pairs"] == 4
    first, second = (10 / 12, (2 / 3 + 2 / 3 + 1 + 1 / 3) / 4)  # unit 0 is in red's list no more, but first in green's
    assert row["difference"] == pytest.approx((first + second) / 2 - 7 / 12)
    assert [row[name] for name in ("low", "high", "test", "p_value", "p_holm")] == [None] * 5


def test_all_pairs_are_there_once_and_corrected_together(judged: Judged) -> None:
    rows = judged.rows("method_tests")
    pairs = [(OURS, VALUES), (OURS, WPMI), (VALUES, WPMI)]
    assert [(r["measure"], r["variant"], r["against"]) for r in rows] == [
        (measure, *pair) for measure in ("accuracy", "clip_score", "precision") for pair in pairs
    ]
    tested = sorted((row["p_value"], row["p_holm"]) for row in rows if row["p_value"] is not None)
    assert len(tested) == 6
    so_far = 0.0
    for place, (p, holm) in enumerate(tested):
        so_far = max(so_far, min(1, p * (6 - place)))
        assert holm == pytest.approx(so_far)


# ---------------------------------------------------------------- truths


def test_a_higher_bar_leaves_fewer_units(read: tuple[Store, list[Plan]]) -> None:
    store, stages = read
    lower = Judged(store, plan([stages[0], stages[3]], min_truth=0.7))
    assert (lower.score("accuracy", VALUES)["n"], lower.score("accuracy", VALUES)["value"]) == (11, 7 / 11)


def test_a_bar_that_no_unit_reaches_is_an_error_that_says_how_near_they_come(read: tuple[Store, list[Plan]]) -> None:
    store, stages = read
    ran = run_plans(store, [plan(stages, min_truth=0.96)])
    (outcome,) = ran.board.failed.values()
    assert outcome.error == "NoTruth"
    assert "min_truth 0.96" in outcome.message and f"neurons at {SITE} (the best has 0.950)" in outcome.message


def test_units_of_the_head_are_its_classes(tmp_path: Path) -> None:
    store, model = make_store(str(tmp_path)), "demo:resnet-sup"
    classes = facts(model).classes
    assert classes is not None and len(classes) == 64
    right = publish_names(store, "act_values", classes, classes, model, site="logits")
    turned = publish_names(store, OURS, [*classes[1:], classes[0]], classes, model, site="logits", seed=0)
    elsewhere = publish_names(store, OURS, classes, classes, model, site="pooled", seed=0)
    found = Judged(store, plan([right, turned, elsewhere], known({}, model), model, truth="classes"))
    assert found.score("accuracy", "act_values")["value"] == 1 and found.score("accuracy", OURS, 0)["value"] == 0
    assert found.score("precision", "act_values")["value"] == found.score("precision", "act_values")["ceiling"]
    assert found.score("precision", "act_values")["ceiling"] == pytest.approx(1 / 5)
    assert found.test("accuracy", OURS, "act_values")["p_value"] == pytest.approx(2 / 2**64)
    assert {row["truth_score"] for row in found.rows("description_eval")} == {None}
    assert {row["site"] for row in found.rows("method_scores")} == {"logits"}
    said = "nothing says what neurons at pooled stand for"
    assert any(said in str(event) for event in found.ran.events)


def test_what_was_not_offered_is_neither_right_nor_wrong_but_may_be_alike(tmp_path: Path, cosine: Any) -> None:
    store = make_store(str(tmp_path))
    read = [
        publish_truth(store),
        publish_names(store, VALUES, ["scarlet"] * 3 + ["lime"] * 3 + ["disc"] * 4, ("scarlet", "lime", "disc")),
        publish_names(store, WPMI, TRUTH[:6] + ["red"] * 4, ("red", "green")),
    ]
    found = Judged(store, plan(read))
    row = found.score("accuracy", VALUES)
    assert (row["n"], row["value"], row["low"]) == (0, None, None)
    assert {row["correct"] for row in found.rows("description_eval", variant=VALUES)} == {None}
    assert all(0 < row["clip_score"] < 1 for row in found.rows("description_eval", variant=VALUES))
    assert found.score("clip_score", VALUES)["n"] == 10
    row = found.score("precision", VALUES)
    assert (row["n"], row["value"], row["ceiling"]) == (0, None, None)
    # of two of the four concepts
    assert [row["correct"] for row in found.rows("description_eval", variant=WPMI)] == [True] * 6 + [None] * 4
    assert (found.score("accuracy", WPMI)["n"], found.score("accuracy", WPMI)["value"]) == (6, 1)
    assert found.score("precision", WPMI)["n"] == 2
    assert found.test("accuracy", VALUES, WPMI)["n_pairs"] == 0
    assert found.test("clip_score", VALUES, WPMI)["n_pairs"] == 10


def test_names_that_differ_as_they_are_written_are_two_concepts(tmp_path: Path) -> None:
    store, names = make_store(str(tmp_path)), ("Red", "red", "green", "circle", "star")
    read = [publish_truth(store), publish_names(store, VALUES, ["Red", *TRUTH[1:]], names)]
    found = Judged(store, plan(read))
    assert [row["correct"] for row in found.rows("description_eval")] == [False] + [True] * 9


def test_neurons_and_latents_are_compared_among_themselves(tmp_path: Path) -> None:
    store, sae = make_store(str(tmp_path)), "a" * 20
    read = [
        publish_truth(store),
        publish_truth(store, sae=sae),
        publish_names(store, VALUES, TRUTH),
        publish_names(store, OURS, TRUTH, seed=0, sae=sae),
        publish_names(store, WPMI, ALL_WRONG, sae=sae),
    ]
    found = Judged(store, plan(read))
    tests = found.rows("method_tests")
    assert {(r["variant"], r["against"], r["unit_kind"], r["sae"]) for r in tests} == {
        (OURS, WPMI, "features", f"sae:{sae}")
    }
    assert {r["variant"]: r["unit_kind"] for r in found.rows("method_scores")} == {
        VALUES: "neurons", OURS: "features", WPMI: "features",
    }  # fmt: skip


# ---------------------------------------------------------------- interventions

COUNTS = {  # images, right before, right after; off the class the same
    "red": (10, 9, 3, 4, 4, 4),
    "green": (5, 5, 1, 4, 2, 3),
    "circle": (4, 4, 4, 8, 8, 6),
    "star": (3, 2, 0, 4, 4, 3),
    "ring": (8, 7, 5, 4, 3, 3),
    "heart": (6, 6, 0, 5, 5, 5),
    "cross": (0, 0, 0, 0, 0, 0),
}
NO_EFFECT = {name: (n, ref, ref, off, off_ref, off_ref) for name, (n, ref, _, off, off_ref, _) in COUNTS.items()}


def test_changes_of_accuracy_are_paired_over_classes(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    more = {**COUNTS, "red": (10, 9, 9, 4, 4, 4)}
    read = [
        publish_effects(store, effects_stage(OURS, 0), COUNTS),
        publish_effects(store, effects_stage(OURS, 1), more),
        publish_effects(store, effects_stage(VALUES), NO_EFFECT),
    ]
    found = Judged(store, plan(read))
    on = [100 * (edit - ref) / n for n, ref, edit, *_ in COUNTS.values() if n]
    off = [100 * (edit - ref) / n for *_, n, ref, edit in COUNTS.values() if n]
    row = found.score("dacc x0 keep", OURS, 0)
    assert (row["n"], row["value"]) == (6, pytest.approx(np.mean(on)))
    # classes are taken in order of name, red is the fifth
    in_order = [on[list(COUNTS).index(name)] for name in sorted(COUNTS) if COUNTS[name][0]]
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(in_order, 0))
    assert found.score("offclass_dacc x0 keep", OURS, 0)["value"] == pytest.approx(np.mean(off))
    assert found.score("dacc x0 keep", VALUES)["value"] == 0
    row = found.test("dacc x0 keep", OURS, VALUES)
    averaged = [-30.0, *on[1:]]  # of seeds with -60 and 0 for red
    assert (row["n_pairs"], row["difference"]) == (6, pytest.approx(np.mean(averaged)))
    assert row["p_value"] == pytest.approx(by_all_signs(averaged)) == pytest.approx(2 / 2**5)
    assert row["sd_seed"] == pytest.approx(np.std([np.mean(on), np.mean([0.0, *on[1:]])], ddof=1))
    assert row["test"] == "wilcoxon_exact"
    assert found.rows("description_eval") == []


def test_every_change_error_mode_and_site_is_a_measure_of_its_own(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    twice = {"changes": [{"op": "scale", "beta": 2.0}]}
    read = [
        publish_effects(store, effects_stage(OURS), COUNTS),
        publish_effects(store, effects_stage(OURS, **twice), NO_EFFECT, beta=2.0),
        publish_effects(store, effects_stage(OURS, error="drop"), COUNTS),
        publish_effects(store, effects_stage(VALUES, site="resid_post.3@cls"), COUNTS),
    ]
    found = Judged(store, plan(read))
    assert {(row["site"], row["measure"]) for row in found.rows("method_scores")} == {
        *(("resid_post.3@all", f"{kind} {change}") for kind in ("dacc", "offclass_dacc") for change in ("x0 keep", "x2 keep", "x0 drop")),
        ("resid_post.3@cls", "dacc x0 keep"), ("resid_post.3@cls", "offclass_dacc x0 keep"),
    }  # fmt: skip
    assert found.rows("method_tests") == []


def test_effects_without_images_of_other_classes_have_no_such_measure(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    counts = {name: (*on[:3], 0, 0, 0) for name, on in COUNTS.items()}
    found = Judged(store, plan([publish_effects(store, effects_stage(OURS), counts)]))
    assert [row["measure"] for row in found.rows("method_scores")] == ["dacc x0 keep"]


def test_where_no_unit_stands_for_anything_effects_are_still_judged(read: tuple[Store, list[Plan]]) -> None:
    store, stages = read
    effects = publish_effects(store, effects_stage(OURS, 0), COUNTS)
    found = Judged(store, plan([*stages, effects], min_truth=0.99))
    assert {row["measure"] for row in found.rows("method_scores")} == {"dacc x0 keep", "offclass_dacc x0 keep"}
    assert any("no unit reaches AUROC 0.99" in str(event) for event in found.ran.events)


# ---------------------------------------------------------------- sameness


def test_the_order_of_reads_changes_no_digest_and_no_byte(tmp_path: Path) -> None:
    contents = []
    for name, step in (("one", 1), ("other", -1)):
        store = make_store(str(tmp_path / name))
        read = [
            publish_truth(store),
            publish_names(store, OURS, TRUTH, seed=0),
            publish_names(store, OURS, SEED1, seed=1),
            publish_names(store, VALUES, SOME_WRONG),
            publish_effects(store, effects_stage(OURS, 0), COUNTS),
            publish_effects(store, effects_stage(VALUES), NO_EFFECT),
        ]
        run_plans(store, [plan(read[::step])])
        keys = [key for key in store.list("tables") if "unit_concepts" not in key and "intervention" not in key]
        contents.append({key: store.get(key) for key in keys})
    assert contents[0] == contents[1] and len(contents[0]) == 3


def test_another_bootstrap_is_another_stage_with_other_intervals_alone(read: tuple[Store, list[Plan]]) -> None:
    store, stages = read
    one, other = (Judged(store, plan([stages[0], stages[3]], seed=seed)) for seed in (1, 2))
    a, b = one.score("accuracy", VALUES), other.score("accuracy", VALUES)
    assert one.plan.digest != other.plan.digest and a["value"] == b["value"]
    a, b = one.score("clip_score", VALUES), other.score("clip_score", VALUES)
    assert (a["low"], a["high"]) != (b["low"], b["high"]) and math.isclose(a["low"], b["low"], abs_tol=0.05)
    assert one.plan.stage.subject == MODEL
