"""Whether texts are better where topk and steering say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jobs.explained import Row
from jobs.score_explanations.gathered import Gathered, voters
from jobs.score_explanations.groups import Group
from jobs.score_explanations.task import Task
from jobs.sentences import open_sentences
from jobs.text_encoders import TextEncoder
from miclip_core.explain.agreement import agreeing, score_by_agreement
from miclip_core.explain.auroc import compare_activations
from schemas.base import canonical_json
from schemas.plans import load_json


class Agreement:
    """Scores of features whose topk and steering texts say the same."""

    def __init__(self, task: Task, found: Gathered, groups: Sequence[Group]) -> None:
        self._task, self._found, self._params = task, found, task.params
        self._groups = [group for group in groups if {"topk", "steering"} <= group.places.keys()]

    def rows(self) -> Iterator[Row]:
        """A row per masking, method, measure and least cosine; none without both methods."""
        for group, cosine_F in zip(self._groups, self._cosines(), strict=True):
            for method, place in group.places.items():
                same = {"vlm": self._params["vlm"], "masking": group.masking, "method": method}
                yield from ({**same, **row} for row in self._of(place, cosine_F))

    def _of(self, place: int, cosine_F: np.ndarray) -> Iterator[Row]:
        found, thresholds = self._found, self._params["agreement"]
        for metric in voters(self._params["metrics"]):
            for agreed in score_by_agreement(cosine_F, found.values(place, metric), thresholds):
                yield {"metric": metric, "threshold": agreed.threshold, "value": agreed.mean, "n": agreed.n}
        for threshold, agree in agreeing(cosine_F, thresholds) if "synthetic" in self._params["metrics"] else ():
            made, unmade = (_pick(values, agree) for values in (found.made(place), found.unmade))
            areas = compare_activations(made, unmade, seed=None)
            for metric, value in (("auroc_macro", areas.macro), ("auroc_pooled", areas.pooled)):
                yield {"metric": metric, "threshold": threshold, "value": value, "n": areas.n}

    def _cosines(self) -> list[np.ndarray]:
        """For each group the cosine of the first texts of both methods, fp64 [F]; NaN where one has none."""
        pairs = [[self._texts(group.places[name]) for name in ("topk", "steering")] for group in self._groups]
        texts = sorted({text for pair in pairs for some in pair for text in some if text is not None})
        if not texts:
            return [np.full(len(self._found.features), np.nan) for _ in self._groups]
        encoder: TextEncoder = load_json(TextEncoder, canonical_json(self._task.effort["encoder"]))
        sentences = open_sentences(encoder, self._task.inputs, self._task.device)
        self._task.notes.extend(sentences.notes(texts))
        embedded = dict(zip(texts, sentences.embed(texts).double().numpy(), strict=True))
        return [
            np.array([np.nan if None in (a, b) else embedded[a] @ embedded[b] for a, b in zip(*pair, strict=True)])
            for pair in pairs
        ]

    def _texts(self, place: int) -> list[str | None]:
        first = (self._found.first(place, feature) for feature in self._found.features)
        return [None if scored is None else scored.said["text"] for scored in first]


def _pick(values: Sequence[Any], chosen_F: np.ndarray) -> list[Any]:
    return [value for value, is_chosen in zip(values, chosen_F.tolist(), strict=True) if is_chosen]
