"""Texts with all their scores, from the published tables of every measure: what the summary is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jobs.explained import Row, Variant, read_rows
from jobs.protocol import Inputs
from schemas.errors import NothingToScore
from schemas.plans import Plan

SAID = ("feature", "sequence", "alpha", "status", "text", "is_validation")
FIRST = 0
"""Number of the first text about a feature, which speaks for the others."""
VOTERS = ("iou", "clip", "synthetic")
"""Measures that give every single text a score."""
NAMINGS = ("named", "share_named")
"""Measures by which what is no text names nothing, where it is about a feature that tells a concept."""
NAN = float("nan")


class Key(NamedTuple):
    """One text: by the place of its way to explain among those of the summary, its feature, and its number."""

    place: int
    feature: int
    sequence: int


@dataclass(eq=False)
class Scored:
    """A text and what every measure says of it; NaN where one says nothing, as all but NAMINGS of what is no text.

    made: activations of its feature on images made from it.
    """

    said: Row
    iou: float = NAN
    precision: float = NAN
    recall: float = NAN
    clip: float = NAN
    named: float = NAN
    share_named: float = NAN
    made: list[float] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether there is one, that is no refusal."""
        return bool(self.said["status"] == "ok")

    @property
    def synthetic(self) -> float:
        """Mean activation on images made from it."""
        return float(np.mean(self.made)) if self.made else NAN


@dataclass(frozen=True, eq=False)
class Gathered:
    """Everything about the features of one SAE that are scored, the same ones for every way to explain.

    features: ascending. texts: those of them alone. random: activations of each feature on random images.
    """

    variants: tuple[Variant, ...]
    features: tuple[int, ...]
    texts: Mapping[Key, Scored]
    random: Mapping[int, list[float]]

    def of(self, place: int) -> Sequence[tuple[Key, Scored]]:
        """The texts of one way to explain, by feature and number."""
        return self._by_place[place]

    @cached_property
    def _by_place(self) -> list[list[tuple[Key, Scored]]]:
        found: list[list[tuple[Key, Scored]]] = [[] for _ in self.variants]
        for key, scored in self.texts.items():
            found[key.place].append((key, scored))
        return found

    def first(self, place: int, feature: int) -> Scored | None:
        """The first text about a feature by one way to explain; None if there is none, or what there is is no text."""
        scored = self.texts.get(Key(place, feature, FIRST))
        return scored if scored is not None and scored.is_text else None

    def values(self, place: int, measure: str, sequence: int | None = None) -> np.ndarray:
        """What a measure says of every feature, fp64 [F]: of one text, or the mean over all; NaN where it says nothing."""
        found: dict[int, list[float]] = defaultdict(list)
        for key, scored in self.of(place):
            if sequence in (None, key.sequence):
                found[key.feature].append(getattr(scored, measure))
        return np.array([_mean(found[feature]) for feature in self.features])

    def made(self, place: int) -> list[list[float]]:
        """Activations of every feature on all images made from its texts."""
        found: dict[int, list[float]] = {feature: [] for feature in self.features}
        for key, scored in self.of(place):
            found[key.feature] += scored.made
        return list(found.values())

    @property
    def unmade(self) -> list[list[float]]:
        """Activations of every feature on random images."""
        return [self.random.get(feature, []) for feature in self.features]

    def n_empty(self, place: int, measure: str) -> int:
        """Features without a text, of those that a measure could be taken of."""
        return len(self._measurable(measure) - {key.feature for key, scored in self.of(place) if scored.is_text})

    def _measurable(self, measure: str) -> set[int]:
        return self.named if measure in NAMINGS else set(self.features)

    @cached_property
    def named(self) -> set[int]:
        """Features that tell a concept, as far as some text about them says."""
        return {key.feature for key, scored in self.texts.items() if not np.isnan(scored.named)}


def voters(metrics: Sequence[str]) -> list[str]:
    """Those of the measures that were taken, in the order of VOTERS."""
    return [name for name in VOTERS if name in metrics]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else NAN


def gather(inputs: Inputs, plan: Plan, notes: list[str]) -> Gathered:
    """Read the texts and all measures that a summary has. notes: gets one if features are left out that some way explains.

    Raises:
        NothingToScore: no feature has a row of every way to explain, or each that has one was used to choose alphas.
    """
    params: Any = plan.stage.params
    named: Any = plan.effort["variants"]
    variants = tuple(Variant(*names) for names in named)
    said = [
        list(read_rows(inputs, plan.stage.inputs[f"explanations.{n}"], "explanations", SAID)) for n in _places(variants)
    ]
    features = _evaluated(said, params["scored"], variants, notes)
    wanted = set(features)
    keys = [
        (Key(place, row["feature"], row["sequence"]), Scored(row))
        for place, rows in enumerate(said)
        for row in rows
        if row["feature"] in wanted
    ]
    texts = dict(sorted(keys, key=lambda pair: pair[0]))
    for measure, read in {"iou": _add_iou, "clip": _add_clip, "synthetic": _add_made, "naming": _add_naming}.items():
        for place in _places(variants) if measure in params["metrics"] else ():
            read(inputs, plan, place, texts)
    _name_nothing(texts)
    random: dict[int, list[float]] = {feature: [] for feature in features}
    if "random" in plan.stage.inputs:
        for row in _activations(inputs, plan, plan.stage.inputs["random"]):
            if row["feature"] in wanted:
                random[row["feature"]].append(row["code"])
    return Gathered(variants, features, texts, random)


