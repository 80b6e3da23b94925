"""Other engines read what is published, without us: DuckDB, Polars, DataFusion, pyarrow and Spark, by plain glob."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from datafusion import SessionContext

from cluster.catalog import Scope, open_catalog
from cluster.ledger import load_published
from cluster.parquet import PartEncoder
from cluster.sql import run_sql
from cluster.views import make_views
from schemas import layout
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Published
from schemas.tables import TABLES
from tests.lakes import Lake, export
from tests.rows import make_rows
from tests.spark_session import open_spark, spark_rows

VIT, RESNET = "demo:clip-p8", "demo:clip-rn"
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Activations of one CLIP at two sites and embeddings of two, over 48 images in shards of 20: three parts a stage."""
    world = export(tmp_path_factory.mktemp("world"), 48)
    effort = {"batch_size": 10, "shard_rows": 20}
    spec = {
        "kind": "pipeline",
        "name": "engines",
        "images": {"ref": f"folder:{world}/images", "labels": f"file:{world}/labels.parquet"},
        "stages": {
            "acts": {
                "kind": "extract",
                "model": VIT,
                "sites": ["resid_post.-2@patch", "mlp_act.1@patch"],
                "outputs": ["activations"],
                **effort,
            },
            "embeds": {"kind": "extract", "model": [VIT, RESNET], "outputs": ["embeddings"], **effort},
        },
    }
    lake = Lake(tmp_path_factory.mktemp("lake"))
    report = lake.run(PipelineSpec.model_validate(spec, strict=False))
    assert report.exit_code == 0, report.failures
    return lake


def stages(lake: Lake, table: str) -> list[Published]:
    return open_catalog(lake.store, Scope()).select(table)


def glob(lake: Lake, published: Published, table: str) -> str:
    """What a person types who has only used `ls`."""
    return f"{lake.uri}/{layout.table_prefix(table, published.stage)}*.parquet"


# -- the engines: a glob to rows; maps are dicts, bytes are bytes


def with_duckdb(pattern: str) -> Rows:
    """DuckDB adds the path keys m and s by itself; the other columns are those of the file."""
    rows = duckdb.connect().sql(f"SELECT * FROM '{pattern}'").to_arrow_table().to_pylist(maps_as_pydicts="strict")
    assert all(row.pop("s", row["stage"]) == row["stage"] and row.pop("m", "demo").startswith("demo") for row in rows)
    return rows


def with_polars(pattern: str) -> Rows:
    return pl.scan_parquet(pattern).collect().to_dicts()


def with_datafusion(pattern: str) -> Rows:
    context = SessionContext()
    frame = context.read_parquet(pattern if "*" not in pattern else pattern.rpartition("/")[0] + "/")
    return pa.Table.from_batches(frame.collect(), frame.schema()).to_pylist(maps_as_pydicts="strict")


def with_pyarrow(pattern: str) -> Rows:
    files = [str(path) for path in sorted(Path(pattern).parent.glob(Path(pattern).name))]
    return ds.dataset(files).to_table().to_pylist(maps_as_pydicts="strict")


ENGINES: dict[str, Callable[[str], Rows]] = {
    "duckdb": with_duckdb,
    "polars": with_polars,
    "datafusion": with_datafusion,
    "pyarrow": with_pyarrow,
}
each_engine = pytest.mark.parametrize("read", ENGINES.values(), ids=ENGINES)


def in_order(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: (row["stage"], row["image_index"], row.get("token", 0)))


# -- published stages


@each_engine
@pytest.mark.parametrize("table", ["activations", "embeddings"])
def test_every_engine_reads_the_vectors_of_a_stage_by_glob_as_miclip_sql_does(lake, table, read):
    found = stages(lake, table)
    assert len(found) == 2
    for published in found:
        query = f"SELECT * FROM {table} WHERE stage = '{published.stage.digest}'"
        expected = run_sql(open_catalog(lake.store, Scope()), query).read_all().to_pylist()
        rows = read(glob(lake, published, table))
        assert len(expected) == published.rows(table) > 40
        assert in_order(rows) == in_order(expected)


