"""The train_sae worker: every SAE of a sweep takes its steps on one stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from jobs.models import open_model
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_tokens import tokens_of
from jobs.threads import use_cpus
from jobs.tokens.exchange import GangSource, feed
from jobs.tokens.gang import Membership, join_gang
from jobs.tokens.order import Order
from jobs.tokens.sources import LiveSource, Source, TableSource
from jobs.tokens.window import Step, batches
from jobs.train_sae.lane import Lane
from jobs.train_sae.plan import stream_of
from miclip_core.sae.parallel import Alone, Group
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadSae, GangLost, SaeCollapsed, SaeDiverged, ThresholdUnset, WorkFailed
from schemas.plans import Plan, Shard


class TrainSaeWorker:
    """Holds the plans of one stream, and the model once it is needed; `notes` says what people should know.

    In a gang the first `data_parallel` members train on their share of every batch, the others make tokens; the first
    alone saves and publishes.
    """

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self._setting = setting
        self._inputs = inputs
        self._plans = {plan.digest: plan for plan in setting.plans}
        use_cpus(setting)
        self._model: VisionModel | None = None
        self._member: Membership | None = None
        if setting.gang.size > 1:
            trainers = int(setting.plans[0].stage.params["data_parallel"])  # type: ignore[arg-type]
            self._member = join_gang(setting.gang, trainers, setting.device)
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """The weights and curves of every SAE that asks."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        if self._member is None:
            yield from self._train(plans, keep, Alone(), self._make_source(plans))
        elif self._member.group is None:
            feed(self._make_source(plans), self._member)
        else:
            source = GangSource(self._make_source(plans), self._member)
            yield from self._train(plans, keep, self._member.group, source)
            source.close()

    # -------------------------------------------------------------- training

    def _train(self, plans: Sequence[Plan], keep: Keep, group: Group, source: Source) -> Iterator[Part | Artifact]:
        lanes = [Lane(plan, self._setting.device, group) for plan in plans]
        for lane in lanes:
            if lane.resume(keep):
                self.notes.append(f"{lane.plan.stage.detail}: goes on from step {lane.step}")
        check_agreed([lane.step for lane in lanes], group, self._setting.device)
        running = Running([lane for lane in lanes if not lane.is_done])
        order = Order(tokens_of(plans[0]).forward.rows, stream_of(plans[0]))
        keep_every = int(plans[0].effort["keep_every"])  # type: ignore[arg-type]
        for step in batches(source, order, running.steps_left(), running.position()):
            for lane in running.take(step):
                if group.rank == 0 and (lane.is_done or lane.step % keep_every == 0):
                    lane.save(keep)
            if not running.is_any_left:
                break
        if running.failures:
            raise running.failures[0]  # the others are kept at their end, so that trying them without it costs nothing
        if group.rank == 0:
            for lane in lanes:
                with blaming(lane):
                    yield from lane.results()

    def _make_source(self, plans: Sequence[Plan]) -> Source:
        """The tokens of these plans, from tables or from the model."""
        tokens = list({t.site: t for t in map(tokens_of, plans)}.values())
        if tokens[0].stored:
            return TableSource(self._inputs, tokens)
        return LiveSource(self._open_model(), self._inputs, tokens, self._setting.resources.decode_threads)

    def _open_model(self) -> VisionModel:
        if self._model is None:
            tokens = [tokens_of(plan) for plan in self._setting.plans]
            self._model = open_model(tokens[0].forward, self._inputs, self._setting.device, [t.site for t in tokens])
        return self._model


class Running:
    """Lanes that still have steps to take, at whatever step each of them is: a lane waits until the stream reaches it.

    A lane that fails is left behind, and the others go on; `failures` says why, of which SAE.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.failures: list[WorkFailed] = []
        self._sites: dict[str, list[Lane]] = {}
        for lane in lanes:
            self._sites.setdefault(lane.site, []).append(lane)
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

    @property
    def is_any_left(self) -> bool:
        """Whether a lane still has steps to take."""
        return any(not lane.is_done for some in self._sites.values() for lane in some)

    def take(self, step: Step) -> list[Lane]:
        """Give every site's batch to the lanes whose turn it is; returns those that have taken it.

        Raises:
            BadTokens, GangLost: as every lane would.
        """
        taken = []
        for site, x_ND in step.x.items():
            for lane in [lane for lane in self._sites[site] if lane.step == self._seen[site] and not lane.is_done]:
                try:
                    with blaming(lane):
                        lane.begin(step.windows[site].rows)
                        lane.train(x_ND, step.position[site])
                except OF_ONE as error:
                    self.failures.append(error)
                    self._sites[site].remove(lane)
                else:
                    taken.append(lane)
            self._seen[site] += 1
        return taken


OF_ONE = (SaeDiverged, SaeCollapsed, ThresholdUnset, BadSae)
"""What goes wrong with one SAE and says nothing of its siblings."""


@contextmanager
def blaming(lane: Lane) -> Iterator[None]:
    """Say of which SAE of a sweep an error speaks."""
    try:
        yield
    except OF_ONE as error:
        named = type(error)(f"{lane.plan.stage.detail}: {error}")
        named.stages = (lane.plan.digest,)
        raise named from error


def check_agreed(steps: Sequence[int], group: Group, device: str) -> None:
    """All trainers must go on from the same steps.

    Raises:
        GangLost: they read different states, because a gang before this one was still writing.
    """
    most = torch.tensor([*steps, *(-step for step in steps)], dtype=torch.int64, device=device)
    group.all_max(most)
    if (most[: len(steps)] != -most[len(steps) :]).any():
        raise GangLost("the members of this gang found different states; all start again")


def open_worker(setting: Setting, inputs: Inputs) -> TrainSaeWorker:
    """A gang meets; nothing else is loaded before the first shard."""
    return TrainSaeWorker(setting, inputs)
