"""The Python read API against what was written."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import miclip
from cluster.catalog import Catalog
from cluster.parquet import PartEncoder, sha256
from cluster.read import Lake
from cluster.stores import make_store
from jobs.selftest.work import get_value
from schemas.errors import BadRef, DamagedPart, UnknownTable, UsageError
from schemas.plans import Published, StageSpec, StoredPart
from schemas.tables import TABLES
from tests.published import SPEC, publish_numbers, run_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    publish_numbers(folder)
    return folder


@pytest.fixture(scope="module")
def lake(folder: Path) -> Lake:
    return miclip.open(str(folder))


def test_arrow_polars_and_batches_agree(lake: Lake) -> None:
    table = lake.table("selftest")
    arrow = table.arrow()
    assert arrow.num_rows == 500 and arrow.schema.equals(TABLES["selftest"].schema)
    assert sum(batch.num_rows for batch in table.batches()) == 500
    assert table.polars()["value"].to_list() == arrow["value"].to_pylist()


def test_vectors_come_as_one_tensor_in_row_order(lake: Lake) -> None:
    tensor = lake.table("selftest").torch()
    assert tuple(tensor.shape) == (500, 4)
    first = [math.ldexp(round(get_value(0, variant, row) * 1024), -10) for variant in "ab" for row in range(250)]
    assert tensor[:, 0].tolist() == first
    tensor[0, 0] = 5.0  # ours to change


def test_a_column_of_numbers_is_a_tensor_too(lake: Lake) -> None:
    assert lake.table("selftest").torch("row").tolist() == [*range(250), *range(250)]


def test_columns_and_rows_that_were_not_asked_for_are_left_out(lake: Lake) -> None:
    table = lake.table("selftest", where={"row": [3, 5, 9999]}, columns=["row", "value"])
    assert table.arrow().to_pylist() == [
        {"row": row, "value": get_value(0, variant, row)} for variant in "ab" for row in (3, 5)
    ]
    assert lake.table("selftest", where={"row": 3}).torch().shape == (2, 4)
    assert lake.table("selftest", where={"row": -1}).torch().shape[0] == 0


def test_where_takes_the_stage_by_digest(lake: Lake) -> None:
    digest = lake.stages().to_pylist()[0]["stage"]
    assert set(lake.table("selftest", where={"stage": digest}).arrow()["stage"].to_pylist()) == {digest}


def test_sql_answers_as_arrow(lake: Lake) -> None:
    assert lake.sql("SELECT max(row) AS m FROM selftest").to_pylist() == [{"m": 249}]
    assert lake.tables() == {"selftest": 500, "selftest_summary": 2}


def test_what_is_not_there_is_refused_by_name(lake: Lake) -> None:
    with pytest.raises(UnknownTable, match="activations"):
        lake.table("activations")
    with pytest.raises(UsageError, match=r"no column 'vectr'.* did you mean vector"):
        lake.table("selftest", columns=["vectr"])
    with pytest.raises(UsageError, match="no column 'site'"):
        lake.table("selftest", where={"site": "x"})
    with pytest.raises(UsageError, match="holds string, no numbers"):
        lake.table("selftest").torch("stage")


def test_a_stage_without_files_or_that_is_not_there_has_no_weights(lake: Lake) -> None:
    stage = lake.stages()["stage"][0].as_py()
    for ref in (f"sae:{stage}", "align:0123456789abcdef0123"):
        with pytest.raises(BadRef, match=f"{ref}: found 0 files"):
            lake.weights(ref)


def test_a_missing_part_is_an_error_at_once(tmp_path: Path) -> None:
    publish_numbers(tmp_path)
    next((tmp_path / "tables" / "selftest").rglob("*.parquet")).unlink()
    with pytest.raises(DamagedPart):
        miclip.open(str(tmp_path)).table("selftest")


# ---------------------------------------------------------------- vectors of several models and sites


def activations(stage: StageSpec, rows: int, width: int) -> pa.RecordBatch:
    values = np.arange(rows * width, dtype=np.float32) + width
    act = pa.ListArray.from_arrays(pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32)), pa.array(values))
    schema = TABLES["activations"].schema
    columns = [
        [stage.digest] * rows, [stage.subject] * rows, [stage.params["site"]] * rows,
        [f"{i:032x}" for i in range(rows)], list(range(rows)), [-1] * rows, act.cast(schema.field("act").type),
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) if isinstance(c, list) else c for c, f in zip(columns, schema)], schema=schema
    )


@pytest.fixture
def wide(tmp_path: Path) -> Lake:
    """Two models of widths 8 and 5, two sites each, 700 rows in parts of 400 and 300."""
    store = make_store(str(tmp_path))
    stages = []
    for model, width in (("demo:a", 8), ("demo:b", 5)):
        for site in ("resid_post.0@cls", "resid_post.1@cls"):
            stage = StageSpec(kind="extract", method=1, subject=model, output="activations", params={"site": site})
            parts = []
            for number, (start, stop) in enumerate([(0, 400), (400, 700)]):
                encoder = PartEncoder(TABLES["activations"])
                encoder.add(activations(stage, 700, width).slice(start, stop - start))
                for data, rows in ((part.read(), part.rows) for part in encoder.finish()):
                    key = f"tables/activations/s={stage.digest}/part-{number}.parquet"
                    store.create(key, data)
                    parts.append(
                        StoredPart(table="activations", key=key, rows=rows, bytes=len(data), sha256=sha256(data))
                    )
            stages.append(Published(stage=stage, tables={"activations": tuple(parts)}, content="x"))
    return Lake(Catalog(store, tuple(stages)))


def test_one_site_is_read_from_its_own_parts_alone(wide: Lake) -> None:
    where = {"model": "demo:a", "site": "resid_post.1@cls"}
    tensor = wide.table("activations", where=where).torch()
    assert tensor.numpy().tolist() == (np.arange(700 * 8, dtype=np.float32) + 8).reshape(700, 8).tolist()
    for path in Path(wide._catalog.store.uri).rglob("*.parquet"):  # the others' parts could be unreadable
        if wide.stages().to_pylist()[1]["stage"] not in str(path):
            path.write_bytes(b"x" * path.stat().st_size)
    assert wide.table("activations", where=where).torch().equal(tensor)


def test_several_models_of_one_width_stack_and_of_two_widths_are_refused(wide: Lake) -> None:
    assert wide.table("activations", where={"model": ["demo:a"]}).torch().shape == (1400, 8)
    with pytest.raises(UsageError, match="different widths; choose one model and site"):
        wide.table("activations").torch()
    with pytest.raises(UsageError, match="different widths"):
        wide.table("activations", where={"token": -1}).torch()


def test_a_row_filter_and_the_fast_path_give_the_same_values(wide: Lake) -> None:
    where = {"model": "demo:b", "site": "resid_post.0@cls"}
    assert (
        wide.table("activations", where={**where, "token": -1})
        .torch()
        .equal(wide.table("activations", where=where).torch())
    )


def test_a_table_of_more_parts_than_a_process_may_open_is_read(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    assert run_spec(store, SPEC, "rows=200", "shard_rows=2", "variants=[a]").exit_code == 0
    lake = miclip.open(str(tmp_path))
    expected = np.stack(lake.sql("SELECT vector FROM selftest ORDER BY row")["vector"].to_numpy())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        found = lake.table("selftest").numpy()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.shape == (200, 4) and (found == expected).all()
