"""Candidates of the fast pass again, exactly: their correlations in fp64, and the nearest k that these leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from miclip_core.rosetta.accumulate import Sums
from miclip_core.rosetta.crossing import Crossing, Side
from miclip_core.rosetta.memory import SLICE
from miclip_core.rosetta.standardise import Scale
from miclip_core.sae.kernels import sparse_dots
from miclip_core.zoo.reducers import State

DIGITS = 9
"""Decimals by which correlations are ranked: fewer than the order of summation can change."""
NONE = -1


class Rescorer:
    """Pearson's correlation in fp64 of some pairs of units, from sums over images that merge over shards.

    pairs int32 [N, 2], ascending by (a, b): columns of the maps of the two sides. Scales as in the fast pass; the result
    does not depend on them, but what is merged does. `memory.rescoring_bytes` says what memory it takes.
    """

    def __init__(
        self,
        pairs: np.ndarray,
        crossing: Crossing,
        scale_a: Scale,
        scale_b: Scale,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises: ValueError: pairs that are not ascending, or of units that have no scale."""
        units = len(scale_a.centre), len(scale_b.centre)
        keys = pairs[:, 0].astype(np.int64) * units[1] + pairs[:, 1]
        if len(pairs) and (pairs.min() < 0 or (pairs.max(0) >= units).any() or (np.diff(keys) <= 0).any()):
            raise ValueError(f"pairs must be ascending, none twice, and of {units[0]} and {units[1]} units")
        self.crossing = crossing
        self._scales = scale_a, scale_b
        self._pairs = pairs.astype(np.int64)
        self._b_of_pair = torch.from_numpy(self._pairs[:, 1].copy()).to(device)
        counts = np.bincount(self._pairs[:, 0], minlength=units[0])
        self._starts_of_a = torch.from_numpy(np.concatenate(([0], counts.cumsum()))).to(device)
        self._products_N = torch.zeros(len(pairs), dtype=torch.float64, device=device)
        self._sums = Sums(units[0], device), Sums(units[1], device)

    @torch.no_grad()
    def add(self, a_BPU: Tensor, b_BPU: Tensor) -> None:
        """Take raw maps of the same images: [B, P_a, U_a] and [B, P_b, U_b].

        Raises:
            ValueError: other numbers of images or units.
        """
        units = tuple(len(scale.centre) for scale in self._scales)
        if len(a_BPU) != len(b_BPU) or (a_BPU.shape[2], b_BPU.shape[2]) != units:
            raise ValueError(
                f"maps {tuple(a_BPU.shape)} and {tuple(b_BPU.shape)}; expected units {units}, equal images"
            )
        step = max(1, SLICE // max(1, a_BPU[:1].numel(), b_BPU[:1].numel()))
        for first in range(0, len(a_BPU), step):
            some = slice(first, first + step)
            a_UN, b_UN = (
                _by_unit(side, rows[some], scale, sums)
                for side, rows, scale, sums in zip(self.crossing.sides, (a_BPU, b_BPU), self._scales, self._sums)
            )
            self._products_N += sparse_dots(self._b_of_pair, a_UN, b_UN, self._starts_of_a)

    def correlations(self) -> np.ndarray:
        """r fp64 [N]; NaN where a unit is constant.

        Raises:
            ValueError: of fewer than two samples.
        """
        a, b = self._sums
        if a.n < 2:
            raise ValueError(f"correlations of {a.n} samples; they are taken from at least two")
        i, j = (torch.from_numpy(self._pairs[:, side].copy()).to(a.first_U.device) for side in (0, 1))
        covariance = self._products_N - a.first_U[i] * (b.first_U[j] / b.n)
        r = covariance * a.spread[i].rsqrt() * b.spread[j].rsqrt()
        return r.where(~(a.dead[i] | b.dead[j]), torch.nan).cpu().numpy()

    def state(self) -> State:
        """Arrays that `merge` adds: of the same pairs, crossing and scales over other images."""
        a, b = self._sums
        sums = {"a_first": a.first_U, "a_second": a.second_U, "b_first": b.first_U, "b_second": b.second_U}
        arrays = {name: some.cpu().numpy().copy() for name, some in {"products": self._products_N, **sums}.items()}
        return {"samples": np.array(a.n), **arrays}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Join what another rescorer of the same pairs saw in other images.

        Raises:
            ValueError: it was of other pairs or units.
        """
        a, b = self._sums
        mine = {"products": self._products_N, "a_first": a.first_U, "a_second": a.second_U,
                "b_first": b.first_U, "b_second": b.second_U}  # fmt: skip
        for name, total in mine.items():
            if state[name].shape != tuple(total.shape):
                raise ValueError(
                    f"{name} {state[name].shape} cannot join {tuple(total.shape)}; give all shards the same pairs"
                )
        for name, total in mine.items():
            total += torch.from_numpy(np.array(state[name])).to(total.device)
        a.n = b.n = a.n + int(state["samples"])


def _by_unit(side: Side, rows_BPU: Tensor, scale: Scale, sums: Sums) -> Tensor:
    """Standardised maps as they are multiplied, unit by unit: fp64 [U, B*P_at]; adds their moments."""
    alive = ~scale.dead
    centre, factor = np.where(alive, scale.centre, 0), np.where(alive, 1 / np.where(alive, scale.sd, 1), 0)
    z_BPU = rows_BPU.double()
    z_BPU = z_BPU.sub_(torch.from_numpy(centre).to(z_BPU.device)).mul_(torch.from_numpy(factor).to(z_BPU.device))
    settled = side.settle(z_BPU)
    crossed = side.cross(settled)
    sums.add(side, settled, crossed)
    return crossed.flatten(0, 1).T.contiguous()


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest k of each unit after rescoring, nearest first.

    ids int32 [U, k], -1 where there is none. r fp64 [U, k], NaN there. places int16 [U, k]: where in the list of
    candidates each was, -1 there. exact bool [U]: no unit outside the candidates can belong among the k.
    """

    ids: np.ndarray
    r: np.ndarray
    places: np.ndarray
    exact: np.ndarray


def cut(
    candidates: np.ndarray, r: np.ndarray, k: int, fast_last: np.ndarray, tolerance: float, absolute: bool = False
) -> Nearest:
    """The k candidates of largest r (|r| if `absolute`) of each unit; of equal r, to nine decimals, the smaller ids.

    candidates int32 [U, K'], -1 where a list has no more; r fp64 [U, K'] of them, NaN where none. fast_last [U]: what the
    fast pass gave the last candidate, minus infinity where the list is not full, so that nothing was left out. A unit is
    exact where that lies more than `tolerance` (the error of the fast pass) below the k-th of the rescored.

    Raises:
        ValueError: a k below 1 or above the length of the lists.
    """
    if not 1 <= k <= candidates.shape[1]:
        raise ValueError(f"k is {k}; expected 1 to {candidates.shape[1]}, the candidates of each unit")
    rank_by = np.abs(r) if absolute else r
    rank_by = np.where((candidates >= 0) & ~np.isnan(r), np.round(rank_by, DIGITS), -np.inf)
    order = np.lexsort((candidates, -rank_by), axis=-1)[:, :k]
    found = np.take_along_axis(rank_by, order, 1) > -np.inf
    ids = np.where(found, np.take_along_axis(candidates, order, 1), NONE).astype(np.int32)
    kept = np.where(found, np.take_along_axis(r, order, 1), np.nan)
    lowest = np.take_along_axis(rank_by, order, 1)[:, -1]
    exact = (fast_last == -np.inf) | (lowest > fast_last + tolerance)
    return Nearest(ids, kept, np.where(found, order, NONE).astype(np.int16), exact)
