"""What cannot be described is refused with what was found and what to change; images without an embedding are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.describe.plan import estimate
from jobs.describe.sizes import TOP_K, Sizes, method_bytes
from jobs.protocol import Part
from miclip_core.concepts.memory import scoring_bytes
from miclip_core.dissect.clip_dissect import SIMILARITIES, clip_dissect
from miclip_core.dissect.wpmi import SOFT_WPMI, WPMI
from schemas.errors import BadLabels, BadSae, BadSpec, TooFewImages, UsageError
from schemas.plans import Shard
from tests.jobs.describe.place import IMAGES, LATENTS, SITE, Hidden, Place, best, by_hand
from tests.jobs.describe.test_describe import ALL, check_direction, texts

HIDDEN = (3, 77)


# ---------------------------------------------------------------- at planning


@pytest.mark.parametrize(
    ("reads", "fields", "said"),
    [
        ({"acts", "sae"}, {"methods": ["miclip"]}, "miclip needs neuron encoders of demo:clip-p8; add an align stage"),
        ({"align"}, {"methods": ["act_values"]}, "act_values looks at activations .*add an extract stage"),
        ({"acts", "align"}, {"units": ["features"]}, "no SAE of demo:clip-p8 is read"),
        ({"acts", "align"}, {"clip": "demo:clip-p8"}, "in the space of demo:clip-p8, but encoders .* of demo:clip-rn"),
        ({"acts"}, {"methods": ["act_values"], "tau": 97}, "97 is more than the 96 units of resid_post.3@patch"),
        ({"acts"}, {"methods": ["act_values"], "sites": ["resid_post.1@patch"]}, "not among the stored activations"),
        ({"align"}, {"sites": ["resid_post.1@patch"]}, "resid_post.1@patch: not among the encoders of demo:clip-p8 that are read; there are resid_post.3@patch"),
        ({"sae"}, {"methods": ["auroc"], "units": ["features"]}, "no images to see the features of sae:"),
        ({"align"}, {"methods": ["auroc"], "labels_from": "predicted", "units": ["features"]}, "no SAE"),
        ({"acts"}, {"methods": ["auroc"], "concepts": "world:smell"}, "found category 'smell', expected one of shape"),
    ],
)  # fmt: skip
def test_what_has_no_units_or_lacks_what_it_needs_is_refused(
    prepared: Place, report: RunReport, reads: set[str], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(prepared.spec(reads, **{"methods": ["miclip"], **fields}), prepared.lake.store)


def test_labels_by_prediction_need_predictions(prepared: Place, report: RunReport) -> None:
    acts = {"outputs": ["activations"]}
    spec = prepared.spec({"acts"}, acts, methods=["auroc"], labels_from=["predicted"], units=["neurons"])
    with pytest.raises(BadSpec, match="labels_from holds predicted, but 0 stages of predictions"):
        plan_pipeline(spec, prepared.lake.store)
    with pytest.raises(BadSpec, match="concepts are classes, but demo:clip-p8 has no head and no predictions are read"):
        spec = prepared.spec({"acts"}, acts, methods=["auroc"], concepts="classes", units=["neurons"])
        plan_pipeline(spec, prepared.lake.store)


def test_two_encoders_that_tables_could_not_tell_apart_are_refused(prepared: Place, report: RunReport) -> None:
    spec = prepared.spec({"acts", "align"}, methods=["miclip"])
    other = spec.stages["align"].model_copy(update={"epochs": 2})
    names = spec.stages["names"].model_copy(update={"reads": ("acts", "align", "other")})
    with pytest.raises(
        BadSpec,
        match=r"align:\w+ at resid_post.3@patch and align:\w+ at resid_post.3@patch are both miclip in\+out of seed 0",
    ):
        stages = {**spec.stages, "other": other, "names": names}
        plan_pipeline(spec.model_copy(update={"stages": stages}), prepared.lake.store)


def test_features_go_through_the_encoder_of_their_own_positions_if_there_is_one(
    prepared: Place, report: RunReport
) -> None:
    """One of the class token serves them only where none of the patches does; two such could not be told apart."""
    spec = prepared.spec({"acts", "align", "sae"}, methods=["miclip"], units=["features"])
    acts = spec.stages["acts"].model_copy(
        update={"sites": ("resid_post.3@patch", "resid_post.3@cls", "resid_post.3@all")}
    )

    def sites(*chosen: str) -> list[str]:
        align = spec.stages["align"].model_copy(update={"sites": chosen})
        changed = spec.model_copy(update={"stages": {**spec.stages, "acts": acts, "align": align}})
        plans = {plan.digest: plan for _, plan, _ in plan_pipeline(changed, prepared.lake.store).plans()}
        read = [plan.stage.inputs["encoder"] for plan in plans.values() if plan.stage.kind == "describe"]
        return [str(plans[digest].stage.params["site"]) for digest in read]

    assert sites("resid_post.3@cls", "resid_post.3@patch") == ["resid_post.3@patch"]
    assert sites("resid_post.3@cls") == ["resid_post.3@cls"]
    with pytest.raises(BadSpec, match=r"at resid_post.3@cls and align:\w+ at resid_post.3@all are both miclip in\+out"):
        sites("resid_post.3@cls", "resid_post.3@all")


def test_an_sae_and_an_encoder_of_different_sites_are_both_named(prepared: Place, report: RunReport) -> None:
    spec = prepared.spec({"acts", "align", "sae"}, methods=["miclip"])
    stages = dict(spec.stages)
    stages["acts"] = stages["acts"].model_copy(update={"sites": ("resid_post.2@patch",)})
    with pytest.raises(
        BadSpec,
        match=r"features of sae:\w+ are at resid_post.3@patch:sample\(8,0\), but encoders only at resid_post.2@patch",
    ):
        plan_pipeline(spec.model_copy(update={"stages": stages}), prepared.lake.store)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"red\nring\nred\n ring\n",
            r"stages.names: concepts file:.*: 'red' \(lines 1, 3\), 'ring' \(lines 2, 4\) are there",
        ),
        (b"red\n\nring\n  \n", "lines 2, 4 of 4 are empty"),
        (b"", "found no concept"),
        (b"caf\xe9\n", "not UTF-8 text"),
    ],
)
def test_lists_of_concepts_name_what_is_wrong_with_them(
    prepared: Place, report: RunReport, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(BadSpec, match=said):
        plan_pipeline(
            prepared.spec({"acts"}, concepts=f"file:{tmp_path}/names.txt", methods=["auroc"]), prepared.lake.store
        )


def test_a_list_of_concepts_that_is_not_there_is_refused(prepared: Place, report: RunReport, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing.txt"):
        with pytest.raises(UsageError, match=f"concepts file:{place}: expected a file with one name per line"):
            plan_pipeline(prepared.spec({"acts"}, concepts=f"file:{place}", methods=["auroc"]), prepared.lake.store)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"unit_mode": "decoded"}, "take direction or decoded_mean"),
        ({"concepts": ["red", "ring", "red "]}, "red is there twice"),
        ({"concepts": ["red", " "]}, "some of them empty"),
    ],
)
def test_what_a_spec_cannot_mean_is_refused_when_it_is_read(prepared: Place, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepared.spec({"acts", "align"}, methods=["miclip"], **fields)


# ---------------------------------------------------------------- at work


def test_a_tau_above_the_living_units_is_refused(prepared: Place, report: RunReport) -> None:
    failed = prepared.run(methods=["miclip", "act_values"], units=["features"], tau=LATENTS - 1)
    assert failed.exit_code == 1 and len(failed.failures) == 2
    assert all("BadSpec" in said and "46" in said and "47" in said and "lower tau" in said for said in failed.failures)


def test_concepts_that_no_label_names_and_columns_that_are_not_there_are_refused(
    prepared: Place, report: RunReport
) -> None:
    (plan,) = prepared.plans({"acts"}, methods=["act_values"], concepts=["mammal", "tool"])
    with pytest.raises(
        BadLabels, match=r"any of the concepts mammal, tool: label is blue circle, .*; give concepts that labels name"
    ):
        by_hand([plan], Hidden(prepared))
    (plan,) = prepared.plans({"acts"}, methods=["auroc"], labels_from="smell")
    with pytest.raises(
        BadLabels, match=r"smell: not known of these images .*columns with at least two values are label, background"
    ):
        by_hand([plan], Hidden(prepared))
    (plan,) = prepared.plans({"acts"}, methods=["auroc"], labels_from=["shape", "word"], concepts=["ring", "star"])
    with pytest.raises(
        BadSpec, match=r"concept 'ring' is a value of shape and of word.*labels_from says which columns count"
    ):
        by_hand([plan], Hidden(prepared))


@pytest.mark.parametrize(("similarity", "least"), [("soft_wpmi", 100), ("wpmi", 28), ("rank_reorder", 40), ("cos", 1)])
def test_fewer_images_than_a_similarity_needs_are_refused(
    prepared: Place, report: RunReport, similarity: str, least: int
) -> None:
    (plan,) = prepared.plans({"acts"}, methods=["clip_dissect"], similarity=similarity)
    with pytest.raises(TooFewImages):
        by_hand([plan], Hidden(prepared, range(least - 1, IMAGES)))
    assert by_hand([plan], Hidden(prepared, range(least, IMAGES)))


def test_an_sae_of_another_width_is_refused(prepared: Place, report: RunReport) -> None:
    (plan,) = prepared.plans({"acts", "sae"}, methods=["act_values"], units=["features"])
    other = plan.model_copy(update={"effort": {**plan.effort, "width": 95}})
    with pytest.raises(BadSae, match=r"encodes 96 channels, but resid_post.3@patch has 95"):
        by_hand([other], Hidden(prepared))


# ---------------------------------------------------------------- any order, any images


def backwards(shards: list[Shard]) -> list[Shard]:
    return shards[::-1]


def rows_of(parts: list[Part], table: str) -> list[str]:
    return sorted(repr(row) for part in parts if part.table == table for row in part.batch.to_pylist())


@pytest.mark.parametrize(("shard_rows", "order"), [(32, backwards), (64, list)])
def test_shards_of_any_size_in_any_order_give_the_published_lists(
    prepared: Place, report: RunReport, shard_rows: int, order: Callable[[list[Shard]], list[Shard]]
) -> None:
    plans = prepared.plans(**ALL, shard_rows=shard_rows)
    assert all(
        (plan.worker, plan.effort) == (plans[0].worker, plans[0].effort) for plan in plans
    )  # one pass over the images
    rows = rows_of(by_hand(plans, Hidden(prepared), order), "unit_concepts")
    assert rows == sorted(repr(row) for row in prepared.rows(report, "unit_concepts"))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_images_without_an_embedding_are_left_out(prepared: Place, report: RunReport, similarity: Any) -> None:
    (plan,) = prepared.plans({"acts"}, methods=["clip_dissect"], similarity=similarity, shard_rows=32)
    parts = by_hand([plan], Hidden(prepared, HIDDEN))
    kept = [i for i in range(IMAGES) if i not in HIDDEN]
    t, x = prepared.pooled(report, "neurons")[kept], prepared.embeddings(report)[kept]
    scores = clip_dissect(similarity, t, x, texts()).numpy()
    rows = [row for part in parts if part.table == "unit_concepts" for row in part.batch.to_pylist()]
    check_direction(rows, scores, "describe", "unit", "concept_id")
    ((summary,),) = [part.batch.to_pylist() for part in parts if part.table == "descriptions"]
    assert summary["images"] == len(kept)


# ---------------------------------------------------------------- what planning says


def test_planning_says_how_much_is_looked_at_and_what_memory_that_takes(prepared: Place, report: RunReport) -> None:
    known = plan_pipeline(prepared.spec({"acts", "sae", "align"}, **ALL), prepared.lake.store).known
    for plan in prepared.plans(**ALL):
        found = estimate(plan, known)
        assert found.images == IMAGES and found.memory > 0 and found.worker_memory > 400 << 20
        stored = plan.effort["tokens"]["stored"]  # type: ignore[call-overload,index]
        assert (found.shared_flops == IMAGES * known.models["demo:clip-p8"].flops) == (not stored)
        assert plan.stage.params["site"] == SITE


@pytest.mark.parametrize("method", ["miclip", "act_values", "auroc", *SIMILARITIES, "v_interp"])
def test_memory_never_grows_with_units_times_concepts(method: str) -> None:
    """100,000 units and 20,000 concepts: all scores at once would be 8 GB; only what masks know is a table of both."""
    similarity = method if method in SIMILARITIES else None
    large = Sizes(100_000, 1024, 197, 768, 100_000, 20_000, 512, 5)
    assert sum(method_bytes((similarity and "clip_dissect") or method, similarity, large)) < 4 << 30
    if method == "miclip":
        assert method_bytes("miclip", None, large)[1] > scoring_bytes(100_000, 20_000, 512, 5)


def test_memory_is_planned_for_as_many_images_of_a_unit_as_are_kept() -> None:
    assert {"wpmi": WPMI.top_k, "soft_wpmi": SOFT_WPMI.top_k} == TOP_K


def test_the_ways_of_ranking_by_hand_rank_as_people_do() -> None:
    assert best(np.array([[0.5, np.nan, 0.7, 0.5]]), 3) == {0: [2, 0, 3]}
