"""Which published stages a reader sees, and the parts of each table in them; nothing else is a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.parquet import sha256
from cluster.runs import RunTables, latest_runs, load_state, load_tables
from cluster.stores.base import Store, get_many, prefetch
from schemas import layout
from schemas.errors import DamagedPart, KeyMissing, MiclipError, UnknownRun, UnknownTable
from schemas.plans import Published, StoredArtifact, StoredPart, load_json
from schemas.tables import TABLES, get_table

Where = Mapping[str, Any]

STAGES = pa.schema(
    [
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("subject", pa.string()),
        ("output", pa.string()),
        ("site", pa.string()),
        ("table_name", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("parts", pa.int64()),
        ("params", pa.string()),
        ("inputs", pa.string()),
    ]
)
"""The catalog table `stages`: one row per stage and table; params and inputs are JSON."""


class Scope(NamedTuple):
    """What to read: by default the newest finished run of every pipeline, small trials (`--limit`) left out."""

    pipeline: str | None = None
    run: str | None = None
    all: bool = False


DEFAULT_SCOPE = Scope()


@dataclass(frozen=True)
class Catalog:
    """The published stages in scope."""

    store: Store
    stages: tuple[Published, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know of the runs in scope, such as one that failed in part."""

    @property
    def tables(self) -> dict[str, int]:
        """Table name -> rows, in the order of `schemas/tables.py`; only tables that some stage in scope publishes."""
        there = {table for published in self.stages for table in published.tables}
        return {name: sum(p.rows(name) for p in self.stages) for name in TABLES if name in there}

    def select(self, table: str, where: Where | None = None) -> list[Published]:
        """The stages that publish this table; `model`, `site` and `stage` of `where` leave out those that cannot match.

        Raises:
            UnknownTable: no stage in scope publishes it.
        """
        found = [p for p in self.stages if table in p.tables]
        if not found:
            get_table(table)
            there = ", ".join(self.tables) or "none"
            raise UnknownTable(f"no stage in scope has published table {table!r}; there are {there}")
        return [p for p in found if _may_match(p, where or {})]

    def parts(self, table: str, where: Where | None = None) -> list[StoredPart]:
        """The parts of a table, after a look that each is there with its size.

        Raises:
            UnknownTable: as `select`. DamagedPart: one is gone or has another size; fewer rows are never returned.
        """
        return check_parts(self.store, [part for p in self.select(table, where) for part in p.tables[table]])

    def as_table(self) -> pa.Table:
        """The catalog table `stages`."""
        rows = [_row(published, table) for published in self.stages for table in published.tables]
        return pa.Table.from_pylist(rows, schema=STAGES)


def open_catalog(store: Store, scope: Scope = DEFAULT_SCOPE) -> Catalog:
    """Load what is published in scope.

    Raises:
        UnknownRun: a run or pipeline is named and is not there, or has not finished.
        DamagedPart: a run stands for a stage whose published.json is gone.
    """
    runs: Sequence[RunTables] = () if scope.all else _runs(store, scope)
    if scope.all:
        keys = [key for key in store.list("stages") if key.endswith("/published.json")]
    else:
        digests = dict.fromkeys(d for tables in runs for d in tables.digests)
        keys = [layout.published_key(digest) for digest in digests]
    try:
        stages = tuple(load_json(Published, data) for _, data in get_many(store, keys))
    except KeyMissing as error:
        raise DamagedPart(
            f"a finished run names a stage that is gone: {error}; restore it, or run the spec again"
        ) from None
    stages += tuple(
        found for _, found in prefetch(lambda run: load_drift(store, run), _compared(store, runs, scope)) if found
    )
    failed = [
        f"run {tables.run} failed for {tables.failed} stages, which are left out: miclip status {tables.run} --store {store.uri}"
        for tables in runs
        if tables.failed
    ]
    return Catalog(store, stages, tuple(failed))


def _runs(store: Store, scope: Scope) -> Sequence[RunTables]:
    if scope.run is None:
        return latest_runs(store, scope.pipeline)
    tables = load_tables(store, scope.run)
    if tables is None:
        state = load_state(store, scope.run)
        raise UnknownRun(
            f"run {scope.run} is {state.status} and stands for no tables yet; finish it, or read what is published with --all"
        )
    return [tables]


def _compared(store: Store, runs: Sequence[RunTables], scope: Scope) -> list[str]:
    """The runs in scope that may have rows of the table `drift`."""
    if not scope.all:
        return [tables.run for tables in runs]
    return [key.split("/")[1] for key in store.list("runs") if key.endswith("/drift.json")]


def load_drift(store: Store, run: str) -> Published | None:
    """The pointer to a run's rows of the table `drift`, or None if it was compared with none."""
    try:
        return load_json(Published, store.get(layout.run_key(run, "drift.json")))
    except KeyMissing:
        return None


