"""What units stand for, and what each method says of them and found for them: from published lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.described import Units, read_lists
from jobs.evaluate.compared import Group, Judged, Work
from jobs.protocol import Inputs
from miclip_core.evaluate.localisation import Precision, precision_at


@dataclass(frozen=True, eq=False)
class Truth:
    """The units that stand for something: units int64 [N] ascending, the name of each, and its AUROC float32 [N] or None."""

    units: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray | None
    best: float | None = None
    """The largest AUROC of all units, also where no unit is good enough."""

    @property
    def by_unit(self) -> dict[int, str]:
        """Unit -> name."""
        return dict(zip(self.units.tolist(), self.names, strict=True))


@dataclass(frozen=True, eq=False)
class Said:
    """One method on the units of a truth, in their order: the first of each description, and precision by concept.

    offered: the concepts that it had to choose from.
    """

    group: Group
    method: Judged
    truth: Truth
    names: tuple[str | None, ...]
    offered: frozenset[str]
    precision: dict[str, Precision]

    @property
    def units(self) -> Units:
        """Whose units."""
        return self.group.units


def read_truth(inputs: Inputs, work: Work, group: Group, min_truth: float | None) -> Truth:
    """Unit i is class i; or the concept with the best AUROC, where that is at least `min_truth`."""
    names = work.concepts[group.truth_concepts]
    if group.truth is None:
        return Truth(np.arange(len(names)), names, None)
    found = read_lists(inputs, group.truth, "describe", 1)
    good = found.scores >= np.float32(min_truth)
    best = float(found.scores.max()) if len(found.scores) else None
    return Truth(found.units[good], tuple(names[c] for c in found.concepts[good].tolist()), found.scores[good], best)


def read_said(inputs: Inputs, work: Work, group: Group, truth: Truth) -> list[Said]:
    """What every method of a group says of the units that stand for something."""
    return [_said(inputs, work.concepts[method.concepts], group, method, truth) for method in group.methods]


def _said(inputs: Inputs, concepts: Sequence[str], group: Group, method: Judged, truth: Truth) -> Said:
    first = read_lists(inputs, method.stage, "describe", 1)
    said = dict(zip(first.units.tolist(), first.concepts.tolist(), strict=True))
    names = tuple(concepts[said[unit]] if unit in said else None for unit in truth.units.tolist())
    lists = read_lists(inputs, method.stage, "localise", group.tau)
    located: dict[str, list[int]] = {}
    for concept, unit in zip(lists.concepts.tolist(), lists.units.tolist(), strict=True):
        located.setdefault(concepts[concept], []).append(unit)
    precision = precision_at(located, truth.by_unit, concepts, group.tau)
    return Said(group, method, truth, names, frozenset(concepts), precision)
