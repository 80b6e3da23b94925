"""The describe worker: images are seen once for all stages of a site, and each stage's method does its rounds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch

from jobs.blame import blaming
from jobs.describe.plan import OVER_IMAGES
from jobs.describe.task import Collector, Task
from jobs.describe.units import UnitReader
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_files import WEIGHTS
from jobs.threads import use_cpus
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from schemas.errors import BadSae
from schemas.plans import Plan, Shard


class DescribeWorker:
    """Serves the stages of one site whose rounds are alike; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._saes: dict[str | None, Sae | None] = {}
        self._reader = UnitReader(setting, inputs)
        self._held: dict[Hashable, Any] = {}
        self.notes: list[str] = []

    @torch.no_grad()
    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """One shard of a round over images, of captions, or the end of every stage that asks."""
        self.notes.clear()
        tasks = [self._task(self._plans[stage], shard, inputs) for stage in stages]
        if tasks[0].round_name in OVER_IMAGES:
            yield from self._see(shard, tasks)
            return
        for task in tasks:
            with blaming(task.plan):
                yield from _module(task).finish(task)

    def _see(self, shard: Shard, tasks: Sequence[Task]) -> Iterator[Artifact]:
        collectors: list[tuple[Task, Collector]] = []
        for task in tasks:
            with blaming(task.plan):
                collectors.append((task, _module(task).collector(task)))
        saes = {task.plan.stage.inputs.get("sae"): task.sae for task in tasks}
        for found in self._reader.read(shard, saes):
            for task, collector in collectors:
                with blaming(task.plan):
                    collector.add(found[task.plan.stage.inputs.get("sae")])
        self.notes += [note for note in self._reader.notes if note not in self.notes]
        for task, collector in collectors:
            with blaming(task.plan):
                yield from collector.results()

    def _task(self, plan: Plan, shard: Shard, inputs: Inputs) -> Task:
        digest = plan.stage.inputs.get("sae")
        if digest not in self._saes:
            with blaming(plan):
                self._saes[digest] = None if digest is None else self._open_sae(plan, digest, inputs)
        return Task(plan, shard, inputs, self._setting, self._saes[digest], self.notes, self._held)

    def _open_sae(self, plan: Plan, digest: str, inputs: Inputs) -> Sae:
        sae = load_sae(inputs.published(digest, WEIGHTS))
        try:
            sae.config.check(str(plan.stage.params["site"]), int(str(plan.effort["width"])))
        except BadSae as error:
            raise BadSae(f"sae:{digest}: {error}") from None
        return sae.to(self._setting.device)


def _module(task: Task) -> Any:
    """The module of a method: `collector(task)` for rounds over images, `finish(task)` for all others."""
    return import_module(f"jobs.describe.methods.{task.plan.stage.output}")


def open_worker(setting: Setting, inputs: Inputs) -> DescribeWorker:
    """Nothing is loaded before there is work."""
    return DescribeWorker(setting, inputs)
