"""What is scored on what, which stages are looked at together, what decides a digest, and what is refused at planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.explained import Variant
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, ImageFacts, Known
from jobs.score_explanations.cost import (
    ID_BYTES,
    LABEL_TOKENS,
    MASK_BYTES,
    MASKS_KEPT,
    ROW_BYTES,
    TEXT_BYTES,
    USUAL_IMAGES,
)
from jobs.score_explanations.plan import estimate, make_plans
from schemas.cells import Images
from schemas.errors import BadSpec, NotInspected
from schemas.explain_specs import ScoreExplanationsSpec
from schemas.plans import Plan, Round, StageSpec
from tests.jobs.sae_features.lake_of_saes import MODEL
from tests.jobs.score_explanations.lake_of_texts import CLIP, INFORMED, STEERING, TOPK, VLM, facts

SITE, SAE, OTHER_SAE = "resid_post.3@patch", "5ae" + "0" * 17, "5ae" + "1" * 17
WORLD = Images(ref="world:seed=1,n=48")
ALL = (TOPK, STEERING, INFORMED)


def forward(index: str, rows: int = 48) -> dict[str, Any]:
    params = {
        "rows": rows, "orientation": "upright", "dtype": "fp32", "geometry": "model", "on_nonfinite": "stop",
        "on_changed": "stop",
    }  # fmt: skip
    effort = {"batch_size": 32, "index": index, "files": "f", "revision": None}
    return {"model": MODEL, "inputs": {"model": "m", "images": index}, "params": params, "effort": effort}


def features(index: str = "d-test", sae: str = SAE, **params: Any) -> Plan:
    usual = {
        "site": SITE, "round_to": "fp32", "rows": 48, "tables": ["features", "selectivity", "top_images"], "top_k": 5,
        "grid": [8, 8], "first_patch": 0, "positions": 64, "whole_view": True,
    }  # fmt: skip
    stage = StageSpec(
        kind="sae_features", method=1, subject=MODEL, output="features", params={**usual, **params},
        inputs={"sae": sae, "activations": "a", "labels": index},
    )  # fmt: skip
    rounds = (Round(name="map", rows=48, shard_rows=48),)
    effort: dict[str, Any] = {"forward": forward(index), "source": "live", "index": index}
    return Plan(stage=stage, rounds=rounds, worker="made up", effort=effort)


def texts(variant: Variant, index: str = "d-eval", sae: str = SAE, rows: int = 100, **params: Any) -> Plan:
    stage = StageSpec(
        kind="explain", method=1, subject=MODEL, output="explanations",
        params={"site": SITE, **variant._asdict(), "features": [], "most": None, **params},
        inputs={"sae": sae, "features": "shown", "index": index},
    )  # fmt: skip
    rounds = (Round(name="explain", rows=rows, shard_rows=8),)
    return Plan(stage=stage, rounds=rounds, worker="made up", effort={"forward": forward(index, 40)})


def known(*models: str, images: Images = WORLD, files: Mapping[str, str] = {}) -> Known:
    there = {images.key: ImageFacts("d-test", "c", 48, 48)}
    return Known(
        {model: facts(model) for model in (MODEL, CLIP, *models)}, there, {"/seg": "s" * 64, "/mk": "m" * 64, **files}
    )


def plans(*read: Plan, known_facts: Known | None = None, clip: str | None = CLIP, **spec: Any) -> tuple[Plan, ...]:
    reads = {f"stage{n}": (plan,) for n, plan in enumerate(read)}
    names = [*reads, *(["none"] * (2 - len(reads)))]
    made = ScoreExplanationsSpec.model_validate({"kind": "score_explanations", "reads": names, **spec}, strict=False)
    cell = Cell("judge", made, MODEL, clip=clip if made.needs_clip else None, reads=reads)
    return make_plans(cell, known_facts or known())


def usual(**spec: Any) -> tuple[Plan, ...]:
    return plans(*map(texts, ALL), features(), **spec)


def of(found: Sequence[Plan], output: str) -> list[Plan]:
    return [plan for plan in found if plan.stage.output == output]


def test_there_is_a_stage_per_measure_and_way_to_explain_whose_features_are_looked_at_together() -> None:
    found = usual(shard_features=64)
    assert [plan.stage.output for plan in found] == [
        *(["iou"] * 3), *(["clip"] * 3), *(["synthetic"] * 3), *(["naming"] * 3), "random", "summary",
    ]  # fmt: skip
    for output in ("iou", "clip", "synthetic", "naming"):
        some = of(found, output)
        assert len({plan.worker for plan in some}) == 1 and all(plan.effort == some[0].effort for plan in some)
        assert {Variant(*(str(p.stage.params[n]) for n in Variant._fields)) for p in some} == set(ALL)
        assert all((r.name, r.rows, r.n_shards) == (output, 100, 2) for plan in some for r in plan.rounds)
    assert len({plan.digest for plan in found}) == len(found)
    (summary,) = of(found, "summary")
    inputs = set(summary.stage.inputs.values())
    assert {plan.digest for plan in found} - {summary.digest} <= inputs and features().digest in inputs


def test_what_is_read_first_does_not_matter() -> None:
    other = plans(features(), *map(texts, reversed(ALL)))
    assert {plan.digest for plan in other} == {plan.digest for plan in usual()}


def test_one_way_to_explain_more_changes_no_measure_of_the_others() -> None:
    fewer = {plan.digest for plan in plans(texts(TOPK), texts(STEERING), features())}
    more = usual()
    redone = fewer - {plan.digest for plan in more}
    assert [plan.stage.output for plan in plans(texts(TOPK), texts(STEERING), features()) if plan.digest in redone] == [
        "summary"
    ]
    assert len({plan.worker for plan in of(more, "iou")}) == 1


@pytest.mark.parametrize("other", [{"most": 50}, {"features": [3]}, {"index": "d-more"}])
def test_random_images_are_of_the_features_that_are_explained_and_of_none_that_was_shown(other: dict[str, Any]) -> None:
    (one,), (changed,) = (of(plans(texts(TOPK), texts(STEERING, **more), features()), "random") for more in ({}, other))
    assert one.digest != changed.digest and len(one.stage.inputs) < len(changed.stage.inputs)


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ({"batch_size": 7}, set()),
        ({"shard_features": 3}, set()),
        ({"masks_scored": "first"}, {"iou", "summary"}),
        ({"segmenter": "file:/seg"}, {"iou", "summary"}),
        ({"top": 2}, {"iou", "clip", "summary"}),
        ({"clip_view": "whole"}, {"clip", "summary"}),
        ({"maker_images": 2}, {"synthetic", "random", "summary"}),
        ({"maker": "file:/mk"}, {"synthetic", "summary"}),
        ({"maker_steps": 3}, set()),
        ({"maker": "file:/mk", "maker_steps": 3}, {"synthetic", "summary"}),
        ({"seed": 1}, {"synthetic", "random", "summary"}),
        ({"least_auroc": 0.9}, {"naming", "summary"}),
        ({"min_iou": 0.1}, {"summary"}),
        ({"scored": "all"}, {"summary"}),
        ({"labels": "world"}, {"summary"}),
        ({"activation": "max"}, {"summary"}),
    ],
)
def test_a_setting_changes_the_stages_that_it_decides(setting: dict[str, Any], changed: set[str]) -> None:
    before = {plan.digest for plan in usual()}
    assert {plan.stage.output for plan in usual(**setting) if plan.digest not in before} == changed


def test_a_folder_counts_by_its_content_and_not_by_its_place() -> None:
    moved = Known({m: facts(m) for m in (MODEL, CLIP)}, {}, {"/elsewhere": "s" * 64})
    one, other = usual(segmenter="file:/seg"), usual(segmenter="file:/elsewhere", known_facts=moved)
    assert [plan.digest for plan in of(one, "iou")] == [plan.digest for plan in of(other, "iou")]
    assert of(other, "iou")[0].effort["folder"] == "/elsewhere"


def test_every_sae_is_scored_on_its_own_features_and_every_model_that_wrote_is_summarised_alone() -> None:
    more = TOPK._replace(vlm="demo:other")
    found = plans(
        texts(TOPK), texts(more), texts(TOPK, sae=OTHER_SAE), features(), features(sae=OTHER_SAE), metrics=["iou"]
    )
    iou, summaries = of(found, "iou"), of(found, "summary")
    assert len(iou) == 3 and {p.stage.inputs["features"] for p in iou} == {
        features().digest,
        features(sae=OTHER_SAE).digest,
    }
    assert sorted((p.stage.inputs["sae"], str(p.stage.params["vlm"])) for p in summaries) == [
        (SAE, VLM), (SAE, "demo:other"), (OTHER_SAE, VLM),
    ]  # fmt: skip
    assert not of(found, "random")


def test_measures_without_a_clip_need_none() -> None:
    sentences = known(files={"/sentences": "t" * 64})
    found = plans(
        texts(TOPK), features(), clip=None, known_facts=sentences, metrics=["iou"], sentences="file:/sentences"
    )
    assert [plan.stage.output for plan in found] == ["iou", "summary"]
    assert "clip" not in {**found[0].stage.inputs, **found[1].stage.inputs}


def test_a_clip_has_a_text_tower() -> None:
    with pytest.raises(BadSpec, match="clip"):
        plans(texts(TOPK), features(), clip=MODEL.replace("clip-p8", "vit-dense"), known_facts=known("demo:vit-dense"))


@pytest.mark.parametrize(
    ("read", "spec", "said"),
    [
        ([features()], {}, r"stages\.judge\.reads: no texts about features of demo:clip-p8; expected an explain stage"),
        ([texts(TOPK)], {}, "found 0 sae_features stages of sae:5ae0"),
        ([texts(TOPK), features(), features(top_k=9)], {}, "found 2 sae_features stages of sae:5ae0"),
        ([texts(TOPK), features(sae=OTHER_SAE)], {}, "found 0 sae_features stages of sae:5ae0"),
        ([texts(TOPK, index="d-test"), features()], {}, "stage1 is over the very images from which topk masks sae was made"),
        ([texts(TOPK), texts(TOPK, k=3), features()], {}, "topk masks sae explains .* twice, with different k "),
        ([texts(TOPK), features(tables=["features"])], {}, "stage1 has no table top_images, which clip, iou asks for"),
        ([texts(TOPK), features(tables=["top_images"])], {}, "stage1 has no table selectivity, which naming asks for"),
        ([texts(TOPK), features(grid=None)], {}, r"stages\.judge\.metrics: .* no place in an image; leave out clip, iou"),
        ([texts(TOPK), features()], {"top": 6}, r"stages\.judge\.top: 6 images per feature, but stage1 has 5"),
        ([texts(TOPK), features(whole_view=False)], {}, "truth is of whole images, and demo:clip-p8 sees a part of each"),
        ([texts(TOPK), features()], {"labels": "vlm:demo:clip-p8"}, r"stages\.judge\.labels: demo:clip-p8 writes no text"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(read: list[Plan], spec: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        plans(*read, **spec)


@pytest.mark.parametrize(
    ("field", "metric", "file", "other"),
    [("segmenter", "iou", "config.json", '{"model_type": "llava"}'), ("maker", "synthetic", "model_index.json", "{}")],
)
def test_a_folder_of_no_such_model_is_refused_by_the_measure_that_asks_it(
    field: str, metric: str, file: str, other: str, tmp_path: Path
) -> None:
    folder = {"known_facts": known(files={str(tmp_path): "5" * 64}), field: f"file:{tmp_path}"}
    read = [texts(TOPK), features()]
    with pytest.raises(BadSpec, match=rf"stages\.judge\.{field}: {tmp_path}: found nothing in it; expected the folder"):
        plans(*read, metrics=[metric], **folder)
    (tmp_path / file).write_text(other)
    with pytest.raises(BadSpec, match=rf"stages\.judge\.{field}: {tmp_path}: found .* in {file}; expected the folder"):
        plans(*read, metrics=[metric], **folder)
    assert plans(*read, metrics=["naming"], **folder)  # which asks neither


def test_an_empty_folder_compares_no_texts(tmp_path: Path) -> None:
    empty = known(files={str(tmp_path): "5" * 64})
    with pytest.raises(BadSpec, match=rf"stages\.judge\.sentences: {tmp_path}: found nothing in it"):
        plans(texts(TOPK), features(), known_facts=empty, metrics=["iou"], sentences=f"file:{tmp_path}")


AUTO = STEERING._replace(alpha_asked="auto")


def chosen(rows: int, validation: int, features: Sequence[int] = ()) -> Plan:
    plan = texts(AUTO, rows=rows, validation=validation, features=[*features])
    stage = plan.stage.model_copy(update={"inputs": {**plan.stage.inputs, "alphas": "a"}})
    return plan.model_copy(update={"stage": stage})


@pytest.mark.parametrize("explained", [chosen(100, 100), chosen(100, 500), chosen(2, 10, features=(3, 9))])
def test_features_must_be_left_beside_those_that_an_alpha_is_chosen_on(explained: Plan) -> None:
    said = (
        "leaves out the first .* on which the alpha of steering sae all alpha auto x p90 is chosen.*smaller validation"
    )
    with pytest.raises(BadSpec, match=rf"stages\.judge\.scored: test {said}"):
        plans(explained, features(), metrics=["iou"])
    assert plans(explained, features(), metrics=["iou"], scored="all")


@pytest.mark.parametrize("explained", [chosen(101, 100), chosen(2, 10, features=(3, 10))])
def test_one_feature_beside_them_is_enough(explained: Plan) -> None:
    assert plans(explained, features(), metrics=["iou"])


def test_as_many_features_validate_as_the_choice_of_the_alpha_has_planned() -> None:
    explained = chosen(60, 500)
    choice = texts(AUTO, rows=50).model_copy(update={"rounds": (Round(name="try", rows=50, shard_rows=8),)})
    choice = choice.model_copy(update={"stage": choice.stage.model_copy(update={"output": "alphas"})})
    stage = explained.stage.model_copy(update={"inputs": {**explained.stage.inputs, "alphas": choice.digest}})
    assert plans(choice, explained.model_copy(update={"stage": stage}), features(), metrics=["iou"])


def test_the_truth_is_of_the_demo_world_alone() -> None:
    photos = known(images=Images(ref="folder:/photos"))
    with pytest.raises(BadSpec, match=r"truth knows the images of .* alone, found folder:/photos"):
        usual(known_facts=photos)
    assert of(usual(known_facts=photos, segmenter="file:/seg"), "iou")


def test_models_must_be_inspected_first() -> None:
    with pytest.raises(NotInspected, match="demo:clip-p8-b is not inspected"):
        usual(known_facts=Known({MODEL: facts(MODEL)}, {}))


def test_estimates_count_images_by_the_features_that_may_be_there() -> None:
    found = usual(top=3, maker_images=4)
    sizes = {plan.stage.output: estimate(plan, known()) for plan in found}
    assert sizes["iou"].images == sizes["clip"].images == 300
    assert sizes["synthetic"].images == sizes["random"].images == 400
    assert sizes["clip"].shared_flops == 300 * facts(CLIP).flops and sizes["random"].flops == 400 * facts(MODEL).flops
    assert all(size.worker_memory > 0 for size in sizes.values())


def test_labels_cost_two_questions_about_every_text() -> None:
    asked = known(VLM)
    (summary,) = of(usual(labels=f"vlm:{VLM}", dtype="bf16", known_facts=asked), "summary")
    language = facts(VLM).language
    assert language is not None and [r.name for r in summary.rounds] == ["label", "summarise"]
    cost = estimate(summary, asked)
    assert cost.flops == 2 * 2 * language.params * LABEL_TOKENS * 100 * len(ALL)
    (alone,) = of(usual(known_facts=asked), "summary")
    assert cost.worker_memory - estimate(alone, asked).worker_memory == 2 * (language.params + facts(VLM).params)


def test_estimates_hold_what_grows_with_images_and_texts() -> None:
    """Ids of all images that are compared, masks that are remembered, and all texts of a summary at once."""
    sizes = {plan.stage.output: estimate(plan, known()).worker_memory - LIBRARY_BYTES for plan in usual()}
    (iou, *_) = of(usual(), "iou")
    rows: Any = iou.stage.params
    ids = ID_BYTES * (rows["rows"] + rows["shown_rows"][0])
    assert sizes["iou"] == ids + MASKS_KEPT * MASK_BYTES and sizes["naming"] == ids > 0
    assert sizes["random"] - 4 * facts(MODEL).params >= ids
    held = 100 * (len(ALL) * TEXT_BYTES + USUAL_IMAGES * ROW_BYTES)
    assert sizes["summary"] == held + 4 * facts(CLIP).params
