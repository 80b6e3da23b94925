"""What the shards of a run cost: seconds by kind, round and model, kept beside the run for those who plan the next one."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import median
from typing import Any, Literal

from cluster.events import Event
from cluster.planned import PlannedPipeline
from cluster.stores.base import Store
from jobs.kinds import get_kind
from jobs.protocol import Estimate, Known, flops_of
from schemas import layout
from schemas.base import Frozen
from schemas.errors import MiclipError
from schemas.plans import Plan, Resources

COSTS = "costs.json"
OPEN = "open"
"""Stands for a round where a rate is of opening a worker."""
SAVE_SECONDS = 300.0
"""A driver that is killed loses no more than what it measured in this time."""
Measure = Literal["FLOP", "row", "worker"]


class Rate(Frozen):
    """Seconds of one worker per unit of work: the median over `shards` shards of one round of one kind for one subject.

    per: FLOPs where the plan counts them: those of the whole work, spread over its rounds by rows, so that every round
    has a rate of its own; else rows of the round; of the round `open`, workers. on_gpu: whether the worker had any.
    """

    kind: str
    round: str
    subject: str
    on_gpu: bool
    per: Measure
    seconds: float
    shards: int


class RunCosts(Frozen):
    """`costs.json` of a run: what the shards took that it did; cached ones took nothing."""

    rates: tuple[Rate, ...] = ()


class CostLog:
    """A listener of events that measures finished shards against what was planned for them."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._plans: dict[str, tuple[Plan, Resources]] = {}
        self._known = Known({}, {})
        self._estimates: dict[str, Estimate] = {}
        self._seconds: dict[tuple[str, str, str, bool, Measure], list[float]] = defaultdict(list)
        self._save_after = time.monotonic() + SAVE_SECONDS

    def expect(self, planned: PlannedPipeline) -> None:
        """Take in what the shards that come will be of."""
        self._known = planned.known
        self._plans.update((plan.digest, (plan, resources)) for _, plan, resources in planned.plans())

    def __call__(self, event: Event) -> None:
        """Take one event; all but finished shards of expected stages are passed over."""
        if event["event"] == "shard_done" and event["items"] and set(event["stages"]) <= self._plans.keys():
            self._measure(event)
            if time.monotonic() > self._save_after:
                self.save()

    def _measure(self, event: dict[str, Any]) -> None:
        plan, resources = self._plans[event["stages"][0]]
        seconds = event["seconds"]
        flops = flops_of([self.estimate(stage) for stage in event["stages"]])
        amount = flops * event["items"] / event["round_rows"] if flops else event["items"]
        where = plan.stage.subject, resources.gpus > 0
        per: Measure = "FLOP" if flops else "row"
        took = sum(seconds.get(name, 0.0) for name in ("process", "store"))
        if not event.get("resumed"):  # its seconds are those of the last try, its items those of all tries
            self._seconds[plan.stage.kind, event["round_name"], *where, per].append(took / amount)
        if OPEN in seconds:
            self._seconds[plan.stage.kind, OPEN, *where, "worker"].append(seconds[OPEN])

    def estimate(self, stage: str) -> Estimate:
        """What is planned for an expected stage; made when it is wanted, since most stages of most runs are cached."""
        if stage not in self._estimates:
            plan, _ = self._plans[stage]
            self._estimates[stage] = get_kind(plan.stage.kind).estimate(plan, self._known)
        return self._estimates[stage]

    def save(self) -> None:
        """Write what was measured so far; nothing if that is nothing. An estimate is all that is lost if it fails."""
        self._save_after = time.monotonic() + SAVE_SECONDS
        rates = tuple(
            Rate(kind=kind, round=round, subject=subject, on_gpu=gpu, per=per, seconds=median(took), shards=len(took))
            for (kind, round, subject, gpu, per), took in sorted(self._seconds.items())
        )
        try:
            if rates:
                costs = RunCosts(rates=rates)
                self._store.replace(layout.run_key(self._run, COSTS), costs.canonical_json().encode())
        except MiclipError:  # the run itself meets this store too and says what is wrong with it
            pass
