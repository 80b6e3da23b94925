"""The summary of all measures: scores of every text, means of every way to explain, tests, agreement, and the text to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from jobs.explained import Row
from jobs.protocol import Part
from jobs.score_explanations.agreement import Agreement
from jobs.score_explanations.gathered import FIRST, VOTERS, Gathered, Key, Scored, gather, voters
from jobs.score_explanations.groups import Group, find_groups
from jobs.score_explanations.labels import Labels, read_labels
from jobs.score_explanations.task import Task, make_parts
from miclip_core.explain.auroc import compare_activations
from miclip_core.explain.differences import compare_methods, correct_tests
from miclip_core.explain.summary import Summary, summarise, summarise_share
from miclip_core.explain.votes import passing, vote
from schemas.plans import Plan


def results(task: Task) -> Iterator[Part]:
    """All tables of a summary."""
    (plan,) = task.plans
    found = gather(task.inputs, plan, task.notes)
    summary = Summaries(plan, found, read_labels(task, plan))
    yield from make_parts(plan, "explanation_scores", list(summary.scores()))
    yield from make_parts(plan, "explanation_summary", list(summary.means()))
    yield from make_parts(plan, "explanation_tests", summary.tests())
    yield from make_parts(plan, "selected_explanations", list(summary.selected()))
    yield from make_parts(plan, "explanation_agreement", list(Agreement(task, found, summary.groups).rows()))


class Summaries:
    """What follows from the scores of the texts about one SAE by one model."""

    def __init__(self, plan: Plan, found: Gathered, labels: Labels) -> None:
        self.plan, self.found, self.labels = plan, found, labels
        params: Any = plan.stage.params
        self._params, self.seed, self.metrics = params, int(params["random_seed"]), [*params["metrics"]]
        self.voters = voters(self.metrics)
        self.groups = find_groups(found, "iou" in self.metrics)

    # ---------------------------------------------------------------- texts

    def scores(self) -> Iterator[Row]:
        """A row per text, or per text that is none."""
        for key, scored in self.found.texts.items():
            random = self.found.random.get(key.feature, [])
            auroc = compare_activations([scored.made], [random], seed=None).macro
            named = None if np.isnan(scored.named) else bool(scored.named)
            yield {
                **self._of(key),
                **{name: scored.said[name] for name in ("alpha", "status", "text")},
                **self._measured(scored),
                **self.labels.of(scored.said["text"]),
                "auroc": auroc,
                "named": named,
            }

    def _of(self, key: Key) -> Row:
        return {**self.found.variants[key.place]._asdict(), "feature": key.feature, "sequence": key.sequence}

    def _measured(self, scored: Scored) -> Row:
        return {name: _known(getattr(scored, name)) for name in VOTERS}

    # ---------------------------------------------------------------- ways to explain

    def means(self) -> Iterator[Row]:
        """A row per way to explain and measure."""
        candidates = {place for group in self.groups for place in group.places.values()}
        for place, variant in enumerate(self.found.variants):
            same = {**variant._asdict(), "is_candidate": place in candidates}
            for metric, mean in self._means(place):
                numbers = {"value": mean.mean, "sd": mean.sd, "low": mean.low, "high": mean.high, "n": mean.n}
                yield {**same, "metric": metric, **numbers, "n_empty": self.found.n_empty(place, metric)}

    def _means(self, place: int) -> Iterator[tuple[str, Summary]]:
        measures = {"iou": ("iou", "precision", "recall"), "clip": ("clip",), "synthetic": ("synthetic",)}
        for metric in self.voters:
            yield from ((name, self._mean(place, name)) for name in measures[metric])
        if "synthetic" in self.metrics:
            areas = compare_activations(self.found.made(place), self.found.unmade, self.seed)
            yield "auroc_macro", summarise(areas.each, self.seed)
            yield "auroc_pooled", Summary(areas.n, areas.pooled, None, areas.low, areas.high)
        if "naming" in self.metrics:
            yield "named", summarise_share(self.found.values(place, "named"))
            yield "share_named", self._mean(place, "share_named")

    def _mean(self, place: int, measure: str) -> Summary:
        return summarise(self.found.values(place, measure), self.seed)

    # ---------------------------------------------------------------- methods

    def tests(self) -> list[Row]:
        """Whether one method is better than another, corrected over all of them.

        Whether scores are normal is asked of one way to explain once, with the first masking, not with every masking that it
        is compared in.
        """
        asked, tests, seen = [], [], set()
        for group, metric in product(self.groups, self.voters):
            for test in compare_methods(self._by_method(group, metric), [*group.places]):
                alone = (group.places[test.method_a], metric) if test.test == "shapiro" else None
                if alone not in seen:
                    asked.append({"vlm": self._params["vlm"], "masking": group.masking, "metric": metric})
                    tests.append(test)
                seen |= {alone} - {None}
        return [{**same, **test.__dict__} for same, test in zip(asked, correct_tests(tests), strict=True)]

    def _by_method(self, group: Group, metric: str) -> np.ndarray:
        """Scores fp64 [F, A], the mean over the texts of a feature."""
        return np.stack([self.found.values(place, metric) for place in group.places.values()], 1)

    def selected(self) -> Iterator[Row]:
        """The text to take of every feature, by each masking; none where no measure says anything of single texts.

        The first text of a method has its vote: more texts would be more draws, and so more wins.
        """
        for group in self.groups if self.voters else ():
            yield from self._selected(group)

    def _selected(self, group: Group) -> Iterator[Row]:
        found, places = self.found, [*group.places.values()]
        scores = {metric: np.stack([found.values(p, metric, FIRST) for p in places], 1) for metric in self.voters}
        votes = vote(scores, found.features, [*group.places])
        keys = {
            row: Key(places[choice], feature, FIRST)
            for row, (choice, feature) in enumerate(zip(votes.chosen.tolist(), found.features, strict=True))
            if choice >= 0
        }
        passed = self._passed([found.texts[key] for key in keys.values()])
        for (row, key), is_good in zip(keys.items(), passed, strict=True):
            scored = found.texts[key]
            yield {
                **self._of(key),
                "vote": group.masking,
                "text": scored.said["text"],
                "mean_rank": votes.mean_rank[row, votes.chosen[row]],
                "is_tie": bool(votes.is_tie[row]),
                "n_methods": self._n_methods(group, key.feature),
                **self._measured(scored),
                "passed": bool(is_good),
                **self.labels.of(scored.said["text"]),
            }

    def _n_methods(self, group: Group, feature: int) -> int:
        """Methods that have a text about a feature."""
        return sum(self.found.first(place, feature) is not None for place in group.places.values())

    def _passed(self, chosen: Sequence[Scored]) -> np.ndarray:
        """Whether chosen texts are good enough, by the measures that were taken."""
        measured = {
            name: np.array([getattr(scored, name) for scored in chosen]) if name in self.metrics else None
            for name in ("iou", "synthetic")
        }
        if all(values is None for values in measured.values()):
            return np.ones(len(chosen), bool)
        params = self._params
        least = (params["min_iou"], params["min_synthetic"], params["min_synthetic_percentile"])
        return passing(measured["iou"], measured["synthetic"], *least)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
