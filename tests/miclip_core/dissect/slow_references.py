"""The five similarity functions of CLIP-Dissect, one unit and one concept at a time, in float64 and from the formulas."""

from __future__ import annotations

import math

import numpy as np


def cosines(x: np.ndarray, concepts: np.ndarray) -> np.ndarray:
    """P [N,M]."""
    x, concepts = x.astype(np.float64), concepts.astype(np.float64)
    return (x / np.linalg.norm(x, axis=1)[:, None]) @ (concepts / np.linalg.norm(concepts, axis=1)[:, None]).T


def cos(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    out = np.full((t.shape[1], p.shape[1]), np.nan)
    for u in np.flatnonzero(t.any(0)):
        for c in range(p.shape[1]):
            out[u, c] = t[:, u] @ p[:, c] / math.sqrt((t[:, u] @ t[:, u]) * (p[:, c] @ p[:, c]))
    return out


def cos_cubed(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    out = np.full((t.shape[1], p.shape[1]), np.nan)
    for u in np.flatnonzero(t.max(0) > t.min(0)):
        a = (t[:, u] - t[:, u].mean()) ** 3
        for c in range(p.shape[1]):
            b = (p[:, c] - p[:, c].mean()) ** 3
            out[u, c] = a @ b / (max(np.linalg.norm(a), 1e-3) * max(np.linalg.norm(b), 1e-3))
    return out


def top(column: np.ndarray, k: int) -> list[int]:
    """The k rows of the largest values, of equal ones the lower row first."""
    return sorted(range(len(column)), key=lambda i: (-column[i], i))[:k]


def rank_reorder(t: np.ndarray, p: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    n = math.floor(0.05 * len(t))
    out = np.full((t.shape[1], p.shape[1]), np.nan)
    for u in range(t.shape[1]):
        best = top(t[:, u], n)
        ordered = t[best, u]
        base = np.mean([np.mean(np.abs(ordered - ordered[some]) ** 3) for some in permutations])
        for c in range(p.shape[1]):
            by_concept = top(p[best, c], n)
            rank = [by_concept.index(i) for i in range(n)]
            error = np.mean([abs(ordered[i] - ordered[rank[i]]) ** 3 for i in range(n)])
            mean = p[best, c].mean()
            if base > 0 and mean > 0:
                out[u, c] = -(error / base) / mean**0.5
    return out


def pmi(t: np.ndarray, p: np.ndarray, k: int, a: float, weight: float, q: list[float]) -> np.ndarray:
    """wpmi and soft_wpmi over the units that vary."""
    shares = np.exp(a * p) / np.exp(a * p).sum(1)[:, None]
    units = [u for u in range(t.shape[1]) if t[:, u].max() > t[:, u].min()]
    likelihood = np.full((t.shape[1], p.shape[1]), np.nan)
    for u in units:
        best = top(t[:, u], k)
        for c in range(p.shape[1]):
            likelihood[u, c] = sum(math.log(1 + q[r] * (shares[i, c] - 1) + 1e-7) for r, i in enumerate(best))
    marginal = [
        math.log(math.fsum(math.exp(v - largest) for v in column)) + largest - math.log(len(units))
        for column in likelihood[units].T
        for largest in [max(column)]
    ]
    return likelihood - weight * np.array(marginal)


def wpmi(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    return pmi(t, p, 28, 2.0, 0.6, [1.0] * 28)


def soft_wpmi(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    return pmi(t, p, 100, 10.0, 1.0, [0.998 - (r / 100) * (0.998 - 0.97) for r in range(100)])
