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
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FROM_HUB, str(tmp_path / "store")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "{}\n", done.stderr
