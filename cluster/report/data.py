"""What a report is made of: the runs it is about, what they published, and what happened while they ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from cluster.alive import last_sign
from cluster.catalog import Catalog, Scope, open_catalog
from cluster.events import Event, read_events
from cluster.ledger import load_failures, load_published
from cluster.read import LakeTable
from cluster.report.pictures import COLUMNS as IMAGE_COLUMNS
from cluster.report.pictures import Pictures
from cluster.runs import RunState, latest_runs, load_state, load_tables
from cluster.stores.base import Store, prefetch
from cluster.watching import seconds_taken
from schemas.plans import FailedMarker, Published
from schemas.tables import get_table


@dataclass(frozen=True)
class RunFacts:
    """One run: its state, its events in order, and the shards that failed and are still missing, by stage.

    last_sign: when its driver last said that it lives, in seconds since the epoch. seconds: that it took, or has until then.
    """

    state: RunState
    events: tuple[Event, ...]
    failures: Mapping[str, tuple[FailedMarker, ...]]
    last_sign: float | None
    seconds: float


@dataclass(frozen=True)
class ReportData:
    """Runs, and the tables of the stages they stand for."""

    runs: tuple[RunFacts, ...]
    catalog: Catalog

    @cached_property
    def rows(self) -> dict[str, int]:
        """Table name -> rows, of every published table."""
        return self.catalog.tables

    @cached_property
    def stages(self) -> dict[str, Published]:
        """Digest -> what is published."""
        return {published.stage.digest: published for published in self.catalog.stages}

    @cached_property
    def pictures(self) -> Pictures:
        """The thumbnails that sections show; the shell writes each once."""
        return Pictures(lambda ids: self.table("images", IMAGE_COLUMNS, {"image_id": list(ids)}).to_pylist())

    def has(self, *names: str) -> bool:
        """Whether any of these tables has rows."""
        return any(self.rows.get(name) for name in names)

    def table(
        self, name: str, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> pa.Table:
        """Rows of a table as `Lake.table` gives them; none where nobody has published it."""
        if name not in self.rows:
            schema = get_table(name).schema
            return (schema if columns is None else pa.schema([schema.field(c) for c in columns])).empty_table()
        return LakeTable(self.catalog, name, where or {}, columns).arrow()


def load_report(store: Store, run: str | None = None) -> ReportData:
    """Gather one run, whatever became of it, or the newest finished run of every pipeline.

    Raises:
        UnknownRun: there is no such run. DamagedPart: a stage that a run stands for is gone.
    """
    if run is None:
        catalog = open_catalog(store)
        return ReportData(tuple(_facts(store, load_state(store, name)) for name in catalog_runs(store)), catalog)
    state = load_state(store, run)
    if load_tables(store, run) is not None:
        return ReportData((_facts(store, state),), open_catalog(store, Scope(run=run)))
    digests = dict.fromkeys(stage.digest for stage in state.stages)
    found = [published for _, published in prefetch(lambda digest: load_published(store, digest), digests) if published]
    return ReportData((_facts(store, state),), Catalog(store, tuple(found)))


def catalog_runs(store: Store) -> list[str]:
    """The runs that `open_catalog` reads when nothing is named."""
    return sorted(tables.run for tables in latest_runs(store))


def _facts(store: Store, state: RunState) -> RunFacts:
    missing = [stage.digest for stage in state.stages if not stage.is_published]
    failures = {digest: tuple(found) for digest, found in prefetch(lambda d: load_failures(store, d), missing) if found}
    sign = last_sign(store, state.run)
    return RunFacts(state, tuple(read_events(store, state.run)), failures, sign, seconds_taken(store, state))
