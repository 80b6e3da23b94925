"""What the table `drift` is made of, and how it is kept beside the run that it is about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.catalog import load_drift
from cluster.hold import Holds, load_holds
from cluster.lease import Pace
from cluster.parquet import PartEncoder
from cluster.parts import store_part
from cluster.runs import split_run
from cluster.stores.base import Store
from jobs.feature_matches import Matches
from schemas import layout
from schemas.base import digest
from schemas.drift_tables import DRIFT
from schemas.plans import Published, Shard, StageSpec

Row = dict[str, Any]
KIND = "drift"
METHOD = 1


class Pair(NamedTuple):
    """One stage then and now."""

    cell: str
    before: Published
    after: Published

    def row(self, aspect: str, source: str, item: str, setting: str, status: str, **values: Any) -> Row:
        """A row of `drift` about it, without the stage; columns that are not named are null."""
        about = {"cell": self.cell, "subject": self.after.stage.subject, "subject_before": self.before.stage.subject}
        said = {"aspect": aspect, "source": source, "item": item, "setting": setting, "status": status}
        return {**about, **said, **values}

    def figure(self, source: str, item: str, setting: str, before: float | None, after: float | None) -> Iterator[Row]:
        """A row of a figure that moved, came or went; none of one that is as it was. What is no number is as null."""
        was, now = (None if value is None or math.isnan(value) else float(value) for value in (before, after))
        if was != now:
            status = "gained" if was is None else "lost" if now is None else "changed"
            yield self.row("metric", source, item, setting, status, before=was, after=now)


class Features(NamedTuple):
    """Which features of the SAE now those of the SAE then are; kept as arrays, for there are ten thousands of them."""

    pair: Pair
    source: str
    item: str
    setting: str
    matches: Matches

    def batch(self, stage: str) -> pa.RecordBatch:
        """A row per feature then of which anything can be said."""
        (known,) = np.nonzero(~np.isnan(self.matches.similarity))
        each = {
            "status": np.where(self.matches.same[known], "matched", "lost"),
            "feature_before": known,
            "feature_after": self.matches.nearest[known],
            "similarity": self.matches.similarity[known],
        }
        alike = {"stage": stage, **self.pair.row("feature", self.source, self.item, self.setting, "")}
        columns = [
            pa.array(each[f.name], f.type)
            if f.name in each
            else pa.repeat(pa.scalar(alike.get(f.name), f.type), len(known))
            for f in DRIFT.schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=DRIFT.schema)


@dataclass
class Drift:
    """What moved between two runs, or differs between two models."""

    rows: list[Row]
    """Figures and concepts."""
    pairs: int
    """Stages that both have, that are not the same, and that were compared."""
    same: int = 0
    """Stages that are the same in both, so that nothing of them can have moved."""
    features: list[Features] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be compared."""

    def batches(self, stage: str) -> Iterator[pa.RecordBatch]:
        """All of it as rows of the table `drift`, of this stage."""
        nothing = dict.fromkeys(DRIFT.schema.names)
        yield pa.RecordBatch.from_pylist([{**nothing, **row, "stage": stage} for row in self.rows], schema=DRIFT.schema)
        for features in self.features:
            yield features.batch(stage)


def save_drift(store: Store, run: str, before: str, drift: Drift, pace: Pace | None = None) -> Published:
    """Write the rows of a run and the pointer that makes them a table; what is there already stays.

    The pointer lies in the folder of the run and goes with it: a stage that read those of the run before would keep them
    for ever. It is written last, so that rows of a driver that died on the way are no table.

    pace: how long it waits for a sweep that shows no life.
    """
    stage = StageSpec(
        kind=KIND, method=METHOD, subject=split_run(run)[0], output=KIND, params={"before": before, "after": run}
    )
    encoder, rows = PartEncoder(DRIFT), 0
    try:
        for batch in drift.batches(stage.digest):
            encoder.add(batch)
            rows += batch.num_rows
    except BaseException:
        encoder.abandon()
        raise
    encoded = encoder.finish()
    Holds(store, run, pace).hold({stage.digest, *load_holds(store, run)})
    whole = Shard(number=0, round=0, start=0, stop=rows)
    parts = tuple(store_part(store, DRIFT.name, stage, whole, n, part) for n, part in enumerate(encoded))
    published = Published(stage=stage, tables={DRIFT.name: parts}, content=digest([part.sha256 for part in parts]))
    store.create(layout.run_key(run, "drift.json"), published.canonical_json().encode())
    return load_drift(store, run) or published