def stage_site(published: Published) -> str:
    """The site of a stage, or ""."""
    return str(published.stage.params.get("site") or "")


def _may_match(published: Published, where: Where) -> bool:
    stage = published.stage
    known = {
        "stage": stage.digest,
        "model": stage.subject if stage.kind == "extract" else None,
        "site": stage_site(published),
    }
    return all(known.get(column) in (None, "", *wanted(value)) for column, value in where.items())


def wanted(value: Any) -> tuple[Any, ...]:
    """One value or several, as a tuple."""
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)


def _row(published: Published, table: str) -> dict[str, Any]:
    stage, parts = published.stage, published.tables[table]
    return {
        "stage": stage.digest,
        "kind": stage.kind,
        "subject": stage.subject,
        "output": stage.output,
        "site": stage_site(published) or None,
        "table_name": table,
        "rows": published.rows(table),
        "bytes": sum(part.bytes for part in parts),
        "parts": len(parts),
        "params": json.dumps(stage.params, sort_keys=True),
        "inputs": json.dumps(stage.inputs, sort_keys=True),
    }


# ---------------------------------------------------------------- proof that it is all there


def check_parts(store: Store, parts: Sequence[StoredPart]) -> list[StoredPart]:
    """The same parts, each looked up: a missing or cut one must never become fewer rows.

    Raises:
        DamagedPart: naming the first.
    """
    for part, size in prefetch(lambda p: _size(store, p), parts):
        if size != part.bytes:
            raise DamagedPart(
                f"{part.key} should hold {part.rows:,} rows in {part.bytes:,} bytes, found "
                f"{'nothing' if size is None else f'{size:,} bytes'}; `miclip verify` lists all damage"
            )
    return list(parts)


def _size(store: Store, part: StoredPart) -> int | None:
    try:
        return store.size(part.key)
    except KeyMissing:
        return None


def find_unnamed(catalog: Catalog) -> list[str]:
    """Files in the folders of published stages that no pointer names, as a killed worker may leave.

    Nothing here reads them; an engine that reads a folder by a plain glob does, and would count their rows twice.
    """
    folders = [(p, layout.table_prefix(table, p.stage)) for p in catalog.stages for table in p.tables]
    named = {part.key for p in catalog.stages for parts in p.tables.values() for part in parts}
    listed = prefetch(lambda item: catalog.store.list(item[1]), folders)
    return sorted({key for _, keys in listed for key in keys} - named)


HEAL = (
    "put these objects back from a copy; or, while nothing runs, remove them and the folder stages/S of each stage S that "
    "they are of, and run the spec again, which makes those stages anew"
)
"""What can be done about objects that are damaged."""


class Verdict(NamedTuple):
    """One stored object of a published stage and what is wrong with it, or ""."""

    stage: str
    key: str
    bytes: int
    problem: str


def verify(catalog: Catalog) -> Iterator[Verdict]:
    """Read every part and artifact again and compare its sha256 with what was published."""
    named = _named_objects(catalog)
    for (stage, stored), problem in prefetch(lambda item: _problem(catalog.store, item[1]), named, width=4):
        yield Verdict(stage, stored.key, stored.bytes, problem)


def check_sizes(catalog: Catalog) -> Iterator[Verdict]:
    """Look whether every part and artifact is there with its size, by one listing per folder; no byte of them is read."""
    named = _named_objects(catalog)
    folders = dict.fromkeys(_folder(stored.key) for _, stored in named)
    sizes = {k: size for _, found in prefetch(catalog.store.sizes, folders) for k, size in found.items()}
    for stage, stored in named:
        yield Verdict(stage, stored.key, stored.bytes, _compare(stored.bytes, sizes.get(stored.key)))


def _compare(expected: int, found: int | None) -> str:
    if found is None:
        return "gone"
    return "" if found == expected else f"changed: expected {expected:,} bytes, found {found:,} bytes"


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _named_objects(catalog: Catalog) -> list[tuple[str, StoredPart | StoredArtifact]]:
    return [(p.stage.digest, stored) for p in catalog.stages for stored in stored_objects(p)]


def stored_objects(published: Published) -> Iterator[StoredPart | StoredArtifact]:
    """Everything that a published stage stands for."""
    for parts in published.tables.values():
        yield from parts
    yield from published.artifacts


def _problem(store: Store, stored: StoredPart | StoredArtifact) -> str:
    try:
        data = store.get(stored.key)
    except KeyMissing:
        return "gone"
    except MiclipError as error:
        return str(error)
    if sha256(data) == stored.sha256:
        return ""
    return f"changed: expected {stored.bytes:,} bytes with sha256 {stored.sha256[:12]}, found {len(data):,} bytes with {sha256(data)[:12]}"
