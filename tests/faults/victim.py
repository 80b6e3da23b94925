"""A run in a process of its own that can be told where to die: `python -m tests.faults.victim '<json>'`.

The JSON holds store, spec (a pipeline), executor (`serial` or `ray`), and optionally `die`: {"key": a regular
expression, "nth": 1, "when": "before" or "after", "how": "create" or "replace"} ends the process, as SIGKILL would, around
the nth object it creates (or puts in the place of another) under such a key; and `file_bytes`, the largest file this
process may write. It prints one JSON line.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from cluster.executor import Executor, SerialExecutor
from schemas.errors import MiclipError
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake

ROOT = Path(__file__).parents[2]
DIED = 77


def start(store: str, spec: PipelineSpec, executor: str = "serial", **order: Any) -> subprocess.Popen[str]:
    """Start a run in its own process group, so that killing it kills nothing of the test's."""
    said = spec.model_dump(mode="json", exclude_unset=True)  # what nobody set may not be said by everybody
    for name, stage in spec.stages.items():
        said["stages"][name] |= {"kind": stage.kind}  # which nobody sets either, and which says what it is
    text = json.dumps({"store": store, "spec": said, "executor": executor, **order})
    command = [sys.executable, "-m", "tests.faults.victim", text]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], timeout: float = 400) -> tuple[int, dict[str, Any], str]:
    """(exit code, the printed line, stderr)."""
    out, err = process.communicate(timeout=timeout)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def finish_well(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The printed line of a run that published everything."""
    code, said, err = finish(process)
    assert code == 0, err
    return said


def die_at(key: str, nth: int = 1, when: str = "before", how: str = "create") -> None:
    """End this process around the nth writing of an object whose key matches."""
    from cluster.stores.posix import PosixStore
    from cluster.stores.s3 import S3Store

    seen = 0
    one_by_one = threading.Lock()  # stages of a shard are stored side by side, and the nth must be the last one there

    def deadly(write: Any) -> Any:
        def wrapped(self: Any, name: str, data: bytes) -> Any:
            nonlocal seen
            if re.search(key, name) is None:
                return write(self, name, data)
            with one_by_one:
                seen += 1
                if seen == nth and when == "before":
                    os._exit(DIED)
                written = write(self, name, data)
                if seen == nth:
                    os._exit(DIED)
                return written

        return wrapped

    for store in (PosixStore, S3Store):
        setattr(store, how, deadly(getattr(store, how)))


def _make_executor(order: dict[str, Any]) -> Executor:
    if order["executor"] == "serial":
        return SerialExecutor(order["store"])
    from cluster.on_ray.executor import RayExecutor

    return RayExecutor(order["store"], cpus=order.get("cpus", 2))


def main() -> int:
    order = json.loads(sys.argv[1])
    if "die" in order:
        die_at(**order["die"])
    if "file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], order["file_bytes"]))
    spec = PipelineSpec.model_validate_json(json.dumps(order["spec"]))
    try:
        executor = _make_executor(order)
        lake = Lake(order["store"], executor)
        try:
            report = lake.run(spec)
        finally:
            executor.close()
    except MiclipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:  # as the CLI ends; the interpreter's own code depends on who caught the signal before
        return 130
    counts = {name: lake.count(name) for name in ("shard_done", "shard_failed", "shard_lost", "cached", "published")}
    notes = [note for event in lake.events for note in event.get("notes", ())]
    print(json.dumps({**counts, "notes": notes, "failures": report.failures}), flush=True)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
