"""Iceberg tables over published parts: the same rows, no copies, renewed in place as what is published changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("pyiceberg", reason="needs pyiceberg: pip install 'miclip[iceberg]'")

from pyiceberg.catalog import load_catalog

from cluster import iceberg as iceberg_module
from cluster.catalog import Catalog, Scope, open_catalog
from cluster.cli.app import app
from cluster.iceberg import Change, export_tables, open_folder
from cluster.sql import run_sql
from cluster.stores import make_store
from cluster.stores.base import Store
from schemas.errors import DamagedPart, MissingPackage, WorkFailed
from schemas.plans import StageSpec
from schemas.tables import TABLES
from tests.made_up_descriptions import publish_rows
from tests.made_up_lake import DEEP, SITE, A, B, bad, publish, top
from tests.published import run_spec
from tests.queries import DOCS
from tests.rows import make_rows


def fill_store(place: Any) -> Store:
    """Three tables over three stages; one with maps and bytes, in a folder whose name is no plain word."""
    store = make_store(str(place))
    images = [{**found, "stage": ""} for found in make_rows("images", 3).to_pylist()]
    publish(store, "index_images", "folder:/x", images=images, bad_inputs=[bad("empty", "/a")])
    publish(store, "extract", A, DEEP, top_images=[top(1, 0, 0.75), top(1, 1, 0.5)])
    publish(store, "extract", B, DEEP, top_images=[top(2, 0, 1.0)])
    return store


def everything(store: Store) -> Catalog:
    return open_catalog(store, Scope(all=True))


def iceberg_rows(folder: Path, table: str, **options: Any) -> list[dict[str, Any]]:
    """As anybody reads them who was told of the folder."""
    properties = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}"}
    found = load_catalog("miclip", **properties).load_table(f"miclip.{table}").scan(**options).to_arrow()
    return sorted(found.to_pylist(maps_as_pydicts="strict"), key=str)


def published_rows(store: Store, table: str) -> list[dict[str, Any]]:
    answer = run_sql(everything(store), f"SELECT * FROM {table}").read_all()
    return sorted(answer.to_pylist(maps_as_pydicts="strict"), key=str)


def export(store: Store, folder: Path) -> dict[str, Change]:
    catalog = everything(store)
    return {change.table: change for change in export_tables(catalog, open_folder(folder, catalog), "miclip")}


def test_iceberg_tables_hold_the_published_rows_and_no_copy_of_them(tmp_path):
    store = fill_store(tmp_path / "my lake, äöü")
    changes = export(store, tmp_path / "ice")
    assert {name: change[1:] for name, change in changes.items()} == {
        "images": (3, 1, 0), "bad_inputs": (1, 1, 0), "top_images": (3, 2, 0), "stages": (4, 1, 0),
    }  # fmt: skip
    for table in changes:
        assert iceberg_rows(tmp_path / "ice", table) == published_rows(store, table)
    (copied,) = (tmp_path / "ice").rglob("*.parquet")
    assert copied.is_relative_to(tmp_path / "ice" / "miclip" / "stages")
    chosen = iceberg_rows(
        tmp_path / "ice", "top_images", row_filter=f"unit == 2 and model == '{A}'", selected_fields=("unit",)
    )
    assert chosen == [{"unit": 2}]


def test_a_second_export_changes_nothing_and_a_later_one_what_differs(tmp_path):
    store, folder = fill_store(tmp_path / "lake"), tmp_path / "ice"
    export(store, folder)
    catalog = everything(store)
    iceberg = open_folder(folder, catalog)
    before = {
        name: iceberg.load_table(f"miclip.{name}").metadata_location for name in ("images", "top_images", "stages")
    }
    assert not any(change.added or change.removed for change in export(store, folder).values())
    assert before == {name: iceberg.load_table(f"miclip.{name}").metadata_location for name in before}

    publish(store, "extract", A, SITE, top_images=[top(3, 0, 2.0)])
    (old,) = [p for p in catalog.stages if p.stage.subject == B]
    store.delete(f"stages/{old.stage.digest}/published.json")
    store.delete(f"stages/{next(p for p in catalog.stages if 'images' in p.tables).stage.digest}/published.json")
    changes = export(store, folder)
    assert (
        changes["top_images"][1:] == (3, 1, 1)
        and changes["images"][1:] == (0, 0, 1)
        and changes["stages"][1:] == (2, 1, 1)
    )
    for table in ("top_images", "stages"):
        assert iceberg_rows(folder, table) == published_rows(store, table)
    assert iceberg_rows(folder, "images") == []
    assert sorted(found["unit"] for found in iceberg_rows(folder, "top_images")) == [1, 1, 3]


def test_a_column_that_came_later_is_added_and_older_rows_have_none_of_it(tmp_path):
    store, folder = fill_store(tmp_path / "lake"), tmp_path / "ice"
    catalog = everything(store)
    iceberg = open_folder(folder, catalog)
    iceberg.create_namespace("miclip")
    schema = TABLES["bad_inputs"].schema
    iceberg.create_table("miclip.bad_inputs", pa.schema([f.with_nullable(True) for f in schema if f.name != "detail"]))
    export_tables(catalog, iceberg, "miclip")
    assert iceberg_rows(folder, "bad_inputs") == published_rows(store, "bad_inputs")


def test_a_part_that_is_gone_is_no_row_less(tmp_path):
    store = fill_store(tmp_path / "lake")
    catalog = everything(store)
    store.delete(catalog.parts("top_images")[0].key)
    with pytest.raises(DamagedPart):
        export(store, tmp_path / "ice")


def test_an_empty_part_is_left_out(tmp_path):
    store = make_store(str(tmp_path / "lake"))
    publish_rows(store, StageSpec(kind="extract", method=1, subject=A, output="top", params={}), {"top_images": []})
    assert export(store, tmp_path / "ice")["top_images"][1:] == (0, 0, 0)
    assert iceberg_rows(tmp_path / "ice", "top_images") == []


@pytest.mark.slow
def test_parts_in_a_bucket_are_read_there(moto_bucket: str, tmp_path):
    store = make_store(f"s3://{moto_bucket}/lake")
    assert run_spec(store).exit_code == 0
    catalog = open_catalog(store)
    iceberg = open_folder(tmp_path / "ice", catalog)
    export_tables(catalog, iceberg, "miclip")
    assert iceberg.load_table("miclip.selftest").scan().to_arrow().num_rows == 500


def test_a_catalog_that_another_process_changes_at_the_same_time_is_said_and_the_same_again_is_right(
    tmp_path, monkeypatch
):
    store, folder = fill_store(tmp_path / "lake"), tmp_path / "ice"
    catalog = everything(store)
    set_parts = iceberg_module._set_parts

    def later(table: Any, uris: list[str]) -> tuple[int, int]:
        monkeypatch.setattr(iceberg_module, "_set_parts", set_parts)
        export(store, folder)  # while this one has read the table and not written it yet
        return set_parts(table, uris)

    monkeypatch.setattr(iceberg_module, "_set_parts", later)
    with pytest.raises(WorkFailed, match="changed the tables of namespace miclip at the same time"):
        export_tables(catalog, open_folder(folder, catalog), "miclip")
    export(store, folder)
    for table in ("images", "top_images", "stages"):
        assert iceberg_rows(folder, table) == published_rows(store, table)


def test_a_part_of_pyiceberg_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog.sql", None)
    with pytest.raises(MissingPackage, match=r"SQLAlchemy.*miclip\[iceberg\]"):
        export(fill_store(tmp_path / "lake"), tmp_path / "ice")


# -- the command line


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_the_command_line_exports_to_a_folder(tmp_path):
    store = fill_store(tmp_path / "lake")
    words = ["export", "iceberg", "--store", store.uri, "--all", "--to", tmp_path / "ice"]
    first = miclip(*words)
    assert first.exit_code == 0 and "4 tables in namespace miclip: 5 parts added, 0 removed" in first.stdout
    assert "0 parts added, 0 removed" in miclip(*words).stdout


def test_the_python_of_the_page_reads_them(tmp_path, monkeypatch, capsys):
    store = fill_store(tmp_path / "lake")
    export(store, tmp_path / "miclip-iceberg")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python iceberg\n(.*?)^```$", (DOCS / "sql.md").read_text(), re.M | re.S)
    exec(compile(block, "sql.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "value: [[1],[0.75]]" in printed or "value: [[0.75],[1]]" in printed, "the first of each unit, and no other"


@pytest.mark.slow
def test_a_catalog_that_pyiceberg_is_configured_for_takes_the_tables_too(tmp_path):
    """In a process of its own, for pyiceberg reads its configuration once."""
    store, folder = fill_store(tmp_path / "lake"), tmp_path / "ice"
    folder.mkdir()
    place = {"URI": f"sqlite:///{folder}/catalog.db", "WAREHOUSE": f"file://{folder}"}
    env = {**os.environ, **{f"PYICEBERG_CATALOG__LAB__{name}": value for name, value in place.items()}}
    words = ["export", "iceberg", "--store", store.uri, "--all", "--catalog", "lab", "--namespace", "other", "--json"]
    done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], env=env, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert (told["catalog"], told["namespace"], told["tables"][0]["added"]) == ("lab", "other", 1), done.stderr
    catalog = load_catalog("lab", type="sql", uri=place["URI"], warehouse=place["WAREHOUSE"])
    assert catalog.load_table("other.top_images").scan().to_arrow().num_rows == 3


def test_what_cannot_be_exported_is_said(tmp_path):
    store = fill_store(tmp_path / "lake")
    words = ["export", "iceberg", "--store", store.uri, "--all"]
    (tmp_path / "file").write_text("")
    for more, says in (
        ([], "expected --to DIR, or --catalog NAME"),
        (["--to", tmp_path / "file" / "ice"], "name a folder that can be written"),
        (["--to", tmp_path / "lake" / "tables" / "ice"], "is inside the store"),
        (["--to", tmp_path / "ice", "--namespace", "a/b;c"], "--namespace 'a/b;c': expected letters, digits and _"),
        (["--catalog", "nowhere"], "expected one that .pyiceberg.yaml or PYICEBERG_CATALOG__… describes"),
    ):
        result = miclip(*words, *more)
        assert result.exit_code == 2 and says in " ".join(result.stderr.split()), result.output
