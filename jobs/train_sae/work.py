"""The train_sae worker: every SAE of a sweep takes its steps on one stream of batches, then is measured on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from jobs.models import open_model
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_evaluation import Evaluation, Measured
from jobs.tokens.order import Order
from jobs.tokens.sources import LiveSource, Source, TableSource
from jobs.tokens.window import Step, batches
from jobs.train_sae.lane import Lane
from jobs.train_sae.plan import WEIGHTS, settings_of, stream_of, tokens_of
from miclip_core.sae.parallel import Alone
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.model import VisionModel
from schemas.errors import WorkFailed
from schemas.plans import Plan, Shard


class TrainSaeWorker:
    """Holds the plans of one stream, and the model once it is needed; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self._setting = setting
        self._inputs = inputs
        self._plans = {plan.digest: plan for plan in setting.plans}
        # sums are cut by threads, so their last bits follow the stated CPUs and not what the machine happens to have
        torch.set_num_threads(max(1, int(setting.resources.cpus)))
        self._opened: VisionModel | None = None
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """The weights and curves of every SAE that asks, or what they do on images that none of them has seen."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        if plans[0].rounds[shard.round].name == "train":
            yield from self._train(plans, keep)
        else:
            yield from self._evaluate(plans, inputs)

    # -------------------------------------------------------------- training

    def _train(self, plans: Sequence[Plan], keep: Keep) -> Iterator[Part | Artifact]:
        lanes = [Lane(plan, self._setting.device, Alone()) for plan in plans]
        for lane in lanes:
            if (state := keep.latest(lane.plan.digest)) is not None:
                lane.load(*state)
                self.notes.append(f"{lane.plan.stage.detail} goes on from step {lane.step}")
        running = Running([lane for lane in lanes if not lane.is_done])
        if running.lanes:
            order = Order(tokens_of(plans[0]).forward.rows, stream_of(plans[0]))
            source = self._source([lane.plan for lane in running.lanes])
            for step in batches(source, order, running.steps_left(), running.position()):
                running.take(step, keep, int(plans[0].effort["keep_every"]))  # type: ignore[arg-type]
        for lane in lanes:
            yield from lane.results()

    def _source(self, plans: Sequence[Plan]) -> Source:
        tokens = list({t.site: t for t in map(tokens_of, plans)}.values())
        if tokens[0].stored:
            return TableSource(self._inputs, tokens)
        return LiveSource(self._model(), self._inputs, tokens, self._setting.resources.decode_threads)

    def _model(self) -> VisionModel:
        if self._opened is None:
            tokens = [tokens_of(plan) for plan in self._setting.plans]
            self._opened = open_model(tokens[0].forward, self._inputs, self._setting.device, [t.site for t in tokens])
        return self._opened

    # -------------------------------------------------------------- measuring

    def _evaluate(self, plans: Sequence[Plan], inputs: Inputs) -> Iterator[Part]:
        by_site: dict[str, list[Plan]] = {}
        for plan in plans:
            by_site.setdefault(tokens_of(plan).site, []).append(plan)
        for some in by_site.values():
            evaluation = Evaluation(
                tokens=tokens_of(some[0]),
                params=some[0].stage.params,
                source=self._source(some),
                model=self._model(),
                inputs=inputs,
                threads=self._setting.resources.decode_threads,
            )
            yield from evaluation.measure([self._trained(plan, inputs) for plan in some])

    def _trained(self, plan: Plan, inputs: Inputs) -> Measured:
        settings = settings_of(plan)
        dead = inputs.shard_table(plan.digest, 0, "sae_metrics")["dead"]
        columns = {"l1": settings.l1, "lr": settings.lr, "steps": settings.steps, "dead_at_end": dead[-1].as_py()}
        sae = load_sae(inputs.artifact(plan.digest, 0, WEIGHTS))
        return Measured(plan, sae.to(self._setting.device), columns)


class Running:
    """Lanes that still have steps to take, at whatever step each of them is: a lane waits until the stream reaches it."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self._sites = {site: [lane for lane in lanes if lane.site == site] for site in {lane.site for lane in lanes}}
        self._seen = {site: min(lane.step for lane in some) for site, some in self._sites.items()}

    def steps_left(self) -> dict[str, int]:
        """Site -> batches that its lanes still need."""
        return {
            site: max(lane.settings.steps for lane in some) - self._seen[site] for site, some in self._sites.items()
        }

    def position(self) -> dict[str, Sequence[int]]:
        """Where the stream of each site begins: where its slowest lane left it."""
        slowest = [min(some, key=lambda lane: lane.step) for some in self._sites.values()]
        return {lane.site: lane.position for lane in slowest if lane.position is not None}

    def take(self, step: Step, keep: Keep, keep_every: int) -> None:
        """One batch to every lane whose turn it is; states are saved every so many steps, and at the end."""
        for site, x_ND in step.x.items():
            for lane in self._sites[site]:
                if lane.step == self._seen[site] and not lane.is_done:
                    with naming(lane):
                        lane.begin(step.windows[site].rows)
                        lane.train(x_ND, step.position[site])
                    if lane.is_done or lane.step % keep_every == 0:
                        lane.save(keep)
            self._seen[site] += 1


@contextmanager
def naming(lane: Lane) -> Iterator[None]:
    """Say of which SAE of a sweep an error speaks, and at which step it came."""
    try:
        yield
    except WorkFailed as error:
        raise type(error)(f"{lane.plan.stage.detail}, step {lane.step}: {error}") from error


def open_worker(setting: Setting, inputs: Inputs) -> TrainSaeWorker:
    """Nothing is loaded before the first shard."""
    return TrainSaeWorker(setting, inputs)
