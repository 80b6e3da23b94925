"""SQL over published parts: the right rows, only reading, and errors that say what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.catalog import Catalog, open_catalog
from cluster.sql import run_sql
from cluster.stores import Store, make_store
from cluster.views import make_views
from jobs.selftest.work import get_value
from schemas.errors import DamagedPart, UsageError
from tests.published import publish_numbers, run_spec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return publish_numbers(tmp_path_factory.mktemp("lake with 'quotes'"))


@pytest.fixture(scope="module")
def catalog(store: Store) -> Catalog:
    return open_catalog(store)


def test_rows_are_those_that_were_computed(catalog: Catalog) -> None:
    rows = run_sql(catalog, "SELECT row, value FROM selftest JOIN stages USING (stage) "
                            "WHERE table_name = 'selftest' AND params LIKE '%\"a\"%' ORDER BY row").read_all()  # fmt: skip
    assert rows["row"].to_pylist() == list(range(250))
    assert rows["value"].to_pylist() == [get_value(0, "a", row) for row in range(250)]


def test_the_summary_agrees_with_the_sum_of_its_rows(catalog: Catalog) -> None:
    query = (
        "SELECT s.total, (SELECT sum(value) FROM selftest t WHERE t.stage = s.stage) AS again FROM selftest_summary s"
    )
    for row in run_sql(catalog, query).read_all().to_pylist():
        assert row["total"] == pytest.approx(row["again"], abs=1e-9)


@pytest.mark.parametrize(
    "query", ["SHOW TABLES", "DESCRIBE selftest", "FROM selftest LIMIT 1", "EXPLAIN SELECT 1", "SUMMARIZE stages"]
)
def test_reading_statements_of_every_form_work(catalog: Catalog, query: str) -> None:
    assert run_sql(catalog, query).read_all().num_rows >= 1


@pytest.mark.parametrize(
    "query",
    [
        "DROP VIEW selftest",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "SELECT 1; SELECT 2",
        "ATTACH 'x.db'",
        "CREATE TABLE x(a INT)",
        "",
    ],
)
def test_only_one_reading_statement_is_accepted(catalog: Catalog, query: str) -> None:
    with pytest.raises(UsageError, match="expected one SELECT"):
        run_sql(catalog, query)


def test_a_wrong_column_is_answered_with_the_columns_there_are(catalog: Catalog) -> None:
    with pytest.raises(UsageError) as caught:
        run_sql(catalog, "SELECT valu FROM selftest")
    assert 'Candidate bindings: "value"' in str(caught.value)
    assert "columns of selftest: stage, row, value, vector" in str(caught.value)
    assert "tables:" not in str(caught.value)  # the table is right, and there may be dozens


def test_a_wrong_table_is_answered_with_the_tables_there_are(catalog: Catalog) -> None:
    with pytest.raises(UsageError) as caught:
        run_sql(catalog, "SELECT * FROM selftests")
    assert "tables: stages, selftest, selftest_summary" in str(caught.value)
    assert "pg_" not in str(caught.value)


def test_a_table_without_parts_is_an_empty_view_with_its_types(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    run_spec(store, "kind: selftest\nname: none\nrows: 0\n")
    catalog = open_catalog(store)
    assert run_sql(catalog, "SELECT count(*) AS n FROM selftest").read_all().to_pylist() == [{"n": 0}]
    types = {
        row["column_name"]: row["column_type"] for row in run_sql(catalog, "DESCRIBE selftest").read_all().to_pylist()
    }
    assert types == {"stage": "VARCHAR", "row": "BIGINT", "value": "DOUBLE", "vector": "FLOAT[]"}


def test_a_damaged_table_is_an_error_only_for_queries_that_mention_it(tmp_path: Path) -> None:
    catalog = open_catalog(publish_numbers(tmp_path))
    (tmp_path / catalog.parts("selftest")[0].key).unlink()
    assert run_sql(catalog, "SELECT * FROM selftest_summary").read_all().num_rows == 2
    with pytest.raises(DamagedPart):
        run_sql(catalog, "SELECT count(*) FROM selftest")


@pytest.mark.parametrize("where", ["the footer", "a page"])
def test_a_part_of_the_right_size_with_other_bytes_is_named_as_damage(tmp_path: Path, where: str) -> None:
    catalog = open_catalog(publish_numbers(tmp_path))
    path = tmp_path / catalog.parts("selftest")[0].key
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half) if where == "the footer" else bytes(half) + data[half:])
    with pytest.raises(DamagedPart, match="`miclip verify`"):
        run_sql(catalog, "SELECT sum(row), sum(value), max(stage) FROM selftest").read_all()


def test_a_file_of_ones_own_that_is_not_there_is_no_damage(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No files found"):
        run_sql(catalog, f"SELECT * FROM selftest JOIN '{tmp_path}/mine.parquet' USING (row)")


def test_what_goes_wrong_at_the_end_of_a_long_answer_is_said_as_at_its_beginning(catalog: Catalog) -> None:
    """Of millions of rows the last one is no number, which nobody can know before it is read; beside what the query names."""
    query = "SELECT CAST(CASE WHEN range = 2_999_999 THEN 'ten' ELSE '1' END AS INT) AS n FROM range(3_000_000)"
    with pytest.raises(UsageError, match="Could not convert string 'ten'") as refused:
        for _ in run_sql(catalog, f"{query} WHERE EXISTS (FROM selftest)"):
            pass
    assert "columns of selftest: stage, row" in str(refused.value)


def test_sql_reads_from_a_bucket(moto_bucket: str) -> None:
    store = make_store(f"s3://{moto_bucket}/lake")
    assert run_spec(store).exit_code == 0
    answer = run_sql(
        open_catalog(store), "SELECT count(*) AS n, count(DISTINCT stage) AS stages FROM selftest"
    ).read_all()
    assert answer.to_pylist() == [{"n": 500, "stages": 2}]


# ---------------------------------------------------------------- views for others


def test_the_duckdb_views_give_the_same_answer_elsewhere(catalog: Catalog) -> None:
    import duckdb

    connection = duckdb.connect()
    connection.execute(make_views(catalog, "duckdb"))
    assert connection.execute("SELECT count(*), sum(row) FROM selftest").fetchall() == [(500, 2 * sum(range(250)))]


def test_the_polars_script_gives_the_same_rows(catalog: Catalog) -> None:
    pytest.importorskip("polars")
    names: dict[str, object] = {}
    exec(make_views(catalog, "polars"), names)
    assert names["selftest"].collect().shape == (500, 4)  # type: ignore[attr-defined]


def test_the_datafusion_script_gives_the_same_rows(catalog: Catalog) -> None:
    pytest.importorskip("datafusion")
    names: dict[str, object] = {}
    exec(make_views(catalog, "datafusion"), names)
    rows = names["ctx"].sql("SELECT count(*) AS n, sum(row) AS s FROM selftest").to_pylist()  # type: ignore[attr-defined]
    assert rows == [{"n": 500, "s": 2 * sum(range(250))}]


def test_trino_tables_are_folders_of_one_stage_with_declared_types(catalog: Catalog) -> None:
    text = make_views(catalog, "trino")
    stage = catalog.stages[0].stage
    assert f"s={stage.digest}/" in text and '"vector" array(real)' in text and '"row" bigint' in text
    assert text.count("CREATE TABLE") == 4 and text.count("CREATE OR REPLACE VIEW") == 3


def test_spark_views_name_every_part_once(catalog: Catalog) -> None:
    text = make_views(catalog, "spark")
    for part in catalog.parts("selftest"):
        assert text.count(part.key) == 1


def test_a_table_that_nobody_filled_is_named_with_the_kinds_that_make_it(catalog: Catalog) -> None:
    with pytest.raises(UsageError) as refused:
        run_sql(catalog, "SELECT * FROM attention_maps JOIN activations USING (image_id)")
    lines = str(refused.value).splitlines()
    assert sorted(lines[:2]) == [
        "no published rows of activations; a stage of kind extract makes them",
        "no published rows of attention_maps; a stage of kind attention_maps makes them",
    ]
    assert lines[2].endswith("name an earlier run that has them with --run")
    assert lines[3].startswith("tables: stages, selftest")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attention_map", "no table is called attention_map; if attention_maps is meant: no published rows of attention_maps"),
        ("trace_errors", "trace_errors is a kind of stages, no table; they make layer_trace, error_traces, trace_summary"),
        ("selftst", "no table is called selftst; did you mean selftest?"),
        ("whatever", "no table is called whatever\ntables"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_table_is_answered_with_what_may_be_meant(catalog: Catalog, name: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        run_sql(catalog, f"SELECT * FROM {name} JOIN stages USING (stage)")
    assert said in str(refused.value) and "\ntables: stages, selftest" in str(refused.value)
