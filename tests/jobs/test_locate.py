"""Checkpoints reach a worker from wherever a ref points: a folder through the inputs, the hub through its cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.locate import locate_through

FROM_HUB = """
import sys
from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.locate import locate_through
from miclip_core.zoo.locate import HubFile
path = locate_through(StoreInputs(make_store(sys.argv[1])))(HubFile("lab/model", "config.json", "v1"))
print(path.read_text())
"""

TWO_MODELS = r"""
import sys
from pathlib import Path
from tests.lakes import Lake, export, make_extract
folder = Path(sys.argv[1])
lake, models = Lake(folder / "lake"), ("hf:nobody/nothing", "demo:clip-p8")
report = lake.run(make_extract(export(folder / "world", 4), models, sites=[], outputs=["embeddings"]))
print(report.exit_code, lake.table(report, "embeddings")["model"].unique().to_pylist(), *report.failures, sep="\n")
"""


def test_a_folder_is_used_where_it_is(tmp_path):
    inputs = StoreInputs(make_store(str(tmp_path / "store")))
    assert locate_through(inputs)(f"file:{tmp_path}") == tmp_path


def test_a_hub_file_comes_from_the_hub_cache(tmp_path: Path):
    """A process of its own: the hub's library reads its settings when it is imported."""
    repo = tmp_path / "hub" / "models--lab--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v1").write_text("a" * 40)
    (repo / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (repo / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    assert offline(FROM_HUB, tmp_path) == "{}\n"


def test_a_hub_that_cannot_be_reached_stops_its_model_alone(tmp_path: Path):
    """Nobody knows whether the name is wrong, so the rest of the zoo goes on."""
    exit_code, done, *failures = offline(TWO_MODELS, tmp_path).splitlines()
    assert (exit_code, done) == ("1", "['demo:clip-p8']")
    said = "ModelUnreachable: nobody/nothing: config.json is not in the local cache and the hub cannot be reached"
    assert failures and all(said in failure for failure in failures)


def offline(script: str, folder: Path) -> str:
    """What a script prints that may not use the network and finds the hub's cache below the folder."""
    env = {**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script, str(folder / "store")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
