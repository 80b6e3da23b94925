"""Where units are: the neurons of a site, or the features of an SAE, under the name by which sections call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.report.data import ReportData
from cluster.report.sections.saes import load_groups


class Place(NamedTuple):
    """All units of one site or of one SAE."""

    model: str
    site: str
    sae: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What places are ordered by: neurons before features."""
        return self.model, self.site, self.sae or ""

    @property
    def kind(self) -> str:
        """neurons or features"""
        return "features" if self.sae else "neurons"


def place_of(row: Mapping[str, Any]) -> Place:
    """Of a row of any table with model, site and sae."""
    return Place(row["model"], row["site"], row["sae"])


class PlaceNames:
    """What places are called; an SAE goes by the name that tells it from the others at its site."""

    def __init__(self, data: ReportData) -> None:
        groups = load_groups(data)
        self._saes = {sae.ref: sae.name for group in groups for sae in group.saes}

    def title(self, place: Place) -> str:
        """Model, site, and what the units are."""
        what = f"features of {self._saes.get(place.sae, place.sae)}" if place.sae else "neurons"
        return f"{place.model} {place.site} · {what}"
