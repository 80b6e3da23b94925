"""Which methods beat which: the tests of a report, asked by place and measure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cluster.report.data import ReportData
from cluster.report.sections.places import Place, place_of
from cluster.report.sections.variants import is_truth, place

Wanted = Literal["more", "less"]
"""Which values of a measure are the better ones."""
LEVEL = 0.05
"""A corrected p-value below it counts as a difference."""


class Contest(NamedTuple):
    """How one method stands to the others by one measure: those it beats, those that beat it, and those it was compared with."""

    beats: tuple[str, ...]
    beaten_by: tuple[str, ...]
    against: tuple[str, ...]

    @property
    def words(self) -> str:
        """In plain words; nothing where it beats nobody."""
        if not self.against:
            return ""
        if len(self.beats) == len(self.against):
            return (
                f"better than all {len(self.beats)} others" if len(self.beats) > 1 else f"better than {self.beats[0]}"
            )
        return f"better than {len(self.beats)} of {len(self.against)}" if self.beats else ""

    @property
    def verdict(self) -> str:
        """The same of a method that is ahead, where it beats nobody too."""
        return self.words or (f"not told apart from the others (p ≥ {LEVEL} after Holm)" if self.against else "")


def leaders(values: Mapping[str, float]) -> list[str]:
    """Those with the largest value, several if it is the same to the last digits, in their usual order; the truth takes no part."""
    taking_part = {variant: value for variant, value in values.items() if not is_truth(variant)}
    most = max(taking_part.values(), default=0.0)
    ahead = [variant for variant, value in taking_part.items() if math.isclose(value, most, rel_tol=1e-6, abs_tol=1e-9)]
    return sorted(ahead, key=place)


class Judgements:
    """All rows of method_tests; each evaluate stage judges for itself."""

    def __init__(self, data: ReportData) -> None:
        self.rows = data.table("method_tests").to_pylist()
        self._by: dict[tuple[str, Place, str], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            self._by[row["stage"], place_of(row), row["measure"]].append(row)
        self._read = {s: frozenset(data.stages[s].stage.inputs.values()) for s in {row["stage"] for row in self.rows}}

    def judge_of(self, stages: Iterable[str]) -> str | None:
        """The evaluate stage that read most of these stages; of several the one that read most of all. None if nobody did."""
        wanted = frozenset(stages)
        ranked = sorted((-len(read & wanted), -len(read), judge) for judge, read in self._read.items() if read & wanted)
        return ranked[0][2] if ranked else None

    def contest(self, judge: str | None, of: Place, measure: str, variant: str, wanted: Wanted = "more") -> Contest:
        """Against every other method that an evaluate stage compared with it at this place; the truth takes no part."""
        beats: list[str] = []
        beaten: list[str] = []
        against: list[str] = []
        for row in self._by.get((judge, of, measure), ()) if judge else ():
            if variant not in (row["variant"], row["against"]) or is_truth(row["variant"]) or is_truth(row["against"]):
                continue
            first = row["variant"] == variant
            other = row["against"] if first else row["variant"]
            against.append(other)
            if is_real(row):
                has_more = (row["difference"] > 0) == first
                (beats if has_more == (wanted == "more") else beaten).append(other)
        return Contest(*(tuple(dict.fromkeys(names)) for names in (beats, beaten, against)))


def is_real(row: Mapping[str, Any]) -> bool:
    """Whether a difference stands after correction."""
    return row["p_holm"] is not None and row["p_holm"] < LEVEL and bool(row["difference"])


def is_out_of_reach(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no comparison of one evaluate stage could be real whatever was measured.

    An exact test of n pairs has no p below 2^(1 - n); Holm multiplies the smallest of m by m.
    """
    tested = [row for row in rows if row["p_value"] is not None]
    return bool(tested) and all(
        str(row["test"]).endswith("_exact") and len(tested) * 2.0 ** (1 - row["n_pairs"]) >= LEVEL for row in tested
    )


def pairs_once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair of methods once by each measure of each evaluate stage, turned so that the first has more."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["stage"], place_of(row), row["measure"], *sorted((row["variant"], row["against"])))
        if key not in kept:
            kept[key] = _turn(row) if (row["difference"] or 0) < 0 else row
    return list(kept.values())


def _turn(row: dict[str, Any]) -> dict[str, Any]:
    low, high = (None if v is None else -v for v in (row["high"], row["low"]))
    changes = {"variant": row["against"], "against": row["variant"], "difference": -row["difference"]}
    return {**row, **changes, "low": low, "high": high, "sd_seed": None, "seeds": None}
