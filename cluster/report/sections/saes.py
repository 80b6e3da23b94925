"""The SAEs of a report: grouped by model and site, each with the short name that tells it from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.report.data import ReportData
from cluster.report.html import Html, tag

DECIDING = ("arch", "latents", "k", "l1", "lr", "steps", "seed", "source")
"""Settings that may tell SAEs of one model and site apart, in the order in which a name says them."""
WORDS = {"latents": "{} latents", "k": "k {}", "l1": "l1 {}", "lr": "lr {}", "steps": "{} steps", "seed": "seed {}"}


@dataclass(frozen=True)
class SaeFacts:
    """One SAE: its row of sae_summary, a name that no other SAE of its model and site has, and its number among them."""

    row: dict[str, Any]
    name: str
    number: int

    @property
    def ref(self) -> str:
        """`sae:<stage>`, as other tables name it."""
        return str(self.row["sae"])

    @property
    def stage(self) -> str:
        """The digest of the stage that trained or imported it."""
        return self.ref.removeprefix("sae:")


@dataclass(frozen=True)
class Group:
    """The SAEs of one model and site, which are compared with each other."""

    model: str
    site: str
    saes: tuple[SaeFacts, ...]

    def heading(self) -> Html:
        """Model and site."""
        return tag("h3", self.model, " ", tag("code", self.site))


def load_groups(data: ReportData) -> list[Group]:
    """Every SAE with a summary, by model and site, in the order in which they are published."""
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in data.table("sae_summary").to_pylist():
        places.setdefault((row["model"], row["site"]), []).append(row)
    groups = []
    for (model, site), rows in places.items():
        rows.sort(key=lambda row: [_sortable(row[field]) for field in DECIDING] + [row["sae"]])
        names = name_apart(rows)
        groups.append(Group(model, site, tuple(SaeFacts(r, name, i) for i, (r, name) in enumerate(zip(rows, names)))))
    return groups


@dataclass(frozen=True)
class Described:
    """One SAE whose features are described by one stage of kind sae_features."""

    stage: str
    ref: str
    model: str
    site: str
    name: str
    number: int

    @property
    def title(self) -> str:
        """Its name, model and site, for a list over many."""
        return f"{self.name} · {self.model} {self.site}"


def load_described(data: ReportData) -> list[Described]:
    """The SAEs with features, in the order of their names; one without a summary goes by its ref."""
    known = {sae.ref: sae for group in load_groups(data) for sae in group.saes}
    first = data.table("sae_features", ["stage", "sae", "model", "site"], {"feature": [0]}).to_pylist()
    found = []
    for number, row in enumerate(first):
        sae = known.get(row["sae"])
        name, place = (sae.name, sae.number) if sae else (row["sae"], number)
        found.append(Described(row["stage"], row["sae"], row["model"], row["site"], name, place))
    order = {ref: i for i, ref in enumerate(known)}
    return sorted(found, key=lambda d: (order.get(d.ref, len(order)), d.ref, d.stage))


def name_apart(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names that say what differs between the rows; of rows that differ in nothing else, the ref."""
    differing = [f for f in DECIDING if len({row[f] for row in rows}) > 1 or f == "arch"]
    names = [" ".join(_say(f, row[f]) for f in differing if row[f] is not None) for row in rows]
    return [name if names.count(name) == 1 else f"{name} {row['sae']}" for name, row in zip(names, rows)]


def _say(field: str, value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return WORDS.get(field, "{}").format(shown)


def _sortable(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)
