"""Keeps Apache Iceberg tables over the published parts, which stay where they are: only metadata is written."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from cluster.catalog import Catalog
from schemas.errors import MissingPackage, UsageError, WorkFailed
from schemas.tables import TABLES, get_table

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog as IcebergCatalog
    from pyiceberg.table import Table as IcebergTable

NAME = "miclip"
"""Of the catalog in a folder."""
_ONCE = {"commit.retry.num-retries": "0"}
"""Of every table: parts that are added a second time, behind whoever was faster, would be there twice."""


class Change(NamedTuple):
    """What was done to one Iceberg table: its rows now, and parts that were added to it and taken out of it."""

    table: str
    rows: int
    added: int
    removed: int


def open_folder(folder: Path, catalog: Catalog) -> IcebergCatalog:
    """The Iceberg catalog in a folder: `catalog.db` (SQLite), and one folder of metadata per table; made if it is not there.

    Raises:
        MissingPackage: pyiceberg is not installed. UsageError: the folder cannot be written, or is part of the store.
    """
    if folder.resolve().is_relative_to(Path(catalog.store.uri).resolve()):
        raise UsageError(f"--to {folder} is inside the store {catalog.store.uri}; name a folder beside it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--to {folder}: {error.strerror or error}; name a folder that can be written") from None
    place = folder.resolve()
    return _load(NAME, {"type": "sql", "uri": f"sqlite:///{place}/catalog.db", "warehouse": f"file://{place}"}, catalog)


def open_configured(name: str, catalog: Catalog) -> IcebergCatalog:
    """A catalog (REST, Glue, SQL …) that pyiceberg knows by name, from its configuration file or environment.

    Raises:
        MissingPackage: pyiceberg is not installed. UsageError: it knows no such catalog, or cannot open it.
    """
    try:
        return _load(name, {}, catalog)
    except MissingPackage:
        raise
    except Exception as error:  # each kind of catalog has its own errors
        raise UsageError(
            f"--catalog {name}: {error}; expected one that .pyiceberg.yaml or PYICEBERG_CATALOG__… describes"
        ) from error


def _load(name: str, properties: dict[str, str], catalog: Catalog) -> IcebergCatalog:
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NotInstalledError
    except ImportError:
        raise MissingPackage("pyiceberg is not installed; pip install 'miclip[iceberg]'") from None
    logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)  # it tells of every column without statistics
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if catalog.store.uri.startswith("s3://") and endpoint:
        properties = {"s3.endpoint": endpoint, **properties}
    try:
        return load_catalog(name, **properties)
    except NotInstalledError as error:  # pyiceberg is, and not what this kind of catalog needs
        raise MissingPackage(f"{error}; 'miclip[iceberg]' has what a folder needs") from None


def export_tables(catalog: Catalog, to: IcebergCatalog, namespace: str) -> list[Change]:
    """Make the Iceberg tables of a namespace hold exactly the parts in scope, and `stages` the catalog; say what changed.

    Tables that are there already get a new snapshot if their parts are not those in scope, and else stay as they are.

    Raises:
        DamagedPart: a part is gone or has another size; tables before it are done. UsageError: this is no name for a
            namespace. WorkFailed: another process changed the same tables meanwhile.
    """
    from pyiceberg.exceptions import CommitFailedException

    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", namespace, re.ASCII):
        raise UsageError(
            f"--namespace {namespace!r}: expected letters, digits and _, and dots between, such as lab.miclip"
        )
    try:
        return _export_tables(catalog, to, namespace)
    except CommitFailedException as error:
        raise WorkFailed(
            f"another process changed the tables of namespace {namespace} at the same time ({error}); the same command again "
            "makes them hold what is in scope"
        ) from error


def _export_tables(catalog: Catalog, to: IcebergCatalog, namespace: str) -> list[Change]:
    to.create_namespace_if_not_exists(namespace)
    there = {name for *_, name in to.list_tables(namespace)}
    changes = []
    for name in TABLES:
        if name in catalog.tables or name in there:
            table = _open_table(to, f"{namespace}.{name}", get_table(name).schema)
            parts = catalog.parts(name) if name in catalog.tables else []
            added, removed = _set_parts(table, [_uri(catalog.store.url(part.key)) for part in parts if part.rows])
            changes.append(Change(name, sum(part.rows for part in parts), added, removed))
    changes.append(_set_rows(to, f"{namespace}.stages", catalog.as_table()))
    return changes


def _uri(url: str) -> str:
    return url if "://" in url else f"file://{url}"


def _open_table(to: IcebergCatalog, name: str, schema: pa.Schema) -> IcebergTable:
    """The table with at least these columns; all may be null, since Iceberg adds no others to rows that are there."""
    wanted = pa.schema([field.with_nullable(True) for field in schema])
    table = to.create_table_if_not_exists(name, wanted, properties=_ONCE)
    if not table.properties.items() >= _ONCE.items():
        with table.transaction() as change:
            change.set_properties(_ONCE)
    if set(schema.names) - set(table.schema().column_names):
        with table.update_schema() as update:
            update.union_by_name(wanted)
    return table


def _set_parts(table: IcebergTable, uris: list[str]) -> tuple[int, int]:
    """Parts that were added and removed, in one commit."""
    there = {task.file.file_path: task.file for task in table.scan().plan_files()}
    wanted = set(uris)
    added = [uri for uri in uris if uri not in there]
    removed = [file for uri, file in there.items() if uri not in wanted]
    if added or removed:
        with table.transaction() as change:
            if removed:
                with change.update_snapshot().overwrite() as update:
                    for file in removed:
                        update.delete_data_file(file)
            if added:
                change.add_files(added, check_duplicate_files=False)
    return len(added), len(removed)


def _set_rows(to: IcebergCatalog, name: str, rows: pa.Table) -> Change:
    """A small table whose rows are written anew if they differ."""
    table = _open_table(to, name, rows.schema)
    before = table.scan().to_arrow().cast(rows.schema)
    changed = _in_order(before) != _in_order(rows)
    if changed and before.num_rows:
        table.overwrite(rows)
    elif changed:
        table.append(rows)
    return Change("stages", rows.num_rows, int(changed), int(changed and before.num_rows > 0))


def _in_order(rows: pa.Table) -> list[tuple[str, ...]]:
    return sorted(tuple(map(str, row.values())) for row in rows.to_pylist())


def count_parts(changes: Iterable[Change]) -> tuple[int, int]:
    """Parts added and removed over all tables."""
    listed = list(changes)
    return sum(change.added for change in listed), sum(change.removed for change in listed)
