"""What cannot be judged is refused at planning, with what was found and what to change; and where sentences come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.cells import find_needs
from cluster.stores.base import Store, make_store
from jobs.evaluate.plan import estimate, make_plans
from jobs.files import hash_tree
from jobs.protocol import Cell
from schemas.errors import BadSpec, NotInspected
from schemas.evaluate_specs import EvaluateSpec
from schemas.pipeline_spec import PipelineSpec
from tests.jobs.evaluate.made_up import (
    ALL_WRONG,
    CLIP,
    MODEL,
    TRUTH,
    effects_stage,
    known,
    plan,
    publish_effects,
    publish_names,
    publish_truth,
)
from tests.made_up_descriptions import rows_of, run_plans
from tests.miclip_core.evaluate.tiny_sentences import make_sentence_encoder

OURS = "miclip in+out"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def test_without_a_truth_the_error_says_what_to_add(store: Store) -> None:
    with pytest.raises(
        BadSpec, match=r"stages\.judge\.reads: truth is auroc, but no describe stage .* has it, .*add auroc"
    ):
        plan([publish_names(store, OURS, TRUTH)])


def test_truth_and_methods_of_other_units_are_both_named(store: Store) -> None:
    read = [publish_truth(store, site="resid_post.1@patch"), publish_names(store, OURS, TRUTH)]
    with pytest.raises(
        BadSpec,
        match=r"no units in common: .*neurons at resid_post.3@patch .*auroc knows neurons at resid_post.1@patch",
    ):
        plan(read)


def test_a_truth_alone_or_nothing_is_nothing_to_judge(store: Store) -> None:
    with pytest.raises(BadSpec, match=r"only method auroc, which is the truth of demo:clip-p8; expected .*miclip"):
        plan([publish_truth(store)])
    with pytest.raises(BadSpec, match="found no describe stage"):
        plan([])


def test_classes_need_a_head_and_units_of_it(store: Store) -> None:
    with pytest.raises(BadSpec, match="demo:clip-p8 has no head with named classes; use truth: auroc"):
        plan([publish_names(store, OURS, TRUTH)], truth="classes")
    model = "demo:resnet-sup"
    elsewhere = publish_names(store, OURS, TRUTH, model=model, site="pooled")
    with pytest.raises(BadSpec, match="neurons at pooled of demo:resnet-sup; expected neurons at logits"):
        plan([elsewhere], known({}, model), model, truth="classes")


def test_one_method_with_two_lists_of_concepts_is_refused_with_what_differs(store: Store) -> None:
    read = [publish_truth(store)]
    read += [publish_names(store, OURS, TRUTH, c, seed=2) for c in (sorted(set(TRUTH)), ["red", "green"])]
    with pytest.raises(
        BadSpec,
        match=r"miclip in\+out \(seed 2\) describes neurons at .* twice, with different concepts \(stages .* own evaluate",
    ):
        plan(read)
    effects = [publish_effects(store, effects_stage(OURS, tau=tau), {}) for tau in (1, 5)]
    with pytest.raises(BadSpec, match=r"miclip in\+out changes neurons at resid_post.3@all twice, with different tau"):
        plan(effects)


def test_two_truths_of_the_same_units_are_refused(store: Store) -> None:
    read = [publish_truth(store), publish_truth(store, pool="max"), publish_names(store, OURS, TRUTH)]
    with pytest.raises(BadSpec, match=r"auroc.* describes neurons at .* twice, with different pool"):
        plan(read)


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"tau": 5}, "tau"), ({"positions": "cls"}, "positions"), ({"labels_from": "kind"}, "labels_from")],
)
def test_changes_that_are_not_alike_are_not_compared(store: Store, fields: dict[str, object], what: str) -> None:
    read = [publish_effects(store, effects_stage("act_values", tau=1), {})]
    read += [publish_effects(store, effects_stage(OURS, **{"tau": 1, **fields}), {})]
    said = rf"change neurons at resid_post.3@all with different {what}, so their effects cannot be compared"
    with pytest.raises(BadSpec, match=said):
        plan(read)


def test_one_stage_read_twice_counts_once(store: Store) -> None:
    read = [publish_truth(store), publish_names(store, OURS, TRUTH), publish_names(store, "act_values", ALL_WRONG)]
    assert plan([*read, read[1]]).digest == plan(read).digest


def test_a_clip_without_texts_or_not_inspected_is_refused(store: Store) -> None:
    read = {"named": (publish_truth(store), publish_names(store, OURS, TRUTH))}
    spec = EvaluateSpec(reads=("named",))
    with pytest.raises(NotInspected, match="demo:clip-rn is not inspected"):
        make_plans(Cell("judge", spec, MODEL, clip="demo:clip-rn", reads=read), known())
    with pytest.raises(BadSpec, match=r"stages\.judge\.clip: demo:vit-dense has no text tower"):
        make_plans(Cell("judge", spec, MODEL, clip="demo:vit-dense", reads=read), known({}, "demo:vit-dense"))
    found = make_plans(Cell("judge", spec, MODEL, clip=CLIP, reads=read), known())[0]
    assert estimate(found, known()).worker_memory > 400 << 20


# ---------------------------------------------------------------- sentence encoders


def test_the_folder_of_a_sentence_encoder_is_hashed_before_planning() -> None:
    stages = {
        "named": {"kind": "describe", "reads": "acts", "methods": ["auroc"]},
        "acts": {"kind": "extract", "sites": ["resid_post.3@patch"]},
        "judge": {"kind": "evaluate", "reads": "named", "sentences": "file:/models/mpnet"},
    }
    data = {"kind": "pipeline", "name": "t", "clip": CLIP, "images": {"ref": "folder:/x"}, "matrix": {"model": [MODEL]}}
    assert find_needs(PipelineSpec.model_validate({**data, "stages": stages}, strict=False)).files == ("/models/mpnet",)


def folder_of(store: Store, tmp_path: Path) -> tuple[list[object], Path, dict[str, str]]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    read = [publish_truth(store), publish_names(store, OURS, TRUTH)]
    return read, folder, {str(folder): hash_tree(folder)}


def test_the_content_of_the_folder_names_the_stage_and_where_it_is_does_not(store: Store, tmp_path: Path) -> None:
    read, folder, files = folder_of(store, tmp_path)
    here = plan(read, known(files), sentences=f"file:{folder}")  # type: ignore[arg-type]
    there = plan(read, known({"/elsewhere": files[str(folder)]}), sentences="file:/elsewhere")  # type: ignore[arg-type]
    other = plan(read, known({"/elsewhere": "0" * 64}), sentences="file:/elsewhere")  # type: ignore[arg-type]
    assert here.digest == there.digest != other.digest


def test_without_the_package_or_with_changed_files_the_stage_fails_with_what_to_do(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, folder, files = folder_of(store, tmp_path)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # what an import of a missing package meets
    planned = plan(read, known(files), sentences=f"file:{folder}")  # type: ignore[arg-type]
    (outcome,) = run_plans(store, [planned]).board.failed.values()
    assert outcome.error == "MissingPackage" and "pip install 'miclip[sentences]'" in outcome.message
    (folder / "modules.json").write_text("[{}]")
    (outcome,) = run_plans(store, [planned]).board.failed.values()
    assert outcome.error == "WeightsMissing" and "its files changed since the run was planned" in outcome.message


def test_a_sentence_encoder_scores_beside_the_clip(store: Store, tmp_path: Path) -> None:
    folder = make_sentence_encoder(tmp_path)
    read = [publish_truth(store), publish_names(store, OURS, TRUTH), publish_names(store, "act_values", ALL_WRONG)]
    planned = plan(read, known({str(folder): hash_tree(folder)}), sentences=f"file:{folder}")
    assert not run_plans(store, [planned]).board.failed
    scores = {
        row["variant"]: row for row in rows_of(store, planned, "method_scores") if row["measure"] == "sentence_score"
    }
    assert scores[OURS]["value"] == pytest.approx(1, abs=1e-6) and scores["act_values"]["value"] < 0.999
    rows = rows_of(store, planned, "description_eval")
    assert all(row["sentence_score"] is not None for row in rows)
    assert {row["measure"] for row in rows_of(store, planned, "method_tests")} == {
        "accuracy", "clip_score", "sentence_score", "precision",
    }  # fmt: skip
