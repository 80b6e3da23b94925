"""Which named units a page shows: some that were found for concepts, some that methods agree on, and some by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.report.sections.named import Found, Named

SEED = 0


class Vote(NamedTuple):
    """What most methods call a unit: the name, how many say so, and how many say anything."""

    name: str
    votes: int
    of: int


def vote(names: Sequence[str]) -> Vote | None:
    """Of the first names that methods give; of equally frequent ones that of the earliest method. None without a name."""
    if not names:
        return None
    name, votes = Counter(names).most_common(1)[0]
    return Vote(name, votes, len(names))


def choose_units(named: Named, found: Found, most: int) -> dict[int, str]:
    """Unit -> why it was chosen, units ascending.

    Half are `located`: first in the list of some concept by some method, the concepts in turn. A quarter are `agreed`: most
    methods give them the same name, the names in turn. The rest are `random`.
    """
    chosen: dict[int, str] = {}
    everything = sorted({unit for names in found.first.values() for unit in names})
    by_chance = [everything[i] for i in np.random.default_rng(SEED).permutation(len(everything))]
    for reason, order, share in (
        ("located", _located(found), most // 2),
        ("agreed", _agreed(found, everything), most // 4),
        ("random", by_chance, most),
    ):
        room = min(share, most - len(chosen))
        chosen.update(dict.fromkeys([unit for unit in order if unit not in chosen][:room], reason))
    return dict(sorted(chosen.items()))


def _located(found: Found) -> list[int]:
    """Every concept's most voted unit first, then every concept's second."""
    voted: dict[str, Counter[int]] = {}
    for lists in found.located.values():
        for concept, units in lists.items():
            voted.setdefault(concept, Counter())[units[0][0]] += 1
    places = []
    for concept in sorted(voted):
        ranked = sorted(voted[concept].items(), key=lambda item: (-item[1], item[0]))
        places += [(place, -votes, concept, unit) for place, (unit, votes) in enumerate(ranked)]
    return list(dict.fromkeys(unit for *_, unit in sorted(places)))


def _agreed(found: Found, units: Sequence[int]) -> list[int]:
    """By how many methods agree; every name's best unit first, then every name's second."""
    votes = {unit: vote([names[unit] for names in found.first.values() if unit in names]) for unit in units}
    several = [(v, unit) for unit, v in votes.items() if v is not None and v.votes > 1]
    seen: Counter[str] = Counter()
    places = []
    for v, unit in sorted(several, key=lambda item: (-item[0].votes, item[1])):
        places.append((seen[v.name], -v.votes, unit))
        seen[v.name] += 1
    return [unit for *_, unit in sorted(places)]
