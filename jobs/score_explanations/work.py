"""The score_explanations worker: each measure looks at the texts of all ways to explain together, then one summary of all."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch

from jobs.blame import blaming
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.score_explanations.cost import needs
from jobs.score_explanations.task import Task
from jobs.threads import use_cpus
from schemas.plans import Shard


class ScoreWorker:
    """Serves the stages of one measure, whose shards are the same features; `notes` says what people should know."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._held: dict[Hashable, Any] = {}
        self.notes: list[str] = []

    @torch.no_grad()
    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """A measure of the features of a shard, labels of the texts about them, or the summary."""
        self.notes.clear()
        plans = tuple(self._plans[stage] for stage in stages)
        task = Task(plans, shard, inputs, self._setting, self.notes, self._held)
        with blaming(*plans):
            for extra in {extra for plan in plans for extra in needs(plan)}:
                extra.require()
            if "shown_rows" in task.params:
                task.check_images()
            yield from _module(task).results(task)


def _module(task: Task) -> Any:
    """The module of a round: `results(task)` gives what it makes for all stages."""
    output = task.plans[0].stage.output
    name = "labels" if task.plans[0].rounds[task.shard.round].name == "label" else output
    return import_module(f"jobs.score_explanations.{name}")


def open_worker(setting: Setting, inputs: Inputs) -> ScoreWorker:
    """Nothing is loaded before there is work."""
    return ScoreWorker(setting)
