"""The nearest units of every unit of a member, kept while tiles of correlations go by, and which pairs that makes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from miclip_core.concepts.top import TopLists
from miclip_core.zoo.reducers import State


class Neighbours:
    """For each of U units its k nearest units of the other member, nearest first.

    Of equal correlations the smaller id comes first, so lists depend neither on tiles nor on their order. Minus infinity
    and NaN are no neighbour's correlation: units so marked are in no list.
    """

    def __init__(self, units: int, k: int, device: torch.device | str = "cpu") -> None:
        self._lists = TopLists.empty(units, k, device)

    def merge(self, r_RC: Tensor, first_id: int, first_unit: int = 0) -> None:
        """Take the correlations [R, C] of units from `first_unit` on with the units from `first_id` on of the other.

        The transpose of a tile serves the other member; no copy of it is made.

        Raises:
            ValueError: a pair that was taken before, or units outside.
        """
        rows, columns = r_RC.shape
        if not 0 <= first_unit <= len(self._lists.ids_NK) - rows:
            raise ValueError(f"units {first_unit} to {first_unit + rows} of {len(self._lists.ids_NK)}")
        ids = torch.arange(first_id, first_id + columns, device=r_RC.device)
        self._lists.add(torch.arange(first_unit, first_unit + rows, device=r_RC.device), ids, r_RC)

    def merge_found(self, other: Neighbours) -> None:
        """Take what was found for the same units among others of the other member.

        Raises:
            ValueError: other numbers of units or neighbours, or a pair that both hold.
        """
        self._lists.merge(other._lists)

    @property
    def ids(self) -> np.ndarray:
        """int32 [U, k]; -1 at the end of a list that is not full."""
        return self._lists.ids_NK.int().cpu().numpy()

    @property
    def values(self) -> np.ndarray:
        """float32 [U, k], descending; minus infinity where there is none."""
        return self._lists.scores_NK.cpu().numpy()

    def state(self) -> State:
        """Arrays from which `from_state` makes equal lists."""
        return {"ids": self.ids, "values": self.values}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Neighbours:
        """The lists that gave this state."""
        made = cls(*state["ids"].shape)
        made._lists = TopLists(
            torch.from_numpy(state["ids"].astype(np.int64)), torch.from_numpy(state["values"].copy())
        )
        return made


def pairs_of(ids_ab: np.ndarray, ids_ba: np.ndarray | None = None) -> np.ndarray:
    """int32 [N, 2], ascending: each pair (a, b) once that is in a list of a's units [U_a, k] or of b's units [U_b, k].

    What is said of a pair is so the same in both directions. -1 in a list is none.
    """
    found = []
    for ids, flipped in ((ids_ab, False), (ids_ba, True)):
        if ids is not None:
            rows, places = np.nonzero(ids >= 0)
            others = ids[rows, places]
            found.append(np.stack((others, rows) if flipped else (rows, others), 1).astype(np.int64))
    both = np.concatenate(found)
    keys = np.unique(both[:, 0] << 32 | both[:, 1])
    return np.stack((keys >> 32, keys & 0xFFFFFFFF), 1).astype(np.int32)


def look_up(pairs: np.ndarray, r: np.ndarray, ids: np.ndarray, flipped: bool = False) -> np.ndarray:
    """fp64 [U, k]: for lists of ids int32 [U, k] what `r` [N] says of their pairs, which are ascending; NaN where the
    list has none. `flipped`: the lists are those of the second member of the pairs.

    Raises:
        KeyError: a listed pair that is not among them.
    """
    units = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    a, b = (ids, units) if flipped else (units, ids)
    known = pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1]
    asked = a.astype(np.int64) << 32 | b
    there = ids >= 0
    places = np.searchsorted(known, asked[there])
    if len(places) and (places.max(initial=0) >= len(known) or (known[places] != asked[there]).any()):
        raise KeyError("a listed pair is not among the pairs that were rescored; take the pairs of the same lists")
    out = np.full(ids.shape, np.nan)
    out[there] = r[places]
    return out
