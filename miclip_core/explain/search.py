"""Texts by meaning: those whose embeddings have the largest cosine with that of a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


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
    rows, query = np.asarray(embedding_NE, np.float64), np.asarray(query_E, np.float64)
    if rows.shape != (len(texts), len(query)) or len(ids) != len(texts):
        found = f"{rows.shape} embeddings, {len(texts)} texts and {len(ids)} ids for a query of width {len(query)}"
        raise ValueError(f"found {found}; expected one text and id per row, and queries from the encoder of the texts")
    length = float(np.linalg.norm(query))
    if n < 1 or not 0 < length < np.inf:
        raise ValueError(f"found n {n} and a query of length {length}; expected at least 1 and a number above 0")
    lengths = np.linalg.norm(rows, axis=1)
    known = np.flatnonzero(lengths > 0)
    cosine = (rows[known] @ (query / length) / lengths[known]).clip(-1, 1)
    # by the rounded value throughout, as equal rows may differ in their last bits from one product of matrices to another
    coarse, places = cosine.round(6), known.tolist()
    near = np.flatnonzero(coarse >= np.sort(coarse)[-min(n, len(places))]).tolist() if places else []
    order = sorted(near, key=lambda i: (-coarse[i], texts[places[i]], ids[places[i]]))
    return [Hit(places[i], float(cosine[i])) for i in order[:n]]
