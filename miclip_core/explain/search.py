"""Texts by meaning: those whose embeddings have the largest cosine with that of a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SINGLE_ERROR = 1e-4
"""More than cosines in float32 may be off."""


class Hit(NamedTuple):
    """A text that was found: its place in what was searched, and its cosine with the query."""

    place: int
    cosine: float


def search(
    query_E: np.ndarray, embedding_NE: np.ndarray, texts: Sequence[str], ids: Sequence[Any], n: int = 10
) -> list[Hit]:
    """The n texts nearest to a query, best first; cosines that agree to six decimals are ordered by text and then by id.

    query, embedding: of the same encoder, of any length. ids: what else tells two rows with the same text apart, of a type
    that can be ordered. A row of length 0 is found by nothing.

    Raises:
        ValueError: not one text and id per row, another width than the query's, a query without a direction, or n below 1.
    """
    rows, query = np.asarray(embedding_NE), np.asarray(query_E, np.float64)
    if rows.shape != (len(texts), len(query)) or len(ids) != len(texts):
        found = f"{rows.shape} embeddings, {len(texts)} texts and {len(ids)} ids for a query of width {len(query)}"
        raise ValueError(f"found {found}; expected one text and id per row, and queries from the encoder of the texts")
    length = float(np.linalg.norm(query))
    if n < 1 or not 0 < length < np.inf:
        raise ValueError(f"found n {n} and a query of length {length}; expected at least 1 and a number above 0")
    near = _candidates(rows, query / length, n)
    cosine = _cosines(rows[near].astype(np.float64), query / length)
    hits = [Hit(int(place), float(value)) for place, value in zip(near, cosine, strict=True)]
    # by the rounded value, as equal rows may differ in their last bits from one product of matrices to another
    return sorted(hits, key=lambda hit: (-round(hit.cosine, 6), texts[hit.place], ids[hit.place]))[:n]


def _candidates(rows_NE: np.ndarray, query_E: np.ndarray, n: int) -> np.ndarray:
    """Rows that may be among the n nearest: those whose cosines in float32 come near the n-th largest."""
    single = rows_NE.astype(np.float32, copy=False)
    cosine = _cosines(single, query_E.astype(np.float32))
    known = np.flatnonzero(np.isfinite(cosine))
    if len(known) <= n:
        return known
    least = np.partition(cosine[known], len(known) - n)[len(known) - n]
    return known[cosine[known] >= least - SINGLE_ERROR]


def _cosines(rows_NE: np.ndarray, query_E: np.ndarray) -> np.ndarray:
    """Cosines with a query of unit length, NaN for a row of length 0."""
    length = np.sqrt(np.einsum("ne,ne->n", rows_NE, rows_NE))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, rows_NE @ query_E / length, np.nan).clip(-1, 1)
