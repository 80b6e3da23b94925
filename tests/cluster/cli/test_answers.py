"""What a person sees of an answer: everything in a file or pipe, what fits on a terminal, and how to see the rest."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.cli.answers import show_answer, write_parquet
from schemas.errors import UsageError

VECTOR = [float(i) for i in range(20)]
TEXT = "word " * 60


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, columns: dict[str, list[object]], width: int) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    show_answer(pa.table(columns).to_reader())
    return stream.getvalue()


def test_nothing_is_cut_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, io.StringIO(), {"v": [VECTOR * 9], "t": [TEXT + "end"]}, 80)
    assert "[0, 1, 2, 3, 4," in said and "18, 19] " in said and TEXT + "end" in said and "--csv" not in said


def test_a_terminal_shows_as_much_as_fits_and_says_how_to_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, Terminal(), {"v": [VECTOR]}, 200)
    assert "14, 15, … 20]" in said and "long cells cut; --json, --csv or --parquet FILE give all" in said
    assert "13, 14, 15]" in shown(monkeypatch, Terminal(), {"v": [VECTOR[:16]]}, 200)
    for width, letters in [(40, 60), (100, 100)]:
        said = shown(monkeypatch, Terminal(), {"t": ["x" * 300]}, width)
        assert said.count("x") == letters - 1 and "…" in said and "long cells cut" in said
    assert "long cells" not in shown(monkeypatch, Terminal(), {"t": ["x" * 90]}, 100)


def test_an_answer_without_rows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no rows" in shown(monkeypatch, io.StringIO(), {"t": []}, 80)
    assert "no rows" not in shown(monkeypatch, io.StringIO(), {"t": ["x"]}, 80)


def test_a_file_of_an_answer_is_there_when_it_is_whole(tmp_path: Path) -> None:
    """An answer that fails in its midst leaves the file of before as it was, and nothing beside it."""
    path, rows = tmp_path / "answer.parquet", pa.table({"n": [1, 2, 3]})
    assert write_parquet(rows.to_reader(), path) == 3

    def half() -> Iterator[pa.RecordBatch]:
        yield from pa.table({"n": [7]}).to_batches()
        raise UsageError("the other half cannot be read")

    with pytest.raises(UsageError, match="the other half"):
        write_parquet(pa.RecordBatchReader.from_batches(rows.schema, half()), path)
    assert list(tmp_path.iterdir()) == [path] and pq.read_table(path).equals(rows)