@each_engine
def test_what_engines_read_is_what_the_model_gave_rounded_to_fp16(lake, read):
    (published,) = [p for p in stages(lake, "embeddings") if p.stage.subject == VIT]
    vectors = np.array([row["embedding"] for row in read(glob(lake, published, "embeddings"))], np.float64)
    assert np.array_equal(vectors, vectors.astype(np.float16)) and np.abs(vectors).max() > 0.1


def test_hive_keys_of_a_whole_zoo_do_not_hide_the_columns_model_and_stage(lake):
    """The path says m= and s=, the rows say model and stage; every engine gives all four, and they agree."""
    root = f"{lake.uri}/tables/embeddings"
    query = f"SELECT * FROM read_parquet('{root}/*/*/*.parquet', hive_partitioning = true)"
    context = SessionContext()
    context.register_parquet("e", root, table_partition_cols=[("m", pa.string()), ("s", pa.string())])
    answers = {
        "duckdb": duckdb.connect().sql(query).to_arrow_table().to_pylist(),
        "polars": pl.scan_parquet(root, hive_partitioning=True).collect().to_dicts(),
        "datafusion": pa.Table.from_batches(context.sql("SELECT * FROM e").collect()).to_pylist(),
        "pyarrow": ds.dataset(root, partitioning="hive").to_table().to_pylist(),
    }
    expected = {(VIT, "demo-clip-p8"), (RESNET, "demo-clip-rn")}
    for engine, rows in answers.items():
        assert len(rows) == sum(p.rows("embeddings") for p in stages(lake, "embeddings")), engine
        assert {(row["model"], row["m"]) for row in rows} == expected, engine
        assert all(row["s"] == row["stage"] for row in rows), engine


def test_a_zoo_whose_models_differ_in_width_is_one_table(lake):
    root = f"{lake.uri}/tables/activations"
    widths = duckdb.connect().sql(f"SELECT site, len(act) FROM '{root}/*/*/*.parquet' GROUP BY ALL ORDER BY 1")
    assert widths.fetchall() == [("mlp_act.1@patch", 384), ("resid_post.3@patch", 96)]


def test_stored_vectors_take_at_most_095_of_raw_fp16(lake):
    """Two bytes a value would be raw fp16; residual stream and MLP neurons of a trained model, all patches."""
    for published in stages(lake, "activations"):
        values = stored = 0
        for part in published.tables["activations"]:
            meta = pq.read_metadata(io.BytesIO(lake.store.get(part.key)))
            for group in range(meta.num_row_groups):
                columns = [meta.row_group(group).column(i) for i in range(meta.num_columns)]
                (vector,) = [c for c in columns if c.path_in_schema == "act.list.element"]
                values, stored = values + vector.num_values, stored + vector.total_compressed_size
        share = stored / (2 * values)
        print(f"{published.stage.params['site']}: {share:.3f} of raw fp16, {values:,} values")
        assert values > 200_000 and share <= 0.95


@pytest.mark.parametrize("engine", ["duckdb", "polars", "datafusion"])
def test_the_text_of_miclip_views_runs_in_its_engine(lake, engine):
    text = make_views(open_catalog(lake.store, Scope()), engine)
    expected = sum(p.rows("activations") for p in stages(lake, "activations"))
    if engine == "duckdb":
        connection = duckdb.connect()
        connection.execute(text)
        joined = connection.sql("SELECT count(*) FROM activations JOIN images USING (image_id)")
        assert joined.fetchall() == [(expected,)]
        return
    names: dict[str, Any] = {}
    exec(text, names)
    if engine == "polars":
        assert names["activations"].select(pl.len()).collect().item() == expected
    else:
        (batch,) = names["ctx"].sql("SELECT count(*) AS n FROM activations").collect()
        assert batch.to_pydict() == {"n": [expected]}


