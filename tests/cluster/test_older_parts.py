"""Parts from before their table had some column: what may be null is null, and for the rest the reader says what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import miclip
from cluster.catalog import Catalog, open_catalog
from cluster.inputs import StoreInputs
from cluster.ledger import load_published
from cluster.named_queries import run_named
from cluster.sql import run_sql
from cluster.stores.base import Store, make_store
from cluster.views import Engine, make_views
from schemas.errors import OlderPart
from schemas.plans import StageSpec
from schemas.tables import TABLES
from tests.made_up_descriptions import Row, publish_rows
from tests.made_up_saes import save_run
from tests.rows import make_rows
from tests.spark_session import open_spark, spark_rows

TABLE = "predictions"
NOW = dataclasses.replace(
    TABLES[TABLE],
    columns=tuple(dataclasses.replace(c, nullable=c.name == "probability") for c in TABLES[TABLE].columns),
)
"""As it is, but that it may be unknown how probable a class is."""


@contextmanager
def lacking(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[None]:
    """Inside, the table has not got these columns yet."""
    older = dataclasses.replace(NOW, columns=tuple(c for c in NOW.columns if c.name not in names))
    with monkeypatch.context() as context:
        context.setitem(TABLES, TABLE, older)
        yield


ORDERS = [("old", "new"), ("new", "old"), ("old",)]


def rows_of(first: int) -> list[Row]:
    return [
        {"image_id": f"{i:032x}", "image_index": i, "rank": 0, "class_id": 0, "class_name": "a", "score": 1.0 * i, "probability": 0.5}
        for i in range(first, first + 3)
    ]  # fmt: skip


def make_stage(subject: str) -> StageSpec:
    return StageSpec(kind="extract", method=1, subject=subject, output="predictions", params={})


def publish_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch, column: str, order: Sequence[str] = ("old", "new")
) -> Store:
    """An older stage of three rows without this column, and one of now; `TABLES` is as of now."""
    store = make_store(str(folder))
    monkeypatch.setitem(TABLES, TABLE, NOW)
    with lacking(monkeypatch, column):
        older = [{name: value for name, value in row.items() if name != column} for row in rows_of(0)]
        publish_rows(store, make_stage("old"), {TABLE: older})
    publish_rows(store, make_stage("new"), {TABLE: rows_of(3)})
    save_run(store, "demo-00001", [make_stage(subject) for subject in order])
    return store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return publish_both(tmp_path, monkeypatch, "probability")


def test_people_read_null_where_a_part_has_no_such_column(store: Store) -> None:
    lake = miclip.open(store.uri)
    found = lake.table(TABLE).arrow()
    assert found.schema.equals(NOW.schema)
    by_model = {"old": [None] * 3, "new": [0.5] * 3}
    for model, expected in by_model.items():
        assert lake.table(TABLE, {"model": model}, ["probability"]).arrow()["probability"].to_pylist() == expected
    assert lake.table(TABLE, {"probability": 0.5}, ["image_index"]).arrow()["image_index"].to_pylist() == [3, 4, 5]
    assert sorted(lake.table(TABLE).numpy("score").tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("between", [None, ("image_index", [(1, 3)])])
def test_workers_read_null_there_too(store: Store, between: tuple[str, list[tuple[int, int]]] | None) -> None:
    def read(columns: list[str] | None) -> list[Row]:
        batches = StoreInputs(store).table(make_stage("old").digest, TABLE, columns, between)
        return [row for batch in batches for row in batch.to_pylist()]

    wanted = range(3) if between is None else range(1, 3)
    assert read(["probability", "image_index"]) == [{"probability": None, "image_index": i} for i in wanted]
    assert [list(row) for row in read(None)] == [NOW.schema.names] * len(wanted)
    assert read(["class_name"]) == [{"class_name": "a"}] * len(wanted)


SAID = "table predictions: some rows were written before it had class_name; leave the run that made them out of scope"


def test_what_may_not_be_null_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, said = publish_both(tmp_path, monkeypatch, "class_name"), SAID
    with pytest.raises(OlderPart, match=said):
        miclip.open(store.uri).table(TABLE).arrow()
    for between in (None, ("image_index", [(1, 3)])):
        with pytest.raises(OlderPart, match=said):
            list(StoreInputs(store).table(make_stage("old").digest, TABLE, None, between))
    assert len(miclip.open(store.uri).table(TABLE, columns=["score"]).arrow()) == 6


def test_a_matrix_of_vectors_needs_them_in_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, table = make_store(str(tmp_path)), TABLES["embeddings"]
    rows = [{"image_id": f"{i:032x}", "image_index": i, "norm": 1.0, "embedding": [0.5, 1.0]} for i in range(3)]
    publish_rows(store, make_stage("new"), {"embeddings": rows})
    with monkeypatch.context() as context:
        columns = tuple(c for c in table.columns if c.name != "embedding")
        context.setitem(TABLES, "embeddings", dataclasses.replace(table, columns=columns))
        publish_rows(store, make_stage("old"), {"embeddings": rows})
    for number, order in enumerate(ORDERS):
        save_run(store, f"demo-{number:05d}", [make_stage(subject) for subject in order])
        lake = miclip.open(store.uri, run=f"demo-{number:05d}")
        with pytest.raises(OlderPart, match="table embeddings: some rows were written before it had embedding"):
            lake.table("embeddings").numpy()
        assert len(lake.table("embeddings").numpy("norm")) == 3 * len(order)


# ---------------------------------------------------------------- SQL

each_order = pytest.mark.parametrize("order", ORDERS, ids="-".join)
PROBABILITIES: dict[str, list[tuple[int, float | None]]] = {
    "old": [(0, None), (1, None), (2, None)],
    "new": [(3, 0.5), (4, 0.5), (5, 0.5)],
}


def probabilities(order: Sequence[str]) -> list[tuple[int, float | None]]:
    return sorted(pair for subject in order for pair in PROBABILITIES[subject])


@each_order
def test_sql_reads_null_where_a_part_has_no_such_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Sequence[str]
) -> None:
    catalog = open_catalog(publish_both(tmp_path, monkeypatch, "probability", order))
    rows = run_sql(catalog, f"SELECT * FROM {TABLE}").read_all()
    assert rows.schema.names == NOW.schema.names
    assert sorted((row["image_index"], row["probability"]) for row in rows.to_pylist()) == probabilities(order)
    known = run_sql(catalog, f"SELECT count(probability) AS n, typeof(any_value(probability)) AS kind FROM {TABLE}")
    (row,) = known.read_all().to_pylist()
    assert row["n"] == 3 * ("new" in order) and row["kind"] == "FLOAT"


@each_order
def test_sql_refuses_what_may_not_be_null_if_the_query_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Sequence[str]
) -> None:
    catalog = open_catalog(publish_both(tmp_path, monkeypatch, "class_name", order))
    for query in (f"SELECT * FROM {TABLE}", f"SELECT max(class_name) FROM {TABLE}"):
        with pytest.raises(OlderPart, match=f"^{SAID}"):
            run_sql(catalog, query).read_all()
    assert run_sql(catalog, f"SELECT count(score) AS n FROM {TABLE}").read_all().to_pylist() == [{"n": 3 * len(order)}]


def test_a_stage_that_an_older_version_began_is_read_to_its_end(store: Store) -> None:
    """Its first part has another column than its last one, in either order, or one in their midst is the odd one."""
    for order in MIXED:
        found = run_sql(one_stage(store, order), f"SELECT probability FROM {TABLE}").read_all()["probability"]
        assert (len(found), found.null_count) == (3 * len(order), 3 * order.count("old"))


MIXED = [("old", "new"), ("new", "old"), ("old", "new", "old"), ("new", "old", "new")]


def one_stage(store: Store, order: Sequence[str]) -> Catalog:
    """A stage whose parts two versions wrote, shard by shard in this order."""
    found = {name: load_published(store, make_stage(name).digest) for name in ("old", "new")}
    published = [one for name in order if (one := found[name]) is not None]
    parts = tuple(part for one in published for part in one.tables[TABLE])
    return Catalog(store, (published[-1].model_copy(update={"tables": {TABLE: parts}}),))


@pytest.mark.parametrize("order", MIXED, ids="-".join)
def test_sql_refuses_what_may_not_be_null_wherever_in_a_stage_the_older_part_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Sequence[str]
) -> None:
    catalog = one_stage(publish_both(tmp_path, monkeypatch, "class_name"), order)
    with pytest.raises(OlderPart, match=f"^{SAID}"):
        run_sql(catalog, f"SELECT count(class_name) AS named FROM {TABLE}").read_all()
    assert run_sql(catalog, f"SELECT score FROM {TABLE}").read_all().num_rows == 3 * len(order)


def test_a_part_is_looked_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, read = open_catalog(store), []
    really = pq.read_schema
    monkeypatch.setattr(pq, "read_schema", lambda path, **given: (read.append(path), really(path, **given))[1])
    for _ in range(2):
        assert run_sql(catalog, f"SELECT score FROM {TABLE}").read_all().num_rows == 6
    assert len(read) == len(set(read)) == 2


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
def test_named_queries_read_older_parts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Sequence[str]
) -> None:
    """Of the accuracy of a model that had no probabilities yet only the probability is unknown."""
    store = publish_both(tmp_path / "a", monkeypatch, "probability", order)
    rows = run_named(label_images(store, order), "accuracy", {}).read_all().to_pylist()
    assert {row["model"]: (row["images"], row["accuracy"], row["mean_probability"]) for row in rows} == {
        "old": (3, 1.0, None), "new": (3, 1.0, 0.5),
    }  # fmt: skip
    store = publish_both(tmp_path / "b", monkeypatch, "class_name", order)
    with pytest.raises(OlderPart, match=f"^{SAID}"):
        run_named(label_images(store, order), "accuracy", {}).read_all()


def label_images(store: Store, order: Sequence[str]) -> Catalog:
    """What is published, and an index of its images, all of them an a."""
    images = [
        {**row, "image_id": f"{i:032x}", "image_index": i, "label": "a"}
        for i, row in enumerate(make_rows("images", 6).to_pylist())
    ]
    index = StageSpec(kind="index_images", method=1, subject="world:", output="images", params={})
    publish_rows(store, index, {"images": images})
    save_run(store, "demo-00002", [index, *(make_stage(subject) for subject in order)])
    return open_catalog(store)


# ---------------------------------------------------------------- views for other engines


def read_view(catalog: Catalog, engine: Engine, query: str) -> list[Row]:
    """The answer of an engine that ran the text of `miclip views`."""
    names: dict[str, Any] = {}
    text = make_views(catalog, engine)
    if engine == "duckdb":
        connection = duckdb.connect()
        connection.execute(text)
        return connection.sql(query).to_arrow_table().to_pylist()
    exec(text, names)
    if engine == "polars":
        return pl.SQLContext({TABLE: names[TABLE]}).execute(query).collect().to_dicts()
    return pa.Table.from_batches(names["ctx"].sql(query).collect()).to_pylist()


@each_order
@pytest.mark.parametrize("engine", ["duckdb", "polars", "datafusion"])
def test_views_read_null_where_a_part_has_no_such_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, order: Sequence[str]
) -> None:
    catalog = open_catalog(publish_both(tmp_path, monkeypatch, "probability", order))
    rows = read_view(catalog, engine, f"SELECT * FROM {TABLE}")
    assert list(rows[0]) == NOW.schema.names
    assert sorted((row["image_index"], row["probability"]) for row in rows) == probabilities(order)


def test_views_refuse_what_may_not_be_null_or_name_it_in_a_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog(publish_both(tmp_path, monkeypatch, "class_name"))
    with pytest.raises(duckdb.Error, match=SAID):
        read_view(catalog, "duckdb", f"SELECT class_name FROM {TABLE}")
    assert len(read_view(catalog, "duckdb", f"SELECT score FROM {TABLE}")) == 6
    marks: dict[Engine, str] = {"polars": "#", "datafusion": "#", "trino": "--"}
    others: tuple[Engine, ...] = ("polars", "datafusion")
    for engine, mark in marks.items():
        assert f"\n{mark} class_name: null where {SAID}" in make_views(catalog, engine)
    for engine in others:
        rows = read_view(catalog, engine, f"SELECT class_name FROM {TABLE} ORDER BY image_index")
        assert [row["class_name"] for row in rows] == [None] * 3 + ["a"] * 3


def test_views_of_parts_of_now_stay_short(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    publish_rows(store, make_stage("new"), {TABLE: rows_of(0)})
    save_run(store, "demo-00001", [make_stage("new")])
    words: dict[Engine, str] = {
        "duckdb": "schema =",
        "polars": "missing_",
        "datafusion": "path, schema",
        "spark": "CAST(",
    }
    for engine, word in words.items():
        assert word not in make_views(open_catalog(store), engine).partition("stages")[0]


@pytest.mark.slow
def test_spark_reads_null_and_refuses_what_may_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spark in open_spark():
        for order in ORDERS[:2]:
            folder = tmp_path / "-".join(order)
            catalog = open_catalog(publish_both(folder / "a", monkeypatch, "probability", order))
            make_in_spark(spark, catalog)
            rows = spark_rows(spark.sql(f"SELECT * FROM {TABLE}"))
            assert sorted((row["image_index"], row["probability"]) for row in rows) == probabilities(order)
            make_in_spark(spark, open_catalog(publish_both(folder / "b", monkeypatch, "class_name", order)))
            assert spark.sql(f"SELECT count(score) FROM {TABLE}").collect()[0][0] == 6
            with pytest.raises(Exception, match=SAID):
                spark.sql(f"SELECT class_name FROM {TABLE}").collect()


def make_in_spark(spark: Any, catalog: Catalog) -> None:
    for statement in make_views(catalog, "spark").split(";\n"):
        if statement.strip():
            spark.sql(statement)
