"""What kind of thing a text is about, read from a language model's answer, and how often context stands in for the feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from miclip_core.explain.summary import Summary, summarise_share

Abstraction = Literal["low-level visual feature", "high-level visual feature", "other"]
Context = Literal["animal", "background", "other"]
ABSTRACTIONS: tuple[Abstraction, ...] = get_args(Abstraction)
CONTEXTS: tuple[Context, ...] = get_args(Context)


def parse_abstraction(answer: str) -> Abstraction:
    """The label that an answer names: of several the first one, `other` without any; hyphens and case do not matter."""
    answer = answer.lower().replace("-", " ").replace("‑", " ")
    places = [(answer.find(level), number) for number, level in enumerate(("low level", "high level"))]
    named = [(place, number) for place, number in places if place >= 0]
    return ABSTRACTIONS[min(named)[1]] if named else "other"


def parse_context(answer: str) -> Context:
    """The label that an answer names: animal before background, whichever comes first, and `other` without any."""
    answer = answer.lower()
    return next((label for label in ("animal", "background") if label in answer), "other")


@dataclass(frozen=True, eq=False)
class ContextualBias:
    """Of features that steering takes for background where showing images finds less: how often each method says animal.

    features: their places, int64, the largest difference first. animals: by method the share, of those with a label.
    """

    features: np.ndarray
    animals: Mapping[str, Summary]


def find_contextual_bias(
    iou: Mapping[str, np.ndarray], contexts: Mapping[str, Sequence[Context | None]], most: int = 300
) -> ContextualBias:
    """Whether shown images make a method describe what tends to be around the feature in place of the feature.

    iou: fp64 [U] of `steering` and `topk`, NaN where unknown. contexts: by method a label for each feature, None without
    one. Taken are the features labelled background by steering with the largest IoU of steering less that of topk, at
    most so many; of equal ones the first.
    """
    gain = np.asarray(iou["steering"], np.float64) - np.asarray(iou["topk"], np.float64)
    places = np.flatnonzero(np.array([label == "background" for label in contexts["steering"]], bool) & ~np.isnan(gain))
    places = places[np.argsort(-gain[places], kind="stable")][:most]
    labels = {method: [given[place] for place in places.tolist()] for method, given in contexts.items()}
    animals = {
        method: summarise_share([np.nan if label is None else label == "animal" for label in given])
        for method, given in labels.items()
    }
    return ContextualBias(places, animals)
