"""The example of a night over the whole demo zoo: every kind of job, nothing twice, and of a changed checkpoint what follows from it."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cluster.changes import MADE_FROM
from cluster.events import read_events
from cluster.ledger import load_published
from cluster.runs import load_tables
from cluster.spec_file import read_spec_file
from cluster.stores import make_store
from jobs.kinds import KINDS
from schemas.plans import StageSpec
from schemas.specs import READS

EXAMPLE = Path(str(files("jobs") / "examples" / "nightly.yaml"))
ZOO = Path(str(files("miclip_core") / "world" / "zoo"))
OTHER = "demo:clip-p8-b"
FEWER = {
    "images.ref": "world:seed=0,n=192",
    "stages.sae.steps": 30,
    "stages.layers.images.ref": "world:seed=2,n=192",
    "stages.others.images.ref": "world:seed=1,n=160",
    "stages.drawn.images.ref": "generated:demo:generator,seed=0,n=80",
    "stages.found.steps": 20,
    "stages.texts.max_new_tokens": 6,
    "exclude": '[{model: ["demo:clip-p16", "demo:siglip-p8", "demo:resnet-sup-wm"]}, '
    '{stage: [align, names, shared], model: "demo:llava-p8"}]',
}
"""So that it is done in minutes; all kinds stay."""
COMPARES = {"mine_rosetta", "explorer"}
"""Kinds that are about several models: the graph of the zoo, and pages that show which units others share."""


def test_it_names_every_member_of_the_zoo_and_every_kind_of_job() -> None:
    pipeline = read_spec_file(EXAMPLE).pipeline
    named = {model for name in pipeline.stages for model in pipeline.models_of(name)}
    assert named == {f"demo:{path.name}" for path in ZOO.iterdir()}
    facts = {"inspect", "index_images", "measure_sae"}  # which no stage asks for: what others need is made with them
    assert {stage.kind for stage in pipeline.stages.values()} == set(KINDS) - facts - {"selftest"} == set(READS)


def test_it_shows_each_way_to_say_which_cells_there_are() -> None:
    pipeline = read_spec_file(EXAMPLE).pipeline
    assert {"model", "latents"} <= pipeline.matrix.keys() and pipeline.exclude and pipeline.overrides
    assert any(stage.over for stage in pipeline.stages.values())


@dataclass(frozen=True)
class Night:
    """What one night says of itself, what its command cost, and what it left in the lake."""

    lake: Path
    said: dict[str, Any]
    wall_seconds: float
    cpu_seconds: float
    """Of the command and of all processes that it waited for."""

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """In order."""
        return read_events(make_store(str(self.lake)), self.said["run"])

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        """Digest -> stage, of all that the run stands for."""
        store = make_store(str(self.lake))
        tables = load_tables(store, self.said["run"])
        assert tables is not None
        published = {digest: load_published(store, digest) for digest in tables.digests}
        return {digest: found.stage for digest, found in published.items() if found is not None}

    @property
    def worked_on(self) -> set[str]:
        """Stages of which a shard was made."""
        return {stage for event in self.events if event["event"] == "shard_done" for stage in event["stages"]}


def begin_night(spec: Path, lake: Path) -> Night:
    """`miclip nightly`, with fewer images and steps than the example has."""
    words = ["nightly", str(spec), "--store", str(lake), "--cpus", "2", "--json"]
    words += [f"--set={field}={value}" for field, value in FEWER.items()]
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], capture_output=True, text=True, timeout=1500)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    night = Night(lake, json.loads(done.stdout), time.monotonic() - began, cpu)
    counts = Counter(event["event"] for event in night.events)
    print(
        f"{night.said['run']}: {len(night.stages)} stages, {counts['cached']} of them cached, {counts['shard_done']} shards, "
        f"{night.wall_seconds:.1f} s by the clock of the wall, {cpu:.1f} s of CPU"
    )
    return night


def follows_from(stage: StageSpec, model: str, stages: dict[str, StageSpec]) -> bool:
    """Whether a stage is about a model, or reads one that is."""
    if model in stage.subject:
        return True
    return any(read in stages and follows_from(stages[read], model, stages) for read in stage.inputs.values())


class Zoo:
    """The example with one member as a copy in a folder, the lake, and three nights: before the last the copy is changed."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ZOO / OTHER.removeprefix("demo:"), folder / "model")
        shutil.copytree(EXAMPLE.parent / "nightly-sae", folder / "nightly-sae")
        self.model = f"open_clip:clip-p8-b@file:{folder / 'model'}"
        spec, lake = folder / "nightly.yaml", folder / "lake"
        spec.write_text(EXAMPLE.read_text().replace(f"- {OTHER}\n", f'- "{self.model}"\n'))
        self.first, self.second = begin_night(spec, lake), begin_night(spec, lake)
        path = folder / "model" / "open_clip_model.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
        self.third = begin_night(spec, lake)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_night_makes_every_kind_of_stage(zoo: Zoo) -> None:
    assert {stage.kind for stage in zoo.first.stages.values()} == set(KINDS) - {"selftest"}
    assert zoo.first.worked_on == set(zoo.first.stages)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_second_night_finds_all_of_it_in_less_than_a_minute(zoo: Zoo) -> None:
    """Of its own time, which does not depend on what else the machine does: nothing that it starts outlives it."""
    assert zoo.second.cpu_seconds < 60
    assert zoo.second.worked_on == set()
    assert {event["stage"] for event in zoo.second.events if event["event"] == "cached"} == set(zoo.first.stages)
    assert zoo.second.stages == zoo.first.stages
    assert {stage["state"] for stage in zoo.second.said["stages"]} == {"cached"}
    changes = zoo.second.said["changes"]
    assert changes["subjects"] == [] and changes["unchanged"] > 0 and zoo.second.said["drift"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_third_night_makes_what_follows_from_the_changed_checkpoint_and_nothing_else(zoo: Zoo) -> None:
    before, after = zoo.first.stages, zoo.third.stages
    new = {digest for digest in after if digest not in before}
    assert {digest for digest, stage in after.items() if follows_from(stage, zoo.model, after)} == new
    assert zoo.third.worked_on == new
    own = {after[digest].kind for digest in new if zoo.model in after[digest].subject}
    others = {after[digest].kind for digest in new if zoo.model not in after[digest].subject}
    assert {"inspect", "extract", "train_sae", "sae_features", "align", "describe", "mine_rosetta", "evaluate"} <= own
    assert others == COMPARES
    assert len(new) < len(after) / 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_third_night_says_which_model_changed_why_and_how_its_figures_moved(zoo: Zoo) -> None:
    changes = {change["subject"]: change for change in zoo.third.said["changes"]["subjects"]}
    own = changes.pop(zoo.model)
    assert own["change"] == "changed" and own["why"] == ["weights"]
    assert {(change["change"], *change["why"]) for change in changes.values()} == {("changed", MADE_FROM)}
    assert {cell.split("/")[0] for change in changes.values() for cell in change["cells"]} == {"shared", "pages"}
    drift = zoo.third.said["drift"]
    assert all(zoo.model in row["subject"] for row in drift)
    assert {row["aspect"] for row in drift if row["subject"] == zoo.model} >= {"metric"}
