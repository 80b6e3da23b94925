"""Every number of the summary, counted again by plain loops over the rows of each measure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, shapiro, wilcoxon

from cluster.inputs import StoreInputs
from jobs.protocol import Setting
from jobs.score_explanations.gathered import Key, Scored, gather
from jobs.score_explanations.labels import Labels
from jobs.score_explanations.summary import Summaries, results
from jobs.score_explanations.task import Task
from miclip_core.evaluate.significance import draw_again
from miclip_core.zoo.load import load_model
from schemas.plans import Resources
from schemas.refs import ModelRef
from tests.jobs.score_explanations.conftest import RANDOM, WEAK, World
from tests.jobs.score_explanations.lake_of_texts import CLIP, HEAT, INFORMED, STEERING, TOPK
from tests.made_up_descriptions import Row

VARIANT = ("vlm", "method", "masking", "direction", "positions", "alpha_asked", "alpha_unit")
FEATURES = list(range(1, 11))
"""Without 0, on which an alpha was chosen, and 11, of which one way to explain has no row."""
EXPLAINED = (TOPK, HEAT, STEERING, WEAK, RANDOM, INFORMED)
TABLES = {
    "iou": "explanation_iou",
    "precision": "explanation_iou",
    "recall": "explanation_iou",
    "clip": "explanation_clip",
}
COLUMNS = {"clip": "cosine"}


def variant_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in VARIANT)


@pytest.fixture(scope="module")
def rows(world: World) -> dict[str, dict[tuple[Any, ...], list[Row]]]:
    """Table -> (variant, feature, sequence) -> rows."""
    found: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
    for table in ("explanation_iou", "explanation_clip", "explanation_synthetic", "explanation_naming"):
        for row in world.rows(table):
            key = (variant_of(row), row["feature"], row["sequence"])
            found.setdefault(table, {}).setdefault(key, []).append(row)
    return found


Rows = dict[str, dict[tuple[Any, ...], list[Row]]]


def score(rows: Rows, metric: str, variant: tuple[Any, ...], feature: int, sequence: int) -> float | None:
    """One text by one measure: the mean over its images."""
    key = (variant, feature, sequence)
    if metric == "synthetic":
        values = [row["mean"] for row in rows["explanation_synthetic"].get(key, [])]
    elif metric in ("named", "share_named"):
        values = [float(row[metric]) for row in rows["explanation_naming"].get(key, [])]
    else:
        values = [row[COLUMNS.get(metric, metric)] for row in rows[TABLES[metric]].get(key, [])]
    return fmean(values) if values else None


NAMINGS = ("named", "share_named")


def telling(rows: Rows) -> list[int]:
    """Features that tell a concept: some text about them is asked for its name."""
    return [feature for feature in FEATURES if any(f == feature for _, f, _ in rows["explanation_naming"])]


def per_feature(rows: Rows, metric: str, variant: tuple[Any, ...]) -> dict[int, float]:
    """The mean over the texts of a feature, of features that have one; nothing is named where there is no text."""
    found = {}
    for feature in FEATURES:
        values = [score(rows, metric, variant, feature, sequence) for sequence in (0, 1)]
        known = [value for value in values if value is not None]
        if metric in NAMINGS and feature in telling(rows):
            known = known or [0.0]
        if known:
            found[feature] = fmean(known)
    return found


def made(rows: Rows, variant: tuple[Any, ...], feature: int) -> list[float]:
    return [r["mean"] for s in (0, 1) for r in rows["explanation_synthetic"].get((variant, feature, s), [])]


def unmade(rows: Rows, feature: int) -> list[float]:
    return [row["mean"] for row in rows["explanation_synthetic"][((None,) * 7, feature, None)]]


def area(positive: list[float], negative: list[float]) -> float:
    pairs = [(a > b) + (a == b) / 2 for a in positive for b in negative]
    return sum(pairs) / len(pairs)


def test_the_same_features_count_for_every_way_to_explain(world: World) -> None:
    found = world.rows("explanation_scores")
    assert sorted({row["feature"] for row in found}) == FEATURES
    for variant in EXPLAINED:
        texts = 2 if variant in (HEAT, INFORMED) else 1
        assert sum(variant_of(row) == variant for row in found) == texts * len(FEATURES)
    for row in world.rows("explanation_summary"):
        assert row["n"] + (row["n_empty"] if row["metric"] not in NAMINGS else 0) <= len(FEATURES)


def test_scores_of_texts_are_means_over_images(world: World, rows: Rows) -> None:
    texts = {(variant_of(row), row["feature"], row["sequence"]): row for row in world.texts()}
    for row in world.rows("explanation_scores"):
        variant, feature, sequence = variant_of(row), row["feature"], row["sequence"]
        said = texts[variant, feature, sequence]
        assert (row["status"], row["text"], row["alpha"]) == (said["status"], said["text"], said["alpha"])
        for metric in ("iou", "clip", "synthetic"):
            assert row[metric] == pytest.approx(score(rows, metric, variant, feature, sequence)), (metric, variant)
            assert (row[metric] is None) == (said["status"] != "ok")
        positive = [r["mean"] for r in rows["explanation_synthetic"].get((variant, feature, sequence), [])]
        assert row["auroc"] == (pytest.approx(area(positive, unmade(rows, feature))) if positive else None)
        named = score(rows, "named", variant, feature, sequence)
        nothing = 0.0 if said["status"] != "ok" and feature in telling(rows) else None
        assert row["named"] == (nothing if named is None else named)


def test_means_deviations_and_counts_are_those_of_plain_loops(world: World, rows: Rows) -> None:
    found = {(variant_of(row), row["metric"]): row for row in world.rows("explanation_summary")}
    metrics = ("iou", "precision", "recall", "clip", "synthetic", "named", "share_named")
    assert len(found) == len(EXPLAINED) * (len(metrics) + 2)
    for variant in EXPLAINED:
        for metric in metrics:
            values, row = list(per_feature(rows, metric, variant).values()), found[variant, metric]
            assert row["n"] == len(values) and row["value"] == pytest.approx(fmean(values))
            assert row["sd"] == pytest.approx(stdev(values)) and row["low"] <= row["value"] <= row["high"]
        refused = {TOPK: {3}, INFORMED: {3, 5}}.get(variant, set())
        for (v, metric), row in found.items():
            if v == variant:
                among = telling(rows) if metric in NAMINGS else FEATURES
                assert row["n_empty"] == len(refused & {*among})


def test_shares_of_named_concepts_are_of_the_same_features_whoever_has_no_text(world: World, rows: Rows) -> None:
    named = [row for row in world.rows("explanation_summary") if row["metric"] in NAMINGS]
    assert {row["n"] for row in named} == {len(telling(rows))} and {3, 5} & {*telling(rows)}
    texts = [row for row in world.rows("explanation_scores") if row["named"] is not None]
    for row in named:
        own = [text["named"] for text in texts if variant_of(text) == variant_of(row) and text["sequence"] == 0]
        if row["metric"] == "named" and variant_of(row) not in (HEAT, INFORMED):
            assert row["value"] == pytest.approx(sum(own) / row["n"]) and len(own) == row["n"]


def test_a_note_says_how_many_features_are_not_explained_in_every_way(world: World) -> None:
    (summary,) = [plan for plan in world.plans if plan.stage.output == "summary"]
    notes: list[str] = []
    gather(StoreInputs(world.lake.store), summary, notes)
    assert notes == [
        "1 of 12 explained features are left out of the summary: they are not explained by steering sae all alpha 1 x p90 (1)"
    ]


class Counted(dict[Key, Scored]):
    """Texts that count how often all of them are gone through."""

    passes = 0

    def __iter__(self) -> Iterator[Key]:
        self.passes += 1
        return super().__iter__()

    def items(self) -> Any:
        self.passes += 1
        return super().items()


def test_texts_are_gone_through_once_and_not_for_every_feature(world: World) -> None:
    (plan,) = [plan for plan in world.plans if plan.stage.output == "summary"]
    found = gather(StoreInputs(world.lake.store), plan, [])
    texts = Counted(found.texts)
    summaries = Summaries(plan, replace(found, texts=texts), Labels({}))
    assert list(summaries.selected()) and summaries.tests() and list(summaries.means())
    assert texts.passes <= 2


def test_intervals_are_drawn_for_the_ways_to_explain_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = [plan for plan in world.plans if plan.stage.output == "summary"]
    drawn: list[int] = []

    def count(n: int, samples: int, seed: int) -> Any:
        drawn.append(n)
        return draw_again(n, samples, seed)

    monkeypatch.setattr("miclip_core.explain.auroc.draw_again", count)
    task = Task((plan,), next(iter(plan.shards(1))), StoreInputs(world.lake.store), Setting((plan,), Resources()), [])
    assert {part.table for part in results(task)} >= {"explanation_agreement", "explanation_summary"}
    assert len(drawn) == len(EXPLAINED)


def test_a_share_has_the_interval_of_wilson(world: World) -> None:
    for row in world.rows("explanation_summary"):
        if row["metric"] == "named" and row["sd"] is not None:
            n, p, z = row["n"], row["value"], 1.96
            middle = (p + z * z / (2 * n)) / (1 + z * z / n)
            half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
            assert (row["low"], row["high"]) == pytest.approx((middle - half, middle + half), abs=1e-3)


def test_areas_are_counted_over_pairs_of_images(world: World, rows: Rows) -> None:
    found = {(variant_of(row), row["metric"]): row for row in world.rows("explanation_summary")}
    for variant in EXPLAINED:
        there = [feature for feature in FEATURES if made(rows, variant, feature)]
        each = [area(made(rows, variant, feature), unmade(rows, feature)) for feature in there]
        macro, pooled = found[variant, "auroc_macro"], found[variant, "auroc_pooled"]
        assert macro["value"] == pytest.approx(fmean(each)) and macro["n"] == pooled["n"] == len(there)
        positive = [value for feature in there for value in made(rows, variant, feature)]
        negative = [value for feature in there for value in unmade(rows, feature)]
        assert pooled["value"] == pytest.approx(area(positive, negative))
        assert pooled["low"] <= pooled["value"] <= pooled["high"]


def test_of_two_alphas_the_one_with_the_better_overlap_is_the_candidate_and_controls_are_none(
    world: World, rows: Rows
) -> None:
    candidates = {variant_of(row) for row in world.rows("explanation_summary") if row["is_candidate"]}
    means = {v: fmean(per_feature(rows, "iou", v).values()) for v in (STEERING, WEAK)}
    assert WEAK < STEERING and means[WEAK] < means[STEERING]
    assert candidates == {TOPK, HEAT, INFORMED, STEERING}


def candidate(world: World) -> tuple[Any, ...]:
    (found,) = {
        variant_of(r) for r in world.rows("explanation_summary") if r["is_candidate"] and r["method"] == "steering"
    }
    return found


def groups(world: World) -> dict[str, dict[str, tuple[Any, ...]]]:
    steering = candidate(world)
    return {
        "masks": {"topk": TOPK, "steering": steering, "informed": INFORMED},
        "heatmaps": {"topk": HEAT, "steering": steering},
    }


def test_tests_between_methods_are_those_of_scipy_on_the_features_that_both_have(world: World, rows: Rows) -> None:
    found = {
        (r["masking"], r["metric"], r["test"], r["method_a"], r["method_b"]): r for r in world.rows("explanation_tests")
    }
    expected, normal = 0, set()
    for masking, group in groups(world).items():
        for metric in ("iou", "clip", "synthetic"):
            values = {method: per_feature(rows, metric, variant) for method, variant in group.items()}
            for a in group:
                if (group[a], metric) in normal:
                    assert (masking, metric, "shapiro", a, "") not in found
                    expected -= 1
                else:
                    row = found[masking, metric, "shapiro", a, ""]
                    assert row["n"] == len(values[a])
                    assert row["p"] == pytest.approx(shapiro(sorted(values[a].values())).pvalue, rel=1e-3)
                    normal.add((group[a], metric))
                for b in group:
                    if a != b:
                        row = found[masking, metric, "mann_whitney", a, b]
                        one, other = list(values[a].values()), list(values[b].values())
                        assert row["p"] == pytest.approx(mannwhitneyu(one, other, alternative="greater").pvalue)
            for a, b in combinations(group, 2):
                row = found[masking, metric, "wilcoxon", a, b]
                both = sorted(values[a].keys() & values[b].keys())
                assert row["n"] == len(both)
                differences = np.around([values[a][f] - values[b][f] for f in both], 12)
                if np.any(differences):
                    exact = wilcoxon(differences[differences != 0], method="auto").pvalue
                    assert row["p"] == pytest.approx(exact, abs=0.05)
            expected += len(group) + len(group) * (len(group) - 1) * 3 // 2
    assert len(found) == expected and len(normal) == 4 * 3
    unequal = [r for r in found.values() if r["test"] == "wilcoxon" and r["method_b"] == "informed"]
    assert {r["n"] for r in unequal} == {8}  # informed has no text about two features


def test_p_values_are_corrected_over_all_tests_of_their_kind(world: World) -> None:
    for kind in ("shapiro", "mann_whitney", "wilcoxon"):
        some = sorted((r for r in world.rows("explanation_tests") if r["test"] == kind), key=lambda r: r["p"])
        largest = 0.0
        for place, row in enumerate(some):
            largest = max(largest, min(1.0, (len(some) - place) * row["p"]))
            assert row["p_holm"] == pytest.approx(largest)


def test_agreement_is_of_features_whose_first_texts_have_that_cosine(world: World, rows: Rows) -> None:
    texts = {(variant_of(r), r["feature"]): r["text"] for r in world.texts() if r["sequence"] == 0}
    distinct = sorted({text for text in texts.values() if text is not None})
    with torch.no_grad():
        embedded = dict(zip(distinct, load_model(ModelRef.parse(CLIP)).embed_text(distinct), strict=True))
    found = world.rows("explanation_agreement")
    assert len(found) == (3 + 2) * 5 * 5
    for row in found:
        group = groups(world)[row["masking"]]
        variant, kept = group[row["method"]], []
        for feature in FEATURES:
            pair = texts[group["topk"], feature], texts[group["steering"], feature]
            if None not in pair:
                a, b = (embedded[str(text)] for text in pair)
                if float(torch.cosine_similarity(a, b, dim=0)) >= row["threshold"]:
                    kept.append(feature)
        if row["metric"].startswith("auroc"):
            kept = [feature for feature in kept if made(rows, variant, feature)]
            pairs = [(made(rows, variant, feature), unmade(rows, feature)) for feature in kept]
            flat = [[value for pair in pairs for value in pair[side]] for side in (0, 1)]
            value = (
                (fmean(area(*pair) for pair in pairs) if row["metric"] == "auroc_macro" else area(*flat))
                if kept
                else None
            )
        else:
            known = per_feature(rows, row["metric"], variant)
            kept = [feature for feature in kept if feature in known]
            value = fmean(known[feature] for feature in kept) if kept else None
        assert row["n"] == len(kept) and row["value"] == (None if value is None else pytest.approx(value))
    assert len({row["n"] for row in found if row["metric"] == "clip" and row["method"] == "topk"}) > 1


def test_the_chosen_text_has_the_best_ranks_and_says_whether_it_passes(world: World, rows: Rows) -> None:
    found = {(row["vote"], row["feature"]): row for row in world.rows("selected_explanations")}
    texts = {(variant_of(row), row["feature"], row["sequence"]): row for row in world.rows("explanation_scores")}
    for vote, group in groups(world).items():
        chosen = []
        for feature in FEATURES:
            candidates = [texts[variant, feature, 0] for variant in group.values() if (variant, feature, 0) in texts]
            there = [text for text in candidates if text["status"] == "ok"]
            ranks = []
            for text in there:
                of_each = [
                    fmean([1 + sum(o[m] > text[m] for o in there), sum(o[m] >= text[m] for o in there)])
                    for m in ("iou", "clip", "synthetic")
                ]
                ranks.append(fmean(of_each))
            row = found[vote, feature]
            best = [text for text, rank in zip(there, ranks, strict=True) if rank == pytest.approx(min(ranks))]
            assert row["mean_rank"] == pytest.approx(min(ranks)) and row["is_tie"] == (len(best) > 1)
            (own,) = [t for t in there if (variant_of(t), t["sequence"]) == (variant_of(row), row["sequence"])]
            assert own in best and all(
                row[name] == own[name] for name in ("text", "iou", "clip", "synthetic", "context")
            )
            assert row["n_methods"] == len({text["method"] for text in there})
            chosen.append(row)
        least = np.percentile([row["synthetic"] for row in chosen], 20)
        for row in chosen:
            assert row["passed"] == (row["iou"] >= 0.2 and row["synthetic"] >= least)
    assert len(found) == 2 * len(FEATURES)


def test_texts_are_labelled_by_the_words_of_the_demo_world(world: World) -> None:
    for row in world.rows("explanation_scores"):
        if row["status"] != "ok":
            assert row["abstraction"] is None and row["context"] is None
        elif row["text"] == "A thing":
            assert (row["abstraction"], row["context"]) == ("other", "other")
        elif row["text"].endswith("background"):
            assert (row["abstraction"], row["context"]) == ("low-level visual feature", "background")
        else:
            thing = any(word in row["text"].split() for word in ("circle", "star"))
            assert row["abstraction"] == f"{'high' if thing else 'low'}-level visual feature"
            assert row["context"] == "other"
