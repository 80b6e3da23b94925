"""Search against a loop over cosines, and ties that are told apart by text and id."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.explain.search import search

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 12)).astype(np.float32)
TEXTS = [f"text {i % 50:02d}" for i in range(300)]
ROWS = np.stack([ROWS[i % 50] * (1 + i) for i in range(300)])  # a text has one direction, whatever its length


def test_an_explanation_finds_itself_first_with_cosine_one() -> None:
    for place in range(50):
        first = search(ROWS[place] * 3, ROWS[:50], TEXTS[:50], range(50), n=1)[0]
        assert first.place == place and first.cosine == pytest.approx(1, abs=1e-6)


def test_hits_are_those_of_a_loop_with_ties_by_text_and_id() -> None:
    query = RNG.normal(size=12)
    cosine = [float(row @ query / np.sqrt((row.astype(float) ** 2).sum() * (query**2).sum())) for row in ROWS]
    ids = [(-(i // 50), "x") for i in range(300)]
    expected = sorted(range(300), key=lambda i: (-round(cosine[i], 5), TEXTS[i], ids[i]))
    for n in (1, 7, 299, 300, 1000):
        found = search(query, ROWS, TEXTS, ids, n)
        assert [hit.place for hit in found] == expected[:n]
        assert [hit.cosine for hit in found] == pytest.approx([cosine[i] for i in expected[:n]], abs=1e-6)


def test_equal_cosines_of_different_texts_are_in_the_order_of_the_texts() -> None:
    rows = np.array([[1.0, 1.0], [1.0, -1.0], [2.0, 2.0], [1.0, -1.0]])
    found = search(np.array([1.0, 0.0]), rows, ["b", "a", "a", "a"], [0, 9, 2, 3], n=3)
    assert [hit.place for hit in found] == [2, 3, 1]


def test_a_row_without_a_direction_is_found_by_nothing() -> None:
    found = search(np.array([1.0, 0.0]), np.array([[0.0, 0.0], [-1.0, 0.0]]), ["none", "against"], [0, 1])
    assert [tuple(hit) for hit in found] == [(1, -1.0)]
    assert search(np.ones(2), np.zeros((1, 2)), ["none"], [0]) == []
    assert search(np.ones(2), np.zeros((0, 2)), [], []) == []


def test_what_cannot_be_searched_is_refused() -> None:
    for rows, texts, ids in ((ROWS, TEXTS[:-1], range(300)), (ROWS, TEXTS, range(3)), (ROWS[:, :5], TEXTS, range(300))):
        with pytest.raises(ValueError, match="one text and id per row"):
            search(np.ones(12), rows, texts, ids)
    for query, n in ((np.zeros(12), 1), (np.ones(12), 0), (np.full(12, np.nan), 1), (np.full(12, np.inf), 1)):
        with pytest.raises(ValueError, match="at least 1 and a number above 0"):
            search(query, ROWS, TEXTS, range(300), n)
