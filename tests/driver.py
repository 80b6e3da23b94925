"""A driver in a process of its own, so that tests can kill it: `python -m tests.driver '<json>'`.

The JSON holds store, executor (`serial`, `local` or the address of a Ray cluster), spec (fields of a selftest), and
optionally resources and patience. It prints one JSON line: the number of shards computed, failed, and seen published.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.executor import Executor, SerialExecutor
from schemas.errors import MiclipError
from schemas.plans import Resources
from tests.corridor import run, selftest


def start(
    store: str, executor: str, spec: Mapping[str, Any], env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen:
    """Start a driver; its stdout and stderr are pipes."""
    order = json.dumps({"store": store, "executor": executor, "spec": spec, **more})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.driver", order],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 400) -> tuple[int, dict[str, Any], str]:
    """(exit code, the printed line, stderr)."""
    out, err = process.communicate(timeout=timeout)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def _make_executor(order: dict[str, Any]) -> Executor:
    if order["executor"] == "serial":
        return SerialExecutor(order["store"])
    from cluster.on_ray.executor import RayExecutor

    address = None if order["executor"] == "local" else order["executor"]
    return RayExecutor(order["store"], address, cpus=2, patience=order.get("patience", 30.0))


def main() -> int:
    order = json.loads(sys.argv[1])
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in order["spec"].items()}
    todo = selftest(Resources(**order.get("resources", {})), **fields)
    try:
        executor = _make_executor(order)
        print("ready", flush=True)
        try:
            ran = run(todo, order["store"], executor)
        finally:
            executor.close()
    except MiclipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    counts = {"done": len(ran.of("shard_done")), "cached": len(ran.of("cached")), "published": len(ran.of("published"))}
    print(json.dumps({**counts, "failed": [o.message for o in ran.board.failed.values()]}), flush=True)
    return 1 if ran.board.failed else 0


if __name__ == "__main__":
    sys.exit(main())