def _places(variants: Sequence[Variant]) -> range:
    return range(len(variants))


def _evaluated(
    said: Sequence[Sequence[Row]], scored: str, variants: Sequence[Variant], notes: list[str]
) -> tuple[int, ...]:
    """Features that every way to explain has rows of, without those that alphas were chosen on if these do not count."""
    of_each = [{row["feature"] for row in rows} for rows in said]
    common, all_there = set.intersection(*of_each), set.union(*of_each)
    if not common:
        few = min(range(len(variants)), key=lambda place: len(of_each[place]))
        raise NothingToScore(
            f"no feature is explained in every way: {len(all_there)} by some, {len(of_each[few])} by "
            f"{variants[few]}; explain the same features in all of them"
        )
    if common != all_there:
        lacking = [
            f"{variant} ({len(all_there) - len(there)})"
            for variant, there in zip(variants, of_each, strict=True)
            if there != all_there
        ]
        notes.append(
            f"{len(all_there) - len(common)} of {len(all_there)} explained features are left out of the summary: they are "
            f"not explained by {', '.join(lacking)}"
        )
    chosen_on = {row["feature"] for rows in said for row in rows if row["is_validation"]} if scored == "test" else set()
    if not common - chosen_on:
        raise NothingToScore(
            f"alphas were chosen on all {len(common)} features that are explained in every way; explain with a smaller "
            "validation, or set scored: all"
        )
    return tuple(sorted(common - chosen_on))


Texts = Mapping[Key, Scored]


def _grouped(
    inputs: Inputs, stage: str, table: str, place: int, texts: Texts, columns: Sequence[str]
) -> Iterator[tuple[Scored, list[Row]]]:
    """The texts of one way to explain with their rows of a measure."""
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in read_rows(inputs, stage, table, ("feature", "sequence", *columns)):
        found[Key(place, row["feature"], row["sequence"])].append(row)
    return ((texts[key], rows) for key, rows in found.items() if key in texts)


def _add_iou(inputs: Inputs, plan: Plan, place: int, texts: Texts) -> None:
    names = ("iou", "precision", "recall")
    for scored, rows in _grouped(inputs, plan.stage.inputs[f"iou.{place}"], "explanation_iou", place, texts, names):
        for name in names:
            setattr(scored, name, _mean(row[name] for row in rows))


def _add_clip(inputs: Inputs, plan: Plan, place: int, texts: Texts) -> None:
    stage = plan.stage.inputs[f"clip.{place}"]
    for scored, rows in _grouped(inputs, stage, "explanation_clip", place, texts, ("cosine",)):
        scored.clip = _mean(row["cosine"] for row in rows)


def _add_naming(inputs: Inputs, plan: Plan, place: int, texts: Texts) -> None:
    stage = plan.stage.inputs[f"naming.{place}"]
    for scored, (row,) in _grouped(inputs, stage, "explanation_naming", place, texts, NAMINGS):
        scored.named, scored.share_named = float(row["named"]), row["share_named"]


def _name_nothing(texts: Texts) -> None:
    """What is no text names nothing: a way that is often without one would be better than it is if these did not count."""
    tells = {key.feature for key, scored in texts.items() if not np.isnan(scored.named)}
    for key, scored in texts.items():
        if key.feature in tells and not scored.is_text:
            scored.named = scored.share_named = 0.0


def _add_made(inputs: Inputs, plan: Plan, place: int, texts: Texts) -> None:
    for row in _activations(inputs, plan, plan.stage.inputs[f"synthetic.{place}"]):
        if (key := Key(place, row["feature"], row["sequence"])) in texts:
            texts[key].made.append(row["code"])


def _activations(inputs: Inputs, plan: Plan, stage: str) -> Iterator[Row]:
    """Rows of images that are not all black, with the activation that the spec asks for as `code`, by number of image."""
    activation = str(plan.stage.params["activation"])
    columns = ("feature", "sequence", "number", "is_black", activation)
    rows = [row for row in read_rows(inputs, stage, "explanation_synthetic", columns) if not row["is_black"]]
    for row in sorted(rows, key=lambda row: row["number"]):
        yield {**row, "code": row[activation]}
