"""A small lake for tests: run a pipeline on a store in this process, read what it published."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.events import Event, EventLog
from cluster.executor import Executor, SerialExecutor, StopFlag
from cluster.inputs import StoreInputs
from cluster.ledger import load_published
from cluster.pipeline import PipelineRun, RunReport
from cluster.runs import new_run
from cluster.stores.base import make_store
from jobs.world import export_images
from schemas.extract_specs import ExtractSpec
from schemas.job_files import as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.selftest_specs import SelftestSpec
from schemas.tables import get_table

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")


class Lake:
    """One store and the events of every run on it."""

    def __init__(self, uri: str | Path, executor: Executor | None = None) -> None:
        self.uri = str(uri)
        self.store = make_store(self.uri)
        self.executor = executor or SerialExecutor(self.uri)
        self.events: list[Event] = []

    def run(self, spec: PipelineSpec | ExtractSpec | SelftestSpec) -> RunReport:
        """Run a spec to its end; the events of this run alone are kept."""
        self.events = []
        pipeline = as_pipeline(spec)
        run = new_run(self.store, pipeline.name, pipeline.canonical_json())
        log = EventLog(self.events.append)
        return PipelineRun(pipeline, run, self.store, self.executor, log, StopFlag()).run()

    def count(self, event: str, kind: str | None = None) -> int:
        """How many events of a name the last run had."""
        return sum(1 for e in self.events if e["event"] == event and kind in (None, e.get("kind")))

    def table(self, report: RunReport, table: str, **where: str) -> pa.Table:
        """Rows of a table over the stages of a run, filtered by equality."""
        inputs, found = StoreInputs(self.store), []
        for state in report.state.stages:
            published = load_published(self.store, state.digest)
            if published is not None and published.tables.get(table):
                found += list(inputs.table(state.digest, table))
        rows = pa.Table.from_batches(found) if found else get_table(table).schema.empty_table()
        for name, value in where.items():
            rows = rows.filter(pa.compute.equal(rows[name], value))
        return rows

    def files(self) -> dict[str, str]:
        """Key -> sha256 of every object below tables/ and every published pointer: what two equal lakes share."""
        keys = self.store.list("tables") + [k for k in self.store.list("stages") if k.endswith("published.json")]
        return {key: hashlib.sha256(self.store.get(key)).hexdigest() for key in keys}


def make_extract(folder: Path, models: tuple[str, ...], **changes: Any) -> PipelineSpec:
    """A valid pipeline of one extract stage over an exported folder; `changes` are fields of that stage."""
    spec = {"kind": "extract", "sites": ["resid_post.-2@patch:mean"], "batch_size": 16, "shard_rows": 32, **changes}
    images = spec.pop("images", {"ref": f"folder:{folder}/images", "labels": f"file:{folder}/labels.parquet"})
    data = {"kind": "pipeline", "name": "test", "images": images, "matrix": {"model": models}, "stages": {"acts": spec}}
    return PipelineSpec.model_validate(data, strict=False)


def export(folder: Path, n: int = 80) -> Path:
    """n images of the demo world as files."""
    export_images(folder, n)
    return folder
