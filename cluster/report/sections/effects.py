"""What interventions did: their effects by place, method and change, and whose is the largest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.report.bars import Bar, mean_bar
from cluster.report.data import ReportData
from cluster.report.sections.judged import Wanted, leaders
from cluster.report.sections.places import Place, place_of
from cluster.report.sections.settings import Asked, Settings
from schemas.intervene import Change
from schemas.refs import Site

TOKENS = ("all", "patch", "cls")
"""Where units can be changed; maps have one kind of positions."""


class Setting(NamedTuple):
    """Interventions that can be compared: of units of one place, at the same tokens, with one use of the SAE's error, on the same images."""

    place: Place
    error: str
    positions: str
    told: str = ""
    """What else tells it from others at this place, such as its images."""

    @property
    def words(self) -> str:
        """Behind the name of the place: where units were changed if that is not where they were found, and so on."""
        own = Site.parse(self.place.site).tokens
        there = own in (self.positions, None) or own not in TOKENS
        changed = "" if there else f", changed at {self.positions} tokens"
        dropped = ", error dropped" if self.error == "drop" else ""
        return changed + dropped + (f", {self.told}" if self.told else "")


class Effect(NamedTuple):
    """One method under one change, over its seeds, each a stage; off-class is None where it was not measured."""

    on: Bar
    off: Bar | None
    stages: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.stages)


Effects = dict[str, dict[Change, Effect]]
"""Method -> change -> effect; a variant with several settings is several methods."""
OWN = ("site", "at", "method", "variant", "tau", "concept_ids", "changes", "units", "sae")
"""Settings in which methods that are compared may differ, or that say where units are."""


def load_effects(data: ReportData) -> dict[Setting, tuple[Effects, float]]:
    """Effects of every method at every setting, and the accuracy without a change there."""
    settings = Settings(data)
    grouped: dict[Setting, dict[Asked, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in data.table("intervention_summary").to_pylist():
        setting = Setting(place_of(row), row["error_mode"], row["positions"])
        grouped[setting][settings.of(row["stage"], OWN)].append(row)
    found = {}
    for setting in sorted(grouped, key=lambda s: (s.place.key, s.error, s.positions)):
        alike = [grouped[setting][asked] for asked in sorted(grouped[setting], key=sorted)]
        told = settings.tell([rows[0]["stage"] for rows in alike], OWN)
        for words, rows in zip(told, alike, strict=True):
            found[setting._replace(told=words)] = (_effects(settings.series(rows, ("changes",))), rows[0]["acc_ref"])
    return found


def _effects(series: Mapping[str, Sequence[dict[str, Any]]]) -> Effects:
    effects: Effects = {}
    for name, rows in series.items():
        changes: dict[Change, dict[int | None, dict[str, Any]]] = defaultdict(dict)
        for row in sorted(rows, key=lambda row: -row["beta"]):
            changes[Change(op=row["op"], beta=row["beta"])].setdefault(row["seed"], row)
        effects[name] = {change: _effect(list(seeds.values())) for change, seeds in changes.items()}
    return effects


def _effect(rows: Sequence[dict[str, Any]]) -> Effect:
    on = mean_bar([Bar(row["dacc"], row["dacc_low"], row["dacc_high"]) for row in rows])
    off = [
        Bar(r["offclass_dacc"], r["offclass_low"], r["offclass_high"]) for r in rows if r["offclass_dacc"] is not None
    ]
    return Effect(on, mean_bar(off) if off else None, tuple(row["stage"] for row in rows))


def is_removal(change: Change) -> bool:
    """Whether less accuracy is what it is after."""
    return change.beta < (1 if change.op == "scale" else 0)


def wanted(change: Change) -> Wanted:
    """What a method is after."""
    return "less" if is_removal(change) else "more"


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
