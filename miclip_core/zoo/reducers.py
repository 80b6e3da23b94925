"""Mergeable summaries of rows: moments, moments per position, Gram matrices, the top images of each unit, sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

State = dict[str, np.ndarray]
MANY_NAMES = 65_536  # from here on, names of images that no unit keeps are forgotten with every batch


class Reducer(Protocol):
    """Sees rows [B, R, W] of one site, batch after batch."""

    def add(self, rows_BRW: Tensor, positions: np.ndarray, image_ids: Sequence[str]) -> None:
        """Take in one batch."""
        ...


@dataclass(eq=False)
class Moments:
    """Count, mean, centred sum of squares, minimum, maximum and share above zero: per unit [W], or per position [R, W].

    Batches and shards are joined by the pairwise update of Chan, Golub and LeVeque (1979), so nothing cancels.
    """

    per_position: bool = False
    count: int = 0
    mean: np.ndarray | None = None
    m2: np.ndarray | None = None
    min: np.ndarray | None = None
    max: np.ndarray | None = None
    above_zero: np.ndarray | None = None

    def add(self, rows_BRW: Tensor, positions: np.ndarray, image_ids: Sequence[str]) -> None:
        if self.per_position and positions.ndim != 1:
            raise ValueError("moments per position need the same positions in every image; a sample has others in each")
        x = rows_BRW.double() if self.per_position else rows_BRW.flatten(0, 1).double()
        if x.shape[0] == 0:
            return
        mean = x.mean(0)
        parts = (mean, (x - mean).square().sum(0), x.amin(0), x.amax(0), (x > 0).sum(0))
        self._join(x.shape[0], *(part.cpu().numpy() for part in parts))

    def merge(self, other: Moments) -> None:
        """Join another summary of the same site into this one."""
        if other.count:
            self._join(other.count, *other._arrays())

    @property
    def is_empty(self) -> bool:
        """Whether no row was seen."""
        return self.count == 0

    @property
    def positive(self) -> np.ndarray:
        """Share of rows above zero; needs at least one row."""
        return self._arrays()[4] / self.count

    @property
    def variance(self) -> np.ndarray:
        """Population variance; needs at least one row."""
        assert self.m2 is not None, "no rows yet"
        return self.m2 / self.count

    @property
    def sum(self) -> np.ndarray:
        """Sum over rows."""
        assert self.mean is not None, "no rows yet"
        return self.mean * self.count

    def state(self) -> State:
        """Arrays from which `from_state` makes an equal summary."""
        names = ("mean", "m2", "min", "max", "above_zero")
        return {"count": np.array(self.count), **dict(zip(names, self._arrays(), strict=True))}

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        assert self.mean is not None and self.m2 is not None and self.min is not None, "no rows yet"
        assert self.max is not None and self.above_zero is not None, "no rows yet"
        return self.mean, self.m2, self.min, self.max, self.above_zero

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Moments:
        """The summary that gave this state."""
        arrays = {name: np.array(state[name]) for name in ("mean", "m2", "min", "max", "above_zero")}
        return cls(per_position=arrays["mean"].ndim == 2, count=int(state["count"]), **arrays)

    def _join(
        self, count: int, mean: np.ndarray, m2: np.ndarray, low: np.ndarray, high: np.ndarray, above: np.ndarray
    ) -> None:
        if self.mean is None or self.m2 is None or self.min is None or self.max is None or self.above_zero is None:
            self.count, self.mean, self.m2, self.min, self.max, self.above_zero = count, mean, m2, low, high, above
            return
        total = self.count + count
        self.above_zero = self.above_zero + above
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.min, self.max = np.minimum(self.min, low), np.maximum(self.max, high)
        self.count = total


@dataclass(eq=False)
class Gram:
    """Sum of outer products [W, W] and sum [W] of all rows, in fp64."""

    count: int = 0
    gram: np.ndarray | None = None
    sum: np.ndarray | None = None

    def add(self, rows_BRW: Tensor, positions: np.ndarray, image_ids: Sequence[str]) -> None:
        x = rows_BRW.flatten(0, 1).double()
        self._join(x.shape[0], (x.T @ x).cpu().numpy(), x.sum(0).cpu().numpy())

    def merge(self, other: Gram) -> None:
        """Join another summary of the same site into this one."""
        if other.gram is not None and other.sum is not None:
            self._join(other.count, other.gram, other.sum)

    def state(self) -> State:
        """Arrays from which `from_state` makes an equal summary."""
        assert self.gram is not None and self.sum is not None
        return {"count": np.array(self.count), "gram": self.gram, "sum": self.sum}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Gram:
        """The summary that gave this state."""
        return cls(int(state["count"]), np.array(state["gram"]), np.array(state["sum"]))

    def _join(self, count: int, gram: np.ndarray, total: np.ndarray) -> None:
        self.gram = gram if self.gram is None else self.gram + gram
        self.sum = total if self.sum is None else self.sum + total
        self.count += count


@dataclass(eq=False)
class TopK:
    """The k images that excite each unit most, and where: an image counts by its largest value over its positions.

    Order is value descending, then image id ascending, a total order: any grouping and any order of merging gives the
    same result, ties included. The position is that of the first largest value. An image must be added once.

    values [U, k] fp32, ids [U, k] str, positions [U, k] int32; fewer than k columns while fewer images were seen.
    """

    k: int
    _best: _Ranked | None = field(default=None, repr=False)

    def add(self, rows_BRW: Tensor, positions: np.ndarray, image_ids: Sequence[str]) -> None:
        best_BW = rows_BRW.amax(1)
        first_BW = (rows_BRW == best_BW[:, None]).to(torch.uint8).argmax(1)  # argmax over 0 and 1 gives the first 1
        values_UB, first_UB = best_BW.float().T.cpu().numpy(), first_BW.T.cpu().numpy()
        where_UB = positions[first_UB] if positions.ndim == 1 else positions[np.arange(len(image_ids)), first_UB]
        names, codes_B = np.unique(np.array(image_ids, dtype=str), return_inverse=True)
        codes_UB = np.broadcast_to(codes_B.astype(np.int64), values_UB.shape)
        self._join(_Ranked(values_UB, codes_UB, where_UB.astype(np.int32), names))

    @property
    def is_empty(self) -> bool:
        """Whether no image was seen."""
        return self._best is None

    def merge(self, other: TopK) -> None:
        """Join another summary of the same site (over other images) into this one."""
        if other._best is not None:
            self._join(other._best)

    @property
    def values(self) -> np.ndarray:
        """[U, k] fp32, descending."""
        return self._kept().values

    @property
    def ids(self) -> np.ndarray:
        """[U, k] image ids."""
        return self._kept().names[self._kept().codes]

    @property
    def positions(self) -> np.ndarray:
        """[U, k] int32: where in the image, REDUCED for sites without positions."""
        return self._kept().positions

    def state(self) -> State:
        """Arrays from which `from_state` makes an equal summary: each image's name once, in UTF-8, and its number."""
        best = self._kept().compact()
        return {
            "k": np.array(self.k),
            "values": best.values,
            "codes": best.codes.astype(np.int32),
            "positions": best.positions,
            "names": np.char.encode(best.names, "utf-8"),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> TopK:
        """The summary that gave this state."""
        values, positions = np.array(state["values"]), np.array(state["positions"])
        names = np.char.decode(state["names"], "utf-8")
        return cls(int(state["k"]), _Ranked(values, state["codes"].astype(np.int64), positions, names))

    def _kept(self) -> _Ranked:
        assert self._best is not None, "no images yet"
        return self._best

    def _join(self, new: _Ranked) -> None:
        if self._best is None:
            self._best = new.sorted(self.k)
            return
        old, new = _same_names(self._best, new)
        if old.values.shape[1] < self.k:
            self._best = old.beside(new).sorted(self.k)
            return
        units = old.beaten_by(new)
        old.put(units, old.units(units).beside(new.units(units)).sorted(self.k))
        self._best = old.compact() if len(old.names) >= MANY_NAMES else old


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Candidates of every unit: values, codes and positions [U, n]; `names` is ascending, so codes sort like ids."""

    values: np.ndarray
    codes: np.ndarray
    positions: np.ndarray
    names: np.ndarray

    def sorted(self, k: int) -> _Ranked:
        """The best k per unit, best first."""
        order = np.lexsort((self.codes, -self.values), axis=-1)[:, :k]
        values, codes, positions = (
            np.take_along_axis(array, order, 1) for array in (self.values, self.codes, self.positions)
        )
        return _Ranked(values, codes, positions, self.names)

    def beside(self, other: _Ranked) -> _Ranked:
        """Candidates of both, which share their names."""
        pairs = ((self.values, other.values), (self.codes, other.codes), (self.positions, other.positions))
        values, codes, positions = (np.concatenate(pair, axis=1) for pair in pairs)
        return _Ranked(values, codes, positions, self.names)

    def units(self, index: np.ndarray) -> _Ranked:
        """Some units only."""
        return _Ranked(self.values[index], self.codes[index], self.positions[index], self.names)

    def put(self, index: np.ndarray, other: _Ranked) -> None:
        """Replace some units in place."""
        self.values[index], self.codes[index], self.positions[index] = other.values, other.codes, other.positions

    def beaten_by(self, other: _Ranked) -> np.ndarray:
        """Units of which the last kept candidate loses to one of `other`; most units soon have none."""
        value, code = self.values[:, -1:], self.codes[:, -1:]
        wins = (other.values > value) | ((other.values == value) & (other.codes < code))
        return np.flatnonzero(wins.any(1))

    def compact(self) -> _Ranked:
        """Forget names that no unit keeps."""
        used, codes = np.unique(self.codes, return_inverse=True)
        return _Ranked(self.values, codes.reshape(self.codes.shape), self.positions, self.names[used])


def _same_names(old: _Ranked, new: _Ranked) -> tuple[_Ranked, _Ranked]:
    """Both with codes into the union of their names."""
    names = np.union1d(old.names, new.names)
    return tuple(  # type: ignore[return-value]
        _Ranked(some.values, np.searchsorted(names, some.names)[some.codes], some.positions, names)
        for some in (old, new)
    )


@dataclass(eq=False)
class Sink:
    """Hands every batch of rows on: (rows [B, R, W], positions, image ids)."""

    take: Callable[[Tensor, np.ndarray, Sequence[str]], None]

    def add(self, rows_BRW: Tensor, positions: np.ndarray, image_ids: Sequence[str]) -> None:
        self.take(rows_BRW, positions, image_ids)
