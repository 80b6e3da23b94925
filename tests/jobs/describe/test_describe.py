"""Describing units by every method that looks at images as wholes: against plain loops, in shards, cached, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cluster.pipeline import RunReport
from miclip_core.dissect.clip_dissect import SIMILARITIES, clip_dissect
from miclip_core.world.captions import sentences, value_claims
from miclip_core.world.scene import PLANTED
from miclip_core.zoo.load import load_model
from schemas.refs import ModelRef
from tests.jobs.describe.place import CLIP, DEAD, IMAGES, LATENTS, METHODS, MODEL, SITE, TAU, WIDTH, Place, best

NAMES = [value for values in PLANTED.values() for value in values]
LEAST = 10
ALL = {"methods": METHODS, "similarity": list(SIMILARITIES), "tau": TAU}
KINDS = ("neurons", "features")


# ---------------------------------------------------------------- what a plain loop gives


def texts() -> Tensor:
    phrases = [phrase for category in PLANTED for phrase in sentences(value_claims(category))]
    return normalize(load_model(ModelRef.parse(CLIP)).embed_text(phrases), dim=-1)


def mean_per_concept(t: Tensor, labelled: np.ndarray) -> np.ndarray:
    out = np.full((t.shape[1], labelled.shape[1]), np.nan)
    for m in range(labelled.shape[1]):
        if labelled[:, m].any():
            out[:, m] = t.double().numpy()[labelled[:, m]].mean(0)
    out[(t == 0).all(0).numpy()] = np.nan
    return out


def chance_of_order(t: Tensor, labelled: np.ndarray) -> np.ndarray:
    """Of all pairs of an image with the concept and one that has another value of its category, the share in which the
    first is more active; ties half. Of images without any object nothing is known but the background."""
    out = np.full((t.shape[1], labelled.shape[1]), np.nan)
    for m, name in enumerate(NAMES):
        category = next(values for values in PLANTED.values() if name in values)
        known = labelled[:, [NAMES.index(value) for value in category]].any(1)
        has, lacks = t[labelled[:, m]].double(), t[known & ~labelled[:, m]].double()
        if min(len(has), len(lacks)) >= LEAST:
            pairs = has[:, None] - lacks[None]
            out[:, m] = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean((0, 1)).numpy()
    out[(t == 0).all(0).numpy()] = np.nan
    return out


def expected(place: Place, report: RunReport, method: str, variant: str, kind: str, pool: str) -> np.ndarray:
    """Score of every unit and concept [U,M], NaN where there is none."""
    if method == "miclip":
        encoder = place.encoder(report)
        vectors = encoder.W.T if kind == "neurons" else place.sae(report).W_dec @ encoder.W.T
        return (normalize(vectors.double(), dim=1) @ texts().double().T).numpy()
    t, labelled = place.pooled(report, kind, pool), place.labelled(report, NAMES)
    if method == "act_values":
        return mean_per_concept(t, labelled)
    if method == "auroc":
        return chance_of_order(t, labelled)
    return clip_dissect(variant.split()[1], t, place.embeddings(report), texts()).numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "pool"), [(m, pool) for pool in ("mean", "max") for m in METHODS if (m, pool) != ("miclip", "max")]
)
def test_the_lists_are_those_of_a_plain_loop(
    prepared: Place, report: RunReport, largest: RunReport, method: str, pool: str, kind: str
) -> None:
    report = report if pool == "mean" else largest
    summaries = prepared.rows(report, "descriptions", method=method, unit_kind=kind)
    assert len(summaries) == (len(SIMILARITIES) if method == "clip_dissect" else 1)
    for summary in summaries:
        assert summary["pool"] == (None if method == "miclip" else pool)
        scores = expected(prepared, report, method, summary["variant"], kind, pool)
        rows = [
            row
            for row in prepared.rows(report, "unit_concepts", unit_kind=kind, variant=summary["variant"])
            if row["stage"] == summary["stage"]
        ]
        check_direction(rows, scores, "describe", "unit", "concept_id")
        alive = scores.copy()
        alive[[u for u in DEAD if kind == "features"]] = np.nan
        check_direction(rows, alive.T, "localise", "concept_id", "unit")
        assert all(NAMES[row["concept_id"]] == row["concept"] for row in rows)


def check_direction(rows: list[dict[str, Any]], scores: np.ndarray, direction: str, of: str, to: str) -> None:
    """Each list is as long as it should be and holds the largest scores in order; which of two that are nearly equal it
    holds is for the last bit of a float to say."""
    lists: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["direction"] == direction:
            lists.setdefault(row[of], []).append(row)
    wanted = {n: columns for n, columns in best(scores, TAU).items() if columns}
    assert sorted(lists) == sorted(wanted)
    for number, columns in wanted.items():
        found = sorted(lists[number], key=lambda row: row["rank"])
        assert [row["rank"] for row in found] == list(range(len(columns)))
        tolerance = {"rtol": 1e-4, "atol": 2e-5}
        np.testing.assert_allclose([row["score"] for row in found], scores[number, columns], **tolerance)
        np.testing.assert_allclose([scores[number, row[to]] for row in found], scores[number, columns], **tolerance)
        assert len({row[to] for row in found}) == len(found)


def test_the_summary_says_what_was_asked_and_how_many_units_are_known(prepared: Place, report: RunReport) -> None:
    for row in prepared.rows(report, "descriptions"):
        features = row["unit_kind"] == "features"
        assert (row["model"], row["site"], row["tau"], row["concepts"]) == (MODEL, SITE, TAU, len(NAMES))
        assert (row["units"], row["units_dead"]) == ((LATENTS, len(DEAD)) if features else (WIDTH, 0))
        assert row["sae"] is None or (features and row["sae"].startswith("sae:"))
        assert row["images"] == IMAGES
        assert row["seed"] == (0 if row["method"] == "miclip" else None)
        assert (row["clip"] == CLIP) == (row["method"] in ("miclip", "clip_dissect"))
        assert row["units_described"] == row["units"] - (0 if row["method"] == "miclip" else row["units_dead"])


def test_dead_units_are_flagged_and_found_for_no_concept(prepared: Place, report: RunReport) -> None:
    rows = prepared.rows(report, "unit_concepts", unit_kind="features")
    assert {row["unit"] for row in rows if row["is_dead"]} == set(DEAD)
    assert not any(row["is_dead"] for row in rows if row["direction"] == "localise")
    assert {row["variant"] for row in rows if row["is_dead"]} == {"miclip in+out"}  # the others know nothing of them


# ---------------------------------------------------------------- how it is cut, and what is computed again


def plain(place: Place, report: RunReport, table: str) -> list[str]:
    return sorted(map(repr, place.rows(report, table)))


def test_shards_give_the_same_lists_as_the_whole(prepared: Place, report: RunReport) -> None:
    cut = Place(prepared.folder / "cut")
    again = cut.run(**ALL, shard_rows=32)
    assert again.exit_code == 0, again.failures
    assert cut.lake.count("shard_done", "describe") > prepared.lake.count("shard_done", "describe")
    assert plain(cut, again, "unit_concepts") == plain(prepared, report, "unit_concepts")
    assert plain(cut, again, "descriptions") == plain(prepared, report, "descriptions")


def test_tokens_from_a_forward_pass_give_the_same_table_as_stored_ones(prepared: Place, report: RunReport) -> None:
    live = Place(prepared.folder / "live")
    acts = {"outputs": ["embeddings"], "sites": []}
    spec = live.spec({"acts", "sae"}, acts, methods=["act_values"], units=["features"])
    again = live.lake.run(spec)
    assert again.exit_code == 0 and live.lake.count("shard_done", "describe") == 2, again.failures
    found = live.rows(again, "unit_concepts")
    wanted = prepared.rows(report, "unit_concepts", unit_kind="features", variant="act_values")
    assert sorted(map(repr, found)) == sorted(map(repr, wanted)) and len(found)


def test_a_rerun_computes_nothing_and_what_is_new_alone_is_computed(prepared: Place, report: RunReport) -> None:
    assert prepared.run(**ALL).exit_code == 0 and prepared.lake.count("shard_done") == 0
    fewer = {**ALL, "methods": ["act_values", "miclip"]}
    assert prepared.run(**fewer).exit_code == 0 and prepared.lake.count("shard_done") == 0
    assert prepared.run(**ALL, min_positives=12).exit_code == 0  # auroc of both kinds of units, two rounds each
    assert prepared.lake.count("shard_done") == 2 and prepared.lake.count("published") == 2
    more = prepared.run(methods=["miclip"], concepts=["red", "circle", "zebra"], tau=2)
    assert more.exit_code == 0 and prepared.lake.count("shard_done", "align") == 0
    assert prepared.lake.count("shard_done", "extract") == 1  # the new texts


def test_longer_lists_begin_with_the_shorter_ones(prepared: Place, report: RunReport) -> None:
    longer = prepared.run(methods=METHODS, tau=TAU + 2)
    assert longer.exit_code == 0, longer.failures
    kept = ("unit_kind", "variant", "direction", "unit", "concept_id", "rank", "score", "is_dead")
    short = {tuple(row[k] for k in kept) for row in prepared.rows(report, "unit_concepts")}
    variants = {row["variant"] for row in prepared.rows(longer, "unit_concepts")}
    begin = {tuple(row[k] for k in kept) for row in prepared.rows(longer, "unit_concepts") if row["rank"] < TAU}
    assert begin == {row for row in short if row[1] in variants} and len(begin)


# ---------------------------------------------------------------- other choices


def test_features_may_be_embedded_where_they_are_on_average(prepared: Place, report: RunReport) -> None:
    other = prepared.run(methods=["miclip"], units=["features"], unit_mode="decoded_mean")
    assert other.exit_code == 0, other.failures
    (summary,) = prepared.rows(other, "descriptions")
    assert (summary["unit_mode"], summary["variant"]) == ("decoded_mean", "miclip in+out decoded_mean")
    assert summary["units_described"] == LATENTS - len(DEAD) == summary["units"] - summary["units_dead"]
    sae, encoder = prepared.sae(report), prepared.encoder(report)
    rows = sorted(prepared.rows(report, "activations"), key=lambda row: (row["image_index"], row["token"]))
    codes = sae.encode(torch.tensor([row["act"] for row in rows])).dense().double()
    mean = codes.sum(0) / (codes != 0).sum(0)
    vectors = (mean[:, None] * sae.W_dec + sae.b_dec) @ encoder.W.T.double()
    scores = (normalize(vectors, dim=1) @ texts().double().T).numpy()
    check_direction(prepared.rows(other, "unit_concepts"), scores, "describe", "unit", "concept_id")


def test_predicted_classes_may_be_the_labels(prepared: Place, report: RunReport) -> None:
    fields: dict[str, Any] = {"concepts": "classes", "labels_from": "predicted", "tau": 1, "units": ["neurons"]}
    other = prepared.run(methods=["act_values"], **fields)
    assert other.exit_code == 0, other.failures
    first = {row["image_index"]: row for row in prepared.rows(report, "predictions") if row["rank"] == 0}
    t = prepared.pooled(report, "neurons").double()
    located = {r["concept"]: r for r in prepared.rows(other, "unit_concepts", direction="localise")}
    assert set(located) == {row["class_name"] for row in first.values()}
    for name, row in located.items():
        mean = t[[i for i in range(IMAGES) if first[i]["class_name"] == name]].mean(0)
        assert row["score"] == pytest.approx(float(mean.max()), rel=1e-5)


def test_a_file_lists_concepts_and_its_content_is_what_counts(
    prepared: Place, report: RunReport, tmp_path: Path
) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("red\nring\n  a large star \n")
    other.write_bytes(b"\xef\xbb\xbfred\nring\na large star")
    first = prepared.run(methods=["miclip"], concepts=f"file:{one}", tau=2)
    assert first.exit_code == 0, first.failures
    assert {r["concept"] for r in prepared.rows(first, "unit_concepts")} == {"red", "ring", "a large star"}
    assert prepared.run(methods=["miclip"], concepts=f"file:{other}", tau=2).exit_code == 0
    assert prepared.lake.count("shard_done") == 0


def test_classes_are_those_that_the_encoder_was_trained_towards_if_no_predictions_are_read(
    prepared: Place, report: RunReport
) -> None:
    spec = prepared.spec({"acts", "align", "sae"}, methods=["miclip"], concepts="classes", units=["neurons"])
    names = spec.stages["names"].model_copy(update={"reads": ("align",)})
    found = prepared.lake.run(spec.model_copy(update={"stages": {**spec.stages, "names": names}}))
    assert found.exit_code == 0, found.failures
    (summary,) = prepared.rows(found, "descriptions")
    assert summary["concepts"] == 8 and summary["concepts_located"] == 8
