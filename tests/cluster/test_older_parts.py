"""Parts from before their table had some column: what may be null is null, and for the rest the reader says what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import miclip
from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from schemas.errors import OlderPart
from schemas.plans import StageSpec
from schemas.tables import TABLES
from tests.made_up_descriptions import Row, publish_rows
from tests.made_up_saes import save_run

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


def rows_of(first: int) -> list[Row]:
    return [
        {"image_id": f"{i:032x}", "image_index": i, "rank": 0, "class_id": 0, "class_name": "a", "score": 1.0 * i, "probability": 0.5}
        for i in range(first, first + 3)
    ]  # fmt: skip


def make_stage(subject: str) -> StageSpec:
    return StageSpec(kind="extract", method=1, subject=subject, output="predictions", params={})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An older stage of three rows without `probability`, and one of now; `TABLES` is as of now."""
    store = make_store(str(tmp_path))
    monkeypatch.setitem(TABLES, TABLE, NOW)
    with lacking(monkeypatch, "probability"):
        publish_rows(
            store, make_stage("old"), {TABLE: [{k: v for k, v in r.items() if k != "probability"} for r in rows_of(0)]}
        )
    publish_rows(store, make_stage("new"), {TABLE: rows_of(3)})
    save_run(store, "demo-00001", [make_stage("old"), make_stage("new")])
    return store


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


def test_what_may_not_be_null_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(str(tmp_path))
    with lacking(monkeypatch, "class_name"):
        publish_rows(
            store, make_stage("old"), {TABLE: [{k: v for k, v in r.items() if k != "class_name"} for r in rows_of(0)]}
        )
    save_run(store, "demo-00001", [make_stage("old")])
    said = (
        "table predictions: some rows were written before it had class_name; leave the run that made them out of scope"
    )
    with pytest.raises(OlderPart, match=said):
        miclip.open(store.uri).table(TABLE).arrow()
    for between in (None, ("image_index", [(1, 3)])):
        with pytest.raises(OlderPart, match=said):
            list(StoreInputs(store).table(make_stage("old").digest, TABLE, None, between))
    assert len(miclip.open(store.uri).table(TABLE, columns=["score"]).arrow()) == 3
