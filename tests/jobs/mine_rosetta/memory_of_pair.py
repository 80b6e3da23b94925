"""One worker on a pair of wide models, alone in its process: what it holds at most in each round, as JSON on the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.inputs import StoreInputs
from cluster.planned import plan_pipeline
from cluster.stores.base import make_store
from jobs.kinds import get_opener
from jobs.mine_rosetta.members import Member
from jobs.mine_rosetta.plan import estimate, member_of
from jobs.protocol import Artifact, Setting
from schemas.errors import KeyMissing
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, load_json


class MadeUpUnits:
    """The inputs of a lake, with statistics of units that nobody has computed, and what the worker itself has made."""

    def __init__(self, inputs: StoreInputs, plan: Plan) -> None:
        self._inputs = inputs
        self._members = {plan.stage.inputs[side]: member_of(plan, side) for side in "ab"}
        self._made: dict[tuple[int, str], bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inputs, name)

    def keep(self, shard: int, artifact: Artifact) -> None:
        self._made[shard, artifact.name] = artifact.data

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        if (shard, name) not in self._made:
            raise KeyMissing(name)
        return self._made[shard, name]

    def table(self, stage: str, table: str, *args: Any) -> Iterator[pa.RecordBatch]:
        if stage not in self._members:
            yield from self._inputs.table(stage, table, *args)
            return
        for site in self._members[stage].sites:
            yield _units(self._members[stage], site.site, site.width)


def _units(member: Member, site: str, width: int) -> pa.RecordBatch:
    one, never = np.ones(width, np.float32), np.zeros(width, bool)
    return pa.record_batch(
        {
            "site": pa.repeat(site, width),
            "unit": np.arange(width, dtype=np.int32),
            "mean": np.zeros(width),
            "sd": np.ones(width),
            "kurtosis": one,
            "active": one,
            "is_dead": pa.array(never),
            "is_rare": pa.array(never),
        }
    )


def peak() -> int:
    """Bytes that this process has held at most; not those of the one that started it, as `getrusage` would count."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def main(store: str, spec: str) -> None:
    """The first shard of every round of the pair of two models."""
    opened = make_store(store)
    planned = plan_pipeline(load_json(PipelineSpec, spec), opened)
    plans = [plan for cell in planned.cells for plan in cell.plans if plan.stage.output == "pair"]
    (plan,) = [plan for plan in plans if plan.stage.inputs["a"] != plan.stage.inputs["b"]]
    cell = next(cell for cell in planned.cells if plan in cell.plans)
    inputs: Any = MadeUpUnits(StoreInputs(opened), plan)
    worker = get_opener(plan.stage.kind)(Setting((plan,), cell.cell.resources), inputs)
    peaks = {}
    for number in range(len(plan.rounds)):
        shard = next(plan.shards(number))
        for made in worker.process(shard, [plan.digest], inputs, None):  # type: ignore[arg-type]
            if isinstance(made, Artifact):
                inputs.keep(shard.number, made)
        peaks[plan.rounds[number].name] = peak()
    shards = len(plan.effort["tiles"])  # type: ignore[arg-type]
    print(json.dumps({"stated": estimate(plan, planned.known).worker_memory, "shards": shards, **peaks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
