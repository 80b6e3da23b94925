"""`miclip demo` as a newcomer types it: five models on two actors, an answer, and nothing left to do the second time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from cluster.events import read_events
from cluster.stores import make_store

CLIPS = {"demo:clip-p8", "demo:clip-p16", "demo:clip-rn"}
OTHERS = {"demo:siglip-p8", "demo:resnet-sup"}


def run_demo(folder: Path) -> tuple[subprocess.Popen[str], set[int]]:
    """`miclip demo` over 300 images, ended, and the processes that were actors of it."""
    command = [sys.executable, "-m", "cluster.cli", "demo", "--folder", str(folder / "demo"), "--images", "300"]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "300"}
    actors: set[int] = set()
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        demo = subprocess.Popen(command, stdout=out, stderr=err, text=True, env=environment)
        deadline = time.monotonic() + 1000
        while demo.poll() is None and time.monotonic() < deadline:
            actors |= find_actors(demo.pid)
            time.sleep(0.2)
        demo.kill()
    return demo, actors


def find_actors(driver: int) -> set[int]:
    """Processes below a driver that host a worker now."""
    try:
        below = psutil.Process(driver).children(recursive=True)
    except psutil.Error:
        return set()
    found = set()
    for process in below:
        try:
            found |= {process.pid} if any("HostActor" in word for word in process.cmdline()) else set()
        except psutil.Error:  # it ended while we looked
            pass
    return found


def finished(folder: Path, run: str) -> Counter[str]:
    """How many events of each name a run of the demo has."""
    return Counter(event["event"] for event in read_events(make_store(str(folder / "demo" / "store")), run))


@pytest.mark.timeout(2400)
def test_the_demo_answers_on_two_actors_and_finds_everything_done_the_second_time(tmp_path: Path) -> None:
    first, actors = run_demo(tmp_path)
    said = (tmp_path / "out").read_text()
    assert first.returncode == 0, (tmp_path / "err").read_text()
    assert len(actors) >= 2
    rows = re.findall(r"^\W*(demo:[\w-]+)\W+(\S+)\W+(\d+)\b", said, re.M)  # model, site, units
    assert {model for model, _, _ in rows} == CLIPS | OTHERS and all(int(units) > 0 for _, _, units in rows)
    folders = {Path(path) for path in re.findall(r"/\S+/tables/\w+", said)}
    assert len(folders) >= 7 and [path for path in folders if not list(path.rglob("*.parquet"))] == []
    assert finished(tmp_path, "demo-00001")["shard_done"] > 0
    kinds = set(re.findall(r"^\W*(background|shape|texture|colour)\W+\d+\W+[\d.]+", said, re.M))
    assert kinds == {"background", "shape", "texture", "colour"}  # found by features of the SAE
    assert "</html>" in (tmp_path / "demo" / "report.html").read_text()

    second, actors = run_demo(tmp_path)
    again = (tmp_path / "out").read_text()
    assert second.returncode == 0 and actors == set()
    assert "all of them before" in again
    events = finished(tmp_path, "demo-00002")
    assert events["shard_done"] == events["published"] == 0 and events["cached"] > 0
    assert [line for line in again.splitlines() if "demo:" in line] == [
        line for line in said.splitlines() if "demo:" in line
    ]
