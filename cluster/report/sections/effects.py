"""What interventions did: their effects by place, method and change, and whose is the largest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.report.bars import Bar, mean_bar
from cluster.report.data import ReportData
from cluster.report.sections.judged import leaders
from cluster.report.sections.places import Place, place_of
from cluster.report.sections.variants import place
from schemas.intervene import Change


class Setting(NamedTuple):
    """Interventions that can be compared: at one place, with one use of the SAE's error, at the same tokens."""

    place: Place
    error: str
    positions: str

    @property
    def words(self) -> str:
        """Behind the name of the place."""
        dropped = ", error dropped" if self.error == "drop" else ""
        return ("" if self.positions == "all" else f", {self.positions} tokens") + dropped


class Effect(NamedTuple):
    """One method under one change, over its seeds; off-class is None where it was not measured."""

    on: Bar
    off: Bar | None
    seeds: int


Effects = dict[str, dict[Change, Effect]]


def load_effects(data: ReportData) -> dict[Setting, tuple[Effects, float]]:
    """Effects of every method at every setting, and the accuracy without a change there."""
    grouped: dict[Setting, dict[tuple[str, Change], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in data.table("intervention_summary").to_pylist():
        change = Change(op=row["op"], beta=row["beta"])
        setting = Setting(place_of(row), row["error_mode"], row["positions"])
        grouped[setting][row["variant"], change].append(row)
    found = {}
    for setting in sorted(
        grouped, key=lambda s: (s.place.model, s.place.site, s.place.sae or "", s.error, s.positions)
    ):
        effects: Effects = {}
        for (variant, change), rows in sorted(
            grouped[setting].items(), key=lambda item: (place(item[0][0]), -item[0][1].beta)
        ):
            effects.setdefault(variant, {})[change] = _effect(rows)
        accuracy = next(iter(grouped[setting].values()))[0]["acc_ref"]
        found[setting] = (effects, accuracy)
    return found


def _effect(rows: Sequence[dict[str, Any]]) -> Effect:
    on = mean_bar([Bar(row["dacc"], row["dacc_low"], row["dacc_high"]) for row in rows])
    off = [
        Bar(r["offclass_dacc"], r["offclass_low"], r["offclass_high"]) for r in rows if r["offclass_dacc"] is not None
    ]
    return Effect(on, mean_bar(off) if off else None, len({row["seed"] for row in rows}))


def is_removal(change: Change) -> bool:
    """Whether less accuracy is what it is after."""
    return change.beta < (1 if change.op == "scale" else 0)


def say_change(change: Change) -> str:
    """enhance ×2, remove ×0, add +1"""
    if change.op == "add":
        return f"add {change.beta:+g}".replace("-", "−")
    return f"{'remove' if is_removal(change) else 'enhance'} ×{change.beta:g}"


def winners(effects: Effects, change: Change) -> list[str]:
    """The method with the largest effect in the wanted direction, or several with the same; none if nobody has any."""
    sign = -1 if is_removal(change) else 1
    return leaders(
        {v: sign * of[change].on.value for v, of in effects.items() if change in of and sign * of[change].on.value > 0}
    )


def changes_of(effects: Effects) -> list[Change]:
    """All changes of any method, enhancements first."""
    found = {change for of in effects.values() for change in of}
    return sorted(found, key=lambda c: (c.op != "scale", -c.beta))
