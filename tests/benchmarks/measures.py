"""How benchmarks measure: times taken in turns, and the peak memory of a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def turns(
    rounds: int, steps: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """What each took in every turn, so that a load on the machine meets all of them; the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = clock()
            step()
            taken[name].append(clock() - started)
    return {name: some[1:] for name, some in taken.items()}


def seconds(rounds: int, steps: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median of each over turns."""
    return {name: statistics.median(some) for name, some in turns(rounds, steps).items()}


def peak() -> int:
    """Bytes that this process has had at most; not those of the one that started it, as `getrusage` would count."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def run_child(code: str, *arguments: object, timeout: float) -> dict[str, Any]:
    """What Python code prints as JSON in its last line, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
