"""Which features of two SAEs are the same: nearest decoder rows, or codes that go together over images; loads no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

CELLS = 1 << 22
"""Similarities that are in memory at a time: those of some features of the first SAE with all of the second."""
SAME = 0.7
"""Two features that are each other's nearest at this similarity or more count as one."""


class Matches(NamedTuple):
    """Per feature of the first SAE: the nearest of the second, how near, and whether that one has it nearest too.

    nearest int [U]; similarity float64 [U], NaN where it cannot be said; mutual bool [U]; others is V, and of so many of
    these it can be said.
    """

    nearest: np.ndarray
    similarity: np.ndarray
    mutual: np.ndarray
    others: int
    others_known: int

    @property
    def same(self) -> np.ndarray:
        """bool [U]: mutual, and near enough to be one feature."""
        return self.mutual & (np.nan_to_num(self.similarity, nan=-1.0) >= SAME)

    @property
    def all_same(self) -> bool:
        """Whether both SAEs have so many features, and each of which anything can be said is one of the other."""
        known = np.count_nonzero(~np.isnan(self.similarity))
        return len(self.same) == self.others and np.count_nonzero(self.same) == known == self.others_known


def match_decoders(first_UD: np.ndarray, second_VD: np.ndarray) -> Matches:
    """By cosine of decoder rows, [U, D] and [V, D]; rows of zeros match nothing.

    Raises:
        ValueError: the SAEs read sites of different widths.
    """
    if first_UD.shape[1] != second_VD.shape[1]:
        raise ValueError(f"decoders of widths {first_UD.shape[1]} and {second_VD.shape[1]} cannot be compared")
    first, second = _unit(first_UD), _unit(second_VD)
    return _match(len(first), len(second), lambda start, stop: first[start:stop] @ second.T)


def _unit(rows_UD: np.ndarray) -> np.ndarray:
    rows_UD = np.asarray(rows_UD, np.float32)
    length = np.linalg.norm(rows_UD, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, rows_UD / length, np.nan).astype(np.float32)


def match_codes(first_UB: sparse.csr_matrix, second_VB: sparse.csr_matrix) -> Matches:
    """By correlation of codes over the same images, sparse [U, B] and [V, B]; constant features match nothing."""
    images = first_UB.shape[1]
    mean, spread = _moments(first_UB)
    other_mean, other_spread = _moments(second_VB)
    second_BV = second_VB.T.tocsr()

    def block(start: int, stop: int) -> np.ndarray:
        products = (first_UB[start:stop] @ second_BV).toarray() / images
        products -= np.outer(mean[start:stop], other_mean)
        with np.errstate(invalid="ignore", divide="ignore"):
            return products / np.outer(spread[start:stop], other_spread)

    return _match(first_UB.shape[0], second_VB.shape[0], block)


def _moments(codes_UB: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [U], the latter NaN where it is 0."""
    first = codes_UB.indptr[:-1]
    some = np.diff(codes_UB.indptr) > 0
    mean, square = np.zeros((2, len(first)))
    mean[some] = np.add.reduceat(codes_UB.data, first[some], dtype=np.float64) / codes_UB.shape[1]
    square[some] = np.add.reduceat(codes_UB.data**2, first[some], dtype=np.float64) / codes_UB.shape[1]
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, np.nan))


def _match(first: int, second: int, block) -> Matches:  # type: ignore[no-untyped-def]
    """Nearest both ways from blocks of rows of the matrix of similarities, which is never whole in memory."""
    nearest, similarity = np.zeros(first, np.int64), np.full(first, np.nan)
    back, best = np.full(second, -1, np.int64), np.full(second, -np.inf)
    step = max(1, CELLS // max(1, second))
    for start in range(0, first, step):
        rows = np.nan_to_num(block(start, min(first, start + step)), nan=-np.inf)
        place = rows.argmax(axis=1)
        value = rows[np.arange(len(rows)), place]
        nearest[start : start + len(rows)] = place
        similarity[start : start + len(rows)] = np.where(np.isfinite(value), value, np.nan)
        top = rows.argmax(axis=0)
        higher = rows[top, np.arange(second)] > best  # of equals the first stays
        best = np.where(higher, rows[top, np.arange(second)], best)
        back = np.where(higher, top + start, back)
    mutual = np.isfinite(similarity) & (back[nearest] == np.arange(first))
    return Matches(nearest, similarity, mutual, second, int(np.count_nonzero(back >= 0)))
