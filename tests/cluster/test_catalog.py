"""Which stages are in scope, and that damage is named instead of read around."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.catalog import Scope, find_unnamed, open_catalog, verify
from cluster.runs import RunTables, load_tables, save_tables
from cluster.stores import Store
from schemas.errors import DamagedPart, UnknownRun, UnknownTable
from tests.published import SPEC, publish_numbers, run_spec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return publish_numbers(tmp_path)


def test_a_finished_run_has_two_stages_of_250_rows_and_their_summaries(store: Store) -> None:
    catalog = open_catalog(store)
    assert catalog.tables == {"selftest": 500, "selftest_summary": 2}
    assert len(catalog.parts("selftest")) == 6


def test_the_stages_table_says_what_each_stage_was(store: Store) -> None:
    rows = open_catalog(store).as_table().to_pylist()
    assert [(r["table_name"], r["rows"], r["parts"]) for r in rows] == [
        ("selftest", 250, 3),
        ("selftest_summary", 1, 1),
    ] * 2
    assert [json.loads(r["params"])["variant"] for r in rows] == ["a", "a", "b", "b"]


def test_the_newest_finished_run_of_each_pipeline_is_read(store: Store) -> None:
    run_spec(store, SPEC, "rows=50")
    run_spec(store, SPEC, "name=other", "rows=30", "seed=1")
    assert open_catalog(store).tables["selftest"] == 2 * 50 + 2 * 30
    assert open_catalog(store, Scope(pipeline="numbers")).tables["selftest"] == 100
    assert open_catalog(store, Scope(run="numbers-00001")).tables["selftest"] == 500
    assert open_catalog(store, Scope(all=True)).tables["selftest"] == 660


def test_two_pipelines_that_share_stages_do_not_double_their_rows(store: Store) -> None:
    run_spec(store, SPEC, "name=other")
    assert open_catalog(store).tables["selftest"] == 500


def test_a_small_trial_is_read_only_by_name(store: Store) -> None:
    tables = load_tables(store, "numbers-00001")
    assert tables is not None
    store.create("runs/trial-00001/spec.yaml", b"")
    save_tables(store, RunTables(run="trial-00001", pipeline="trial", limited=True, stages=tables.stages))
    assert open_catalog(store, Scope(pipeline="trial")).tables == {}
    assert open_catalog(store, Scope(run="trial-00001")).tables["selftest"] == 500


def test_a_failed_run_stands_for_what_it_published(tmp_path: Path) -> None:
    store = publish_numbers(tmp_path)
    assert run_spec(store, SPEC, "rows=120", "error_shards=[1]").exit_code == 1
    catalog = open_catalog(store)
    assert catalog.tables == {}
    more = f"miclip status numbers-00002 --store {store.uri}"
    assert catalog.notes == (f"run numbers-00002 failed for 2 stages, which are left out: {more}",)
    assert open_catalog(store, Scope(run="numbers-00001")).notes == ()


def test_names_that_are_not_there_are_refused_with_those_that_are(store: Store) -> None:
    with pytest.raises(UnknownRun, match="numbers-00001"):
        open_catalog(store, Scope(run="numbers-00009"))
    with pytest.raises(UnknownRun, match=r"pipeline 'nubmers' has no run.*there are numbers"):
        open_catalog(store, Scope(pipeline="nubmers"))
    with pytest.raises(UnknownTable, match="no stage in scope has published table 'activations'; there are selftest"):
        open_catalog(store).parts("activations")


def test_a_missing_part_is_an_error_and_not_fewer_rows(store: Store, tmp_path: Path) -> None:
    part = open_catalog(store).parts("selftest")[0]
    (tmp_path / part.key).unlink()
    with pytest.raises(DamagedPart, match=r"should hold 100 rows .* found nothing"):
        open_catalog(store).parts("selftest")


def test_a_cut_part_is_an_error(store: Store, tmp_path: Path) -> None:
    part = open_catalog(store).parts("selftest")[0]
    path = tmp_path / part.key
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedPart, match=f"{part.bytes - 1:,} bytes"):
        open_catalog(store).parts("selftest")


def test_damage_in_one_table_does_not_close_the_others(store: Store, tmp_path: Path) -> None:
    (tmp_path / open_catalog(store).parts("selftest")[0].key).unlink()
    assert len(open_catalog(store).parts("selftest_summary")) == 2


def test_verify_reads_every_object_and_names_a_flipped_bit_and_a_lost_part(store: Store, tmp_path: Path) -> None:
    catalog = open_catalog(store)
    assert [v.problem for v in verify(catalog)] == [""] * 8
    flipped, lost = catalog.parts("selftest")[1], catalog.parts("selftest")[4]
    data = bytearray((tmp_path / flipped.key).read_bytes())
    data[40] ^= 1
    (tmp_path / flipped.key).write_bytes(data)
    (tmp_path / lost.key).unlink()
    problems = {v.key: v.problem for v in verify(open_catalog(store)) if v.problem}
    assert problems.keys() == {flipped.key, lost.key}
    assert problems[lost.key] == "gone" and "changed: expected" in problems[flipped.key]
    open_catalog(store)  # a flipped bit keeps the size: only verify sees it


def test_files_that_no_stage_names_are_found(store: Store, tmp_path: Path) -> None:
    """What a worker left that was killed before its marker: nothing reads it, a plain glob would."""
    catalog = open_catalog(store)
    assert find_unnamed(catalog) == []
    part = catalog.parts("selftest")[0]
    orphan = part.key.replace(".parquet", ".a1.parquet")
    store.create(orphan, store.get(part.key))
    assert find_unnamed(catalog) == [orphan] and all(not v.problem for v in verify(catalog))
    assert open_catalog(store).tables["selftest"] == 500


def test_a_run_that_names_a_lost_stage_says_so(store: Store, tmp_path: Path) -> None:
    digest = open_catalog(store).stages[0].stage.digest
    (tmp_path / "stages" / digest / "published.json").unlink()
    with pytest.raises(DamagedPart, match="names a stage that is gone"):
        open_catalog(store)
