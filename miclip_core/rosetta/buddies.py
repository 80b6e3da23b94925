"""Best buddies: pairs of units of which each is among the nearest neighbours of the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NONE = -1
"""The id of a neighbour that is not there: a unit may have fewer than a list is long."""
DIGITS = 9
"""r is compared after so many, so that the order in which it was summed decides no rank."""
AGREE = 1e-3
"""By more than this the r of a pair cannot differ between its two lists; bf16 products differ by less."""


@dataclass(frozen=True, eq=False)
class Buddies:
    """Pairs of units of two members, sorted by a, then b; none twice.

    a, b int32 [E]: units. r float64 [E]. rank_ab, rank_ba int16 [E]: the place of b in the list of a, and of a in that of
    b, 0 for the nearest.
    """

    a: np.ndarray
    b: np.ndarray
    r: np.ndarray
    rank_ab: np.ndarray
    rank_ba: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    def keep(self, kept_E: np.ndarray) -> Buddies:
        """Those pairs alone for which `kept_E` (bool [E]) holds."""
        return Buddies(self.a[kept_E], self.b[kept_E], self.r[kept_E], self.rank_ab[kept_E], self.rank_ba[kept_E])

    def within(self, k_a: int, k_b: int) -> Buddies:
        """The best buddies under fewer neighbours, which are among those under more."""
        kept = (self.rank_ab < k_a) & (self.rank_ba < k_b)
        return self if kept.all() else self.keep(kept)


def best_buddies(
    neighbours_ab: np.ndarray, r_ab: np.ndarray, neighbours_ba: np.ndarray, r_ba: np.ndarray, k_a: int, k_b: int
) -> Buddies:
    """The pairs (j, k) with k among the k_a nearest neighbours of j and j among the k_b nearest of k.

    neighbours_ab int [U_a, any]: for each unit of a units of b, the nearest first, NONE where there is none; r_ab: their r.
    neighbours_ba [U_b, any] and r_ba likewise. A pair has the mean of its two r, so that the order of members decides
    nothing. Dravid et al. 2023, Rosetta Neurons, sec. 3.1; there k_a = k_b = 5.

    Raises:
        ValueError: a k that the lists cannot answer, lists and r of unlike shapes, units that are not there, one that is
            twice in a list, and r that are not finite or differ between the two lists of a pair.
    """
    sizes = len(neighbours_ab), len(neighbours_ba)
    keys_ab, found_ab, rank_ab = _listed(neighbours_ab, r_ab, k_a, sizes[1], "k_a")
    keys_ba, found_ba, rank_ba = _listed(neighbours_ba, r_ba, k_b, sizes[0], "k_b")
    units_b, units_a = np.divmod(keys_ba, max(1, sizes[0]))
    keys, in_ab, in_ba = np.intersect1d(
        keys_ab, units_a * max(1, sizes[1]) + units_b, assume_unique=True, return_indices=True
    )
    apart = np.abs(found_ab[in_ab] - found_ba[in_ba]).max(initial=0)
    if apart > AGREE:
        raise ValueError(
            f"r of one pair differs by {apart:.3g} between its two lists; expected lists of the same images"
        )
    a, b = np.divmod(keys, max(1, sizes[1]))
    r = (found_ab[in_ab] + found_ba[in_ba]) / 2
    return Buddies(a.astype(np.int32), b.astype(np.int32), r, rank_ab[in_ab], rank_ba[in_ba])


def self_buddies(neighbours: np.ndarray, r: np.ndarray, k: int) -> Buddies:
    """Best buddies among the units of one member, each pair once with a < b; the lists (int, float [U, any]) hold no unit itself.

    Raises:
        ValueError: as `best_buddies`, or a unit that is its own neighbour.
    """
    alone = (neighbours == np.arange(len(neighbours))[:, None]).any(1)
    if alone.any():
        raise ValueError(
            f"unit {int(alone.argmax())} is its own neighbour; leave the diagonal out before neighbours are ranked"
        )
    both = best_buddies(neighbours, r, neighbours, r, k, k)
    return both.keep(both.a < both.b)


def _listed(
    neighbours: np.ndarray, r: np.ndarray, k: int, others: int, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the first k columns list: keys unit * others + neighbour, r and rank."""
    if neighbours.ndim != 2 or neighbours.shape != r.shape:
        raise ValueError(f"neighbours {neighbours.shape} with r {r.shape}; expected one r per neighbour of every unit")
    if not 1 <= k <= neighbours.shape[1]:
        raise ValueError(f"{name} is {k}, and the lists hold {neighbours.shape[1]} neighbours; expected 1 to as many")
    ids, values = neighbours[:, :k].astype(np.int64), r[:, :k].astype(np.float64)
    there = ids != NONE
    if ((ids < NONE) | (ids >= others)).any():
        raise ValueError(
            f"neighbours {int(ids.min())} to {int(ids.max())}; the other member has units 0 to {others - 1}"
        )
    if not np.isfinite(values[there]).all():
        raise ValueError(
            f"r of {int((~np.isfinite(values[there])).sum())} neighbours is not finite; leave dead units out"
        )
    units, ranks = there.nonzero()
    keys = units * others + ids[there]
    if len(np.unique(keys)) < len(keys):
        raise ValueError("a unit is twice in one list of neighbours; merge lists of different units")
    return keys, values[there], ranks.astype(np.int16)
