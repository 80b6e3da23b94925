"""Models that lie in folders: what they weigh in estimates, and the packages that open them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from jobs.protocol import Known, Setting
from jobs.score_explanations.plan import estimate
from jobs.score_explanations.work import open_worker
from schemas.errors import MissingPackage
from schemas.plans import Plan, Resources, Shard
from tests.jobs.score_explanations.lake_of_texts import TOPK, facts
from tests.jobs.score_explanations.test_plan import CLIP, features, known, of, plans, texts

FOLDERS = {"/seg": 1 << 20, "/mk": 1 << 30, "/sentences": 1 << 25}
SPEC = {"segmenter": "file:/seg", "maker": "file:/mk", "sentences": "file:/sentences"}


def made(**spec: Any) -> tuple[tuple[Plan, ...], Known]:
    there = replace(known(files={"/sentences": "t" * 64}), weights=FOLDERS)
    return plans(texts(TOPK), features(), known_facts=there, **spec), there


@pytest.mark.parametrize(
    ("output", "more"),
    [
        ("iou", FOLDERS["/seg"]),
        ("synthetic", FOLDERS["/mk"]),
        ("summary", FOLDERS["/sentences"] - 4 * facts(CLIP).params),
        ("random", 0),
        ("naming", 0),
    ],
)
def test_a_model_in_a_folder_takes_what_its_weights_do(output: str, more: int) -> None:
    built_in, with_folders = (
        estimate(of(found, output)[0], there).worker_memory for found, there in (made(), made(**SPEC))
    )
    assert with_folders - built_in == more


NEEDED = [("synthetic", "diffusers", "diffusion"), ("summary", "sentence_transformers", "sentences")]


@pytest.mark.parametrize(("output", "module", "extra"), NEEDED)
def test_a_missing_package_is_a_note_of_the_plan_and_an_error_before_any_work(
    output: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a missing package meets
    found, there = made(**SPEC)
    notes = {plan.stage.output: estimate(plan, there).note for plan in found}
    said = f"pip install 'miclip[{extra}]'"
    assert said in notes[output] and all(said not in note for name, note in notes.items() if name != output)
    assert not any("not installed" in estimate(plan, there).note for plan in made()[0])
    (plan,) = of(found, output)
    nothing: Any = None  # inputs that cannot be read
    worker = open_worker(Setting((plan,), Resources()), nothing)
    with pytest.raises(MissingPackage, match=rf"miclip\[{extra}\]"):
        list(worker.process(Shard(number=0, round=0, start=0, stop=1), [plan.digest], nothing, nothing))
