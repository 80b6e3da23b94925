"""The example of a night over the whole demo zoo: every kind of job, nothing twice, and of a changed checkpoint what follows from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cluster.ledger import load_published
from cluster.runs import load_tables
from cluster.spec_file import read_spec_file
from cluster.stores import make_store
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
    "exclude": '[{model: ["demo:clip-p16", "demo:siglip-p8", "demo:resnet-sup-wm"]}]',
}
"""So that it is done in minutes; all kinds stay."""


def test_it_names_every_member_of_the_zoo_and_every_kind_of_job() -> None:
    pipeline = read_spec_file(EXAMPLE).pipeline
    named = {model for name in pipeline.stages for model in pipeline.models_of(name)}
    assert named == {f"demo:{path.name}" for path in ZOO.iterdir()}
    assert {stage.kind for stage in pipeline.stages.values()} == set(READS)


def night(spec: Path, lake: Path) -> dict[str, Any]:
    """What a run of the spec says of itself, with fewer images and steps than the example has."""
    words = [
        "run",
        str(spec),
        "--store",
        str(lake),
        "--cpus",
        "2",
        "--json",
        *(f"--set={k}={v}" for k, v in FEWER.items()),
    ]
    done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def stages_of(lake: Path, run: str) -> dict[str, StageSpec]:
    """Digest -> stage, of all that a run stands for."""
    store = make_store(str(lake))
    tables = load_tables(store, run)
    assert tables is not None
    published = {digest: load_published(store, digest) for digest in tables.digests}
    return {digest: found.stage for digest, found in published.items() if found is not None}


def follows_from(stage: StageSpec, model: str, stages: dict[str, StageSpec]) -> bool:
    """Whether a stage is about a model, or reads one that is."""
    if model in stage.subject:
        return True
    return any(read in stages and follows_from(stages[read], model, stages) for read in stage.inputs.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_second_night_computes_nothing_and_the_third_what_follows_from_one_changed_checkpoint(
    tmp_path: Path,
) -> None:
    shutil.copytree(ZOO / OTHER.removeprefix("demo:"), tmp_path / "model")
    shutil.copytree(EXAMPLE.parent / "nightly-sae", tmp_path / "nightly-sae")
    model = f"open_clip:clip-p8-b@file:{tmp_path / 'model'}"
    spec, lake = tmp_path / "nightly.yaml", tmp_path / "lake"
    spec.write_text(EXAMPLE.read_text().replace(f'"{OTHER}"', f'"{model}"').replace(f"- {OTHER}\n", f'- "{model}"\n'))
    first, second = night(spec, lake), night(spec, lake)
    before = stages_of(lake, first["run"])
    assert {stage.kind for stage in before.values()} >= set(READS)
    assert second["seconds"] < first["seconds"] and stages_of(lake, second["run"]) == before

    path = tmp_path / "model" / "open_clip_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    after = stages_of(lake, night(spec, lake)["run"])
    new = {digest for digest in after if digest not in before}
    assert {digest for digest, stage in after.items() if follows_from(stage, model, after)} == new
    own = {stage.kind for digest, stage in after.items() if digest in new and model in stage.subject}
    others = {stage.kind for digest, stage in after.items() if digest in new and model not in stage.subject}
    assert {"inspect", "extract", "train_sae", "sae_features", "align", "describe", "mine_rosetta", "evaluate"} <= own
    assert others == {"mine_rosetta", "explorer"}  # the graph of the zoo, and pages that show which units others share
    assert len(new) < len(after) / 2
