"""What a person sees of an answer: everything in a file or pipe, what fits on a terminal, and how to see the rest."""

from __future__ import annotations

import io
import sys

import pyarrow as pa
import pytest

from cluster.cli.answers import show_answer

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
