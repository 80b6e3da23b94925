"""Runs small selftest pipelines for tests that need something published."""

from __future__ import annotations

from pathlib import Path

from cluster.events import EventLog, StoreEvents
from cluster.executor import SerialExecutor, StopFlag
from cluster.lease import Pace
from cluster.pipeline import PipelineRun, RunReport
from cluster.runs import new_run
from cluster.spec_file import parse_spec
from cluster.stores import Store, make_store

SPEC = "kind: selftest\nname: numbers\nrows: 250\nshard_rows: 100\nvariants: [a, b]\n"


def run_spec(store: Store, text: str = SPEC, *overrides: str, pace: Pace | None = None) -> RunReport:
    """Run a spec in this process, with its events in the store, as the command line does."""
    file = parse_spec(text, "test.yaml", overrides)
    run = new_run(store, file.pipeline.name, file.text)
    events = StoreEvents(store, run)
    executor, log = SerialExecutor(store.uri), EventLog(events)
    report = PipelineRun(file.pipeline, run, store, executor, log, StopFlag(), pace=pace).run()
    events.flush()
    return report


def publish_numbers(folder: Path) -> Store:
    """A store with one finished run, `numbers-00001`: two stages of 250 rows in 3 parts, and two of one row."""
    store = make_store(str(folder))
    assert run_spec(store).exit_code == 0
    return store