# -- every table


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One part of every table, as a worker would have stored it: table -> path."""
    folder = tmp_path_factory.mktemp("parts")
    for name, table in TABLES.items():
        encoder = PartEncoder(table)
        encoder.add(make_rows(name, 40))
        (part,) = encoder.finish()
        data = part.read()
        (folder / f"{name}.parquet").write_bytes(data)
    return {name: str(folder / f"{name}.parquet") for name in TABLES}


@each_engine
@pytest.mark.parametrize("table", TABLES)
def test_every_engine_reads_every_table_value_for_value(parts, table, read):
    assert read(parts[table]) == make_rows(table, 40).to_pylist(maps_as_pydicts="strict")


def duckdb_type(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"MAP({duckdb_type(kind.key_type)}, {duckdb_type(kind.item_type)})"
    if pa.types.is_list(kind):
        return f"{duckdb_type(kind.value_type)}[]"
    names = {"string": "VARCHAR", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT", "double": "DOUBLE"}
    return {**names, "bool": "BOOLEAN", "binary": "BLOB"}[str(kind)]


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without what engines are free to choose: field names, nullability, the layout of strings."""
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(plain(kind.value_type))
    words = {"string_view": pa.string(), "large_string": pa.string(), "binary_view": pa.binary()}
    return {**words, "large_binary": pa.binary()}.get(str(kind), kind)


@pytest.mark.parametrize("table", TABLES)
def test_every_engine_finds_the_declared_types(parts, table):
    schema = TABLES[table].schema
    relation = duckdb.connect().sql(f"SELECT * FROM '{parts[table]}'")
    assert [str(t) for t in relation.types] == [duckdb_type(t) for t in schema.types]
    declared = [plain(t) for t in schema.types]
    frame = pl.read_parquet(parts[table])
    assert frame.columns == schema.names
    assert [plain(t) for t in frame.to_arrow().schema.types] == declared
    assert [plain(t) for t in SessionContext().read_parquet(parts[table]).schema().types] == declared


# -- Spark, only in `make test-all`


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    yield from open_spark()


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_spark_reads_every_table_value_for_value(spark, parts, table):
    assert spark_rows(spark.read.parquet(parts[table])) == make_rows(table, 40).to_pylist(maps_as_pydicts="strict")


@pytest.mark.slow
def test_spark_reads_stages_by_glob_whole_zoos_by_folder_and_the_views_that_we_write(spark, lake):
    catalog = open_catalog(lake.store, Scope())
    for table in ("activations", "embeddings"):
        expected = in_order(run_sql(catalog, f"SELECT * FROM {table}").read_all().to_pylist())
        rows = [row for p in stages(lake, table) for row in spark_rows(spark.read.parquet(glob(lake, p, table)))]
        assert in_order(rows) == expected
    zoo = spark_rows(spark.read.parquet(f"{lake.uri}/tables/embeddings"))
    assert {(row["model"], row["m"]) for row in zoo} == {(VIT, "demo-clip-p8"), (RESNET, "demo-clip-rn")}
    assert all(row["s"] == row["stage"] for row in zoo)
    for statement in make_views(catalog, "spark").split(";\n"):
        if statement.strip():
            spark.sql(statement)
    assert spark.sql("SELECT count(*) FROM activations").collect()[0][0] == catalog.tables["activations"]


def test_a_stage_that_is_not_published_is_read_by_no_glob_of_ours(lake):
    """What `load_published` names is exactly what lies in the folder: nothing else is among the parts."""
    for table in ("activations", "embeddings"):
        for found in stages(lake, table):
            published = load_published(lake.store, found.stage.digest)
            assert published is not None
            assert [p.key for p in published.tables[table]] == lake.store.list(layout.table_prefix(table, found.stage))
