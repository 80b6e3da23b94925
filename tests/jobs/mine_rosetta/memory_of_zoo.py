"""A zoo too large to be published row by row: tables of units and random buddies that are made when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.memory import LIBRARY_BYTES
from jobs.mine_rosetta.plan import GRAPH, estimate, zoo_stage
from jobs.mine_rosetta.zoo_work import open_worker
from jobs.protocol import Known, Part, Setting
from schemas.plans import Plan, Resources, Round
from schemas.rosetta_specs import MineRosettaSpec
from tests.jobs.mine_rosetta.made_up_zoo import make_member

SITE = "stage.1@map"


def plan_of(members: int, units: int, k: int) -> Plan:
    """The zoo of so many models with so many units each, all of them anchors."""
    spec = MineRosettaSpec(k=(k, k))
    zoo = [make_member(f"timm:made_up_{m}", {SITE: units}) for m in range(members)]
    effort: Any = {"members": [member.model_dump(mode="json") for member in zoo]}
    rounds = (Round(name=GRAPH, rows=1, shard_rows=1),)
    return Plan(stage=zoo_stage(spec, "made_up", zoo), rounds=rounds, worker="zoo", effort=effort)


def stated(plan: Plan) -> int:
    """Bytes beside those of libraries, as the plan states them."""
    return estimate(plan, Known({}, {})).worker_memory - LIBRARY_BYTES


class MadeUpTables:
    """The inputs of a zoo: every unit has k random buddies in each other member."""

    def __init__(self, plan: Plan) -> None:
        self._names = {stage: name for name, stage in plan.stage.inputs.items()}
        members: Any = plan.effort["members"]
        self._units, self._k = int(members[0]["sites"][0]["width"]), max(plan.stage.params["k"])  # type: ignore[arg-type,type-var]

    def table(self, stage: str, table: str, columns: Sequence[str], between: Any = None) -> Iterator[pa.RecordBatch]:
        made = self._of_units() if table == "rosetta_units" else self._buddies(self._names[stage])
        n = len(made["unit"] if "unit" in made else made["r"])
        every = {name: pa.repeat(SITE, n) for name in ("site", "site_a", "site_b")} | made
        yield pa.record_batch({name: every[name] for name in columns})

    def _of_units(self) -> dict[str, Any]:
        ones, never = np.ones(self._units), pa.array(np.zeros(self._units, bool))
        numbers = dict.fromkeys(("mean", "sd", "kurtosis", "active"), ones)
        return {"unit": np.arange(self._units, dtype=np.int32), **numbers, "is_dead": never, "is_rare": never}

    def _buddies(self, name: str) -> dict[str, Any]:
        rng = np.random.default_rng([int(part) for part in name.split(".")[1:]])
        a, rank = np.tile(np.arange(self._units), self._k), np.repeat(np.arange(self._k), self._units)
        b = np.concatenate([rng.permutation(self._units) for _ in range(self._k)])
        if name.startswith("self"):
            a, b, rank = a[a < b], b[a < b], rank[a < b]
        first = np.unique(a * self._units + b, return_index=True)[1]
        return {
            "unit_a": a[first].astype(np.int32),
            "unit_b": b[first].astype(np.int32),
            "r": rng.uniform(0.2, 0.9, len(first)),
            "rank_ab": rank[first].astype(np.int16),
            "rank_ba": rank[first].astype(np.int16),
            "is_below_null": pa.array(np.zeros(len(first), bool)),
        }


def mine(plan: Plan) -> int:
    """Mine the zoo, and say how many rows that gave."""
    inputs: Any = MadeUpTables(plan)
    worker = open_worker(Setting((plan,), Resources()), inputs)
    keep: Any = None
    parts = worker.process(next(plan.shards(0)), [plan.digest], inputs, keep)
    return sum(part.batch.num_rows for part in parts if isinstance(part, Part))
