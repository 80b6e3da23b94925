"""What the scheduler's decisions add up to: a cluster of 64 GPUs in virtual time, with stragglers, deaths and lost nodes."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import pytest

from cluster.board import Board
from cluster.scheduler import Assign, Demand, Node, Slot, Start, View, WorkerState, count_fitting, decide, get_demands
from cluster.works import Outcome, Task, Work
from jobs.protocol import Estimate
from schemas.plans import Plan, Resources, Round, StageSpec
from tests.corridor import selftest_works

DGX = Node(cpus=64, gpus=(1.0,) * 8, memory_gb=512)


class Outage(NamedTuple):
    """A node that is away from a moment on for so many seconds."""

    at: float
    node: int
    seconds: float


class Simulation:
    """Board and scheduler over machines that exist only as numbers.

    death: whether a worker dies at the end of a task. fails: whether a task fails there, and may be tried again. What was
    spent on either is no useful time, but for whole pieces of `keep_seconds` of a task whose worker died: those it kept, and
    the next try goes on from there. A worker lives on one node, the emptiest, and dies with it.
    """

    def __init__(
        self,
        works: list[Work],
        nodes: tuple[Node, ...],
        seconds: Callable[[Task], float],
        open_seconds: float = 10.0,
        start_seconds: float = 5.0,
        death: Callable[[Task], bool] = lambda task: False,
        fails: Callable[[Task], bool] = lambda task: False,
        outages: Sequence[Outage] = (),
        keep_seconds: float = math.inf,
        estimates: Mapping[str, Estimate] | None = None,
    ) -> None:
        self.board = Board(works, {}, estimates)
        self.board.publish(self.board.complete())  # works of no rows
        self._nodes, self._away = nodes, Counter[int]()
        self.seconds, self.death, self.fails = seconds, death, fails
        self.open_seconds, self.start_seconds = open_seconds, start_seconds
        self.now, self.useful, self.there, self.opens, self.peak = 0.0, 0.0, 0.0, 0, Counter[str]()
        self.there_waited, self.held_waited = 0.0, 0.0
        self.slots: dict[int, Slot] = {}
        self.tasks: dict[int, list[Task]] = {}
        self.opened: dict[int, str] = {}
        self.starting: set[int] = set()
        self.homes: dict[int, int] = {}
        self._costs: dict[int, float] = {}
        self._began: dict[int, float] = {}
        self._keep_seconds = keep_seconds
        self._left: dict[str, float] = {}
        self._ids, self._order = count(), count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for outage in outages:
            self._later(outage.at, partial(self._lose, outage))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Those that are there."""
        return tuple(node for i, node in enumerate(self._nodes) if not self._away[i])

    @property
    def gpus(self) -> int:
        """GPUs that are there."""
        return sum(len(node.gpus) for node in self.nodes)

    def run(self) -> Simulation:
        for _ in range(1_000_000):
            made_room = self._decide()
            if self.board.finished:
                return self
            if made_room:
                continue
            assert self._events, "tasks are left, nothing runs and nothing starts"
            then, _, happen = heapq.heappop(self._events)
            self._pass(then - self.now)
            self.now = then
            happen()
        raise AssertionError("does not end")

    def _pass(self, seconds: float) -> None:
        """Nothing is decided for so long."""
        self.there += seconds * self.gpus
        if any(self.board.ready()):
            self.there_waited += seconds * self.gpus
            self.held_waited += seconds * sum(self._share(worker) for worker, tasks in self.tasks.items() if tasks)

    def _state(self, i: int) -> WorkerState:
        return WorkerState(
            i, self.slots[i], tuple(t.work for t in self.tasks[i]), self.opened.get(i), i in self.starting
        )

    def _decide(self) -> bool:
        """Carry out one decision; whether it made room, so that the next may start somebody at once."""
        made_room = False
        for action in decide(View(get_demands(self.board), [self._state(i) for i in self.slots], self.nodes)):
            if isinstance(action, Start):
                for _ in range(action.count):
                    self._start(action.slot)
            elif isinstance(action, Assign):
                task = next(iter(self.board.waiting(action.work).values()))
                self.board.hand_out(task)
                self.tasks[action.worker].append(task)
                if len(self.tasks[action.worker]) == 1:
                    self._begin(action.worker)
            else:
                assert not self.tasks[action.worker]
                self._forget(action.worker)
                made_room = True
        self._check()
        return made_room

    def _check(self) -> None:
        using = Counter(tasks[0].work for tasks in self.tasks.values() if tasks)
        for work, n in using.items():
            assert n <= Demand.of(self.board.works[work], 0).limit
            self.peak[work] = max(self.peak[work], n)
        assert sum(slot.gpus * slot.gang for slot in self.slots.values()) <= self.gpus + 1e-6

    # -- workers

    def _start(self, slot: Slot) -> None:
        worker = next(self._ids)
        self.slots[worker], self.tasks[worker] = slot, []
        self.starting.add(worker)
        held = {i: 0.0 for i in range(len(self._nodes)) if not self._away[i]}
        for other, home in self.homes.items():
            held[home] += self.slots[other].gpus
        self.homes[worker] = min(held, key=lambda i: held[i] / (len(self._nodes[i].gpus) or 1))
        self._later(self.start_seconds, partial(self.starting.discard, worker))

    def _forget(self, worker: int) -> None:
        del self.slots[worker], self.tasks[worker]
        for known in (self.opened, self.homes, self._costs, self._began):
            known.pop(worker, None)  # type: ignore[attr-defined]
        self.starting.discard(worker)

    def _kill(self, worker: int) -> None:
        running, queued = self.tasks[worker][:1], self.tasks[worker][1:]
        for task in running:
            self._keep(worker, task)
        for task in queued:
            self.board.take_back(task)
        self._forget(worker)
        for task in running:
            self._record(Outcome(task, "lost"))

    def _lose(self, outage: Outage) -> None:
        self._away[outage.node] += 1
        for worker in [w for w, home in self.homes.items() if home == outage.node]:
            self._kill(worker)
        self._later(outage.seconds, partial(self._away.subtract, [outage.node]))

    # -- tasks

    def _begin(self, worker: int) -> None:
        task = self.tasks[worker][0]
        cost = self._costs[worker] = self._left.pop(task.id, None) or self.seconds(task)
        opening = 0.0
        if self.opened.get(worker) != task.work:
            self.opens += 1
            self.opened[worker] = task.work
            opening = self.open_seconds
        self._began[worker] = self.now + opening
        self._later(opening + cost, partial(self._end, worker, task))

    def _keep(self, worker: int, task: Task) -> None:
        if self._keep_seconds < self._costs[worker]:
            kept = max(0.0, self.now - self._began[worker]) // self._keep_seconds * self._keep_seconds
            self._left[task.id] = self._costs[worker] - kept
            self.useful += kept * self._share(worker)

    def _share(self, worker: int) -> float:
        """GPUs that a worker or gang holds."""
        return self.slots[worker].gpus * self.slots[worker].gang

    def _end(self, worker: int, task: Task) -> None:
        if task not in self.tasks.get(worker, ()):
            return  # it died before
        if self.death(task):
            self._kill(worker)
            return
        self.tasks[worker].pop(0)
        if self.fails(task):
            self._record(Outcome(task, "failed", retry=True))
        else:
            self.useful += self._costs[worker] * self._share(worker)
            self._record(Outcome(task, "done"))
        if self.tasks[worker]:
            self._begin(worker)

    def _record(self, outcome: Outcome) -> None:
        self.board.publish(self.board.record(outcome))
        for resting in list(self.board.resting.values()):
            self.board.wake(resting)

    def _later(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    @property
    def utilisation(self) -> float:
        """The part of all GPU time that was there, from the first moment to the last, that made something."""
        return self.useful / self.there

    @property
    def employment(self) -> float:
        """The part of all GPU time that somebody with a task held, while other tasks waited: what a scheduler has in hand."""
        return self.held_waited / self.there_waited


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_hundred_models_keep_64_gpus_busy_through_all_that_goes_wrong(seed: int) -> None:
    """50 shards of about a minute for each model, at most 16 workers on one.

    One task in a hundred takes four times as long, one in two hundred kills its worker and one in two hundred fails; three
    nodes of eight are lost for a quarter of an hour each. GPU time that is lost so, or in which workers start or open, is
    not useful.
    """
    rng = random.Random(seed)
    works = selftest_works(100, 50, Resources(gpus=1.0, cpus=4.0, workers=16))
    sim = Simulation(
        works,
        (DGX,) * 8,
        seconds=lambda task: rng.uniform(45, 75) * (4 if rng.random() < 0.01 else 1) if task.shard.round == 0 else 1.0,
        death=lambda task: rng.random() < 0.005,
        fails=lambda task: rng.random() < 0.005,
        outages=[Outage(600, 1, 900), Outage(1800, 5, 900), Outage(2000, 2, 900)],
    ).run()
    print(
        f"utilisation {sim.utilisation:.3f} in {sim.now / 3600:.2f} h, {sim.opens} openings of 100 models, "
        f"most workers on one {max(sim.peak.values())}, {len(sim.board.failed)} tasks set aside"
    )
    assert sim.utilisation >= 0.90
    assert sim.opens < 600
    failed = {stage for outcome in sim.board.failed.values() for stage in outcome.task.stages}
    assert {plan.digest for plan in sim.board.incomplete()} == failed


def made(kind: str, subject: str, shards: int, needs: Resources, *reads: Work) -> Work:
    """A work of one stage that reads those of others."""
    inputs = {str(n): read.plans[0].digest for n, read in enumerate(reads)}
    stage = StageSpec(kind=kind, method=1, subject=subject, output="rows", params={}, inputs=inputs)
    return Work((Plan(stage=stage, rounds=(Round(name="all", rows=shards, shard_rows=1),), worker=subject),), needs)


def zoo(models: int, sites: int) -> list[Work]:
    """Of each model 8 shards of activations on whole GPUs; then an SAE for each site, one shard on half a GPU; then, when
    all of these are there, 4 shards of names on half a GPU."""
    works = []
    for model in range(models):
        acts = made("extract", f"m{model}", 8, Resources(gpus=1.0, cpus=4.0, workers=8))
        half = Resources(gpus=0.5, cpus=2.0, workers=4)
        saes = [made("train_sae", f"m{model} s{site}", 1, half, acts) for site in range(sites)]
        works += [acts, *saes, made("describe", f"m{model}", 4, half, acts, *saes)]
    return works


MINUTES = {"extract": 5.0, "train_sae": 40.0, "describe": 2.0}


class Night(NamedTuple):
    """A zoo of models of unlike sizes, what is planned for it, and what its tasks really take."""

    works: list[Work]
    estimates: dict[str, Estimate]
    seconds: Callable[[Task], float]

    @classmethod
    def make(cls, models: int, sites: int, seed: int) -> Night:
        """A task takes what is planned give or take a quarter, and one in a hundred four times that, whoever does it and when."""
        rng = random.Random(seed)
        sizes = {f"m{model}": rng.choice([0.25, 0.5, 1.0, 2.0]) for model in range(models)}
        works = zoo(models, sites)
        planned = {w.key: 60 * MINUTES[w.kind] * sizes[w.plans[0].stage.subject.split()[0]] for w in works}

        def seconds(task: Task) -> float:
            own = random.Random(f"{seed} {task.id} {task.attempt}")
            return planned[task.work] * own.uniform(0.75, 1.25) * (4 if own.random() < 0.01 else 1)

        flops = {w.plans[0].digest: int(planned[w.key] * w.resources.gpus * w.plans[0].n_shards * 1e12) for w in works}
        return cls(works, {stage: Estimate(flops=n) for stage, n in flops.items()}, seconds)

    def bound(self, gpus: int, away: float = 0.0) -> float:
        """Seconds that nobody can be faster than who knew all times: all work by all GPUs, or the longest chain.

        away: GPU seconds of nodes that are lost.
        """
        ends: dict[str, float] = {}
        work = away
        for w in self.works:  # each after those that it reads
            (plan,) = w.plans
            took = [self.seconds(Task(w.key, shard, (plan.digest,))) for shard in plan.all_shards()]
            work += sum(took) * w.resources.gpus
            ends[plan.digest] = max((ends[read] for read in plan.stage.inputs.values()), default=0.0) + max(took)
        return max(work / gpus, *ends.values())

    def run(self, seed: int, estimates: Mapping[str, Estimate]) -> Simulation:
        """With all that goes wrong; what goes wrong with a task does so in whatever order tasks are done."""
        return Simulation(
            self.works,
            (DGX,) * 8,
            seconds=self.seconds,
            death=lambda task: random.Random(f"death {seed} {task.id} {task.attempt}").random() < 0.005,
            fails=lambda task: random.Random(f"fails {seed} {task.id} {task.attempt}").random() < 0.005,
            outages=[Outage(600, 1, 900), Outage(3600, 5, 900), Outage(5400, 2, 900)],
            keep_seconds=300.0,
            estimates=estimates,
        ).run()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_stages_that_read_each_other_keep_64_gpus_busy_and_sooner_by_what_they_hold_back(seed: int) -> None:
    """100 models of four sizes with SAEs at 12 sites: nine trainings for each half GPU, of 10 to 80 minutes as planned.

    A training keeps its state every five minutes, and all goes wrong as above. One of 80 minutes that takes four times as long
    is over five hours of a night of seven: that is the longest chain, and nobody knows it before.
    """
    night = Night.make(100, 12, seed)
    bound = night.bound(gpus=64, away=3 * 8 * 900.0)
    blind, planned = night.run(seed, {}), night.run(seed, night.estimates)
    for name, sim in (("nothing planned", blind), ("by what is held back", planned)):
        print(
            f"{name}: {sim.employment:.3f} at work while anything waited, utilisation {sim.utilisation:.3f} to the end of the "
            f"last of {len(night.works)} works, in {sim.now / 3600:.2f} h; at least {bound / 3600:.2f} h; {sim.opens} openings"
        )
        assert sim.employment >= 0.95
        assert not sim.board.incomplete() or sim.board.failed
    assert planned.utilisation >= blind.utilisation + 0.05
    assert planned.utilisation >= 0.80


def test_a_zoo_of_few_models_keeps_64_gpus_busy_while_anything_waits() -> None:
    """16 models with SAEs at 12 sites are one wave and a half of trainings: whoever straggles then is most of the night."""
    night = Night.make(16, 12, 0)
    sim = night.run(0, night.estimates)
    print(f"{sim.employment:.3f} at work while anything waited, {sim.utilisation:.3f} to the end")
    assert sim.employment >= 0.95
    assert not sim.board.incomplete() or sim.board.failed


def test_what_is_planned_changes_when_tasks_are_done_and_never_which() -> None:
    night = Night.make(6, 3, 0)
    orders = []
    for estimates in (
        {},
        night.estimates,
        {stage: Estimate(flops=10**24 // e.flops) for stage, e in night.estimates.items()},
    ):
        done: list[str] = []
        sim = Simulation(
            night.works,
            (DGX,),
            night.seconds,
            fails=lambda task, done=done: bool(done.append(task.id)),
            estimates=estimates,
        ).run()
        assert not sim.board.incomplete()
        orders.append(done)
    assert orders[0] != orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_a_queue_behind_a_straggler_moves_on_before_the_end() -> None:
    works = selftest_works(1, 640, Resources(gpus=1.0, workers=64))
    sim = Simulation(works, (DGX,) * 8, seconds=lambda task: 600.0 if task.shard.number == 5 else 60.0).run()
    # ten tasks of a minute for each of 64 workers, one of which takes ten minutes instead of one
    assert sim.now <= 5 + 10 + 11 * 60 + 60 + 60


def test_a_thousand_shards_that_end_at_once_do_not_leave_workers_idle() -> None:
    works = selftest_works(1, 1024, Resources(gpus=0.5, workers=128))
    sim = Simulation(works, (DGX,) * 8, seconds=lambda task: 60.0, open_seconds=0.0, start_seconds=0.0).run()
    assert sim.now == 8 * 60 + 60


def test_gangs_and_single_workers_share_a_cluster_without_deadlock() -> None:
    gangs = selftest_works(3, 4, Resources(gpus=1.0, workers=8), gang=8)
    singles = [w for w in selftest_works(8, 20, Resources(gpus=0.5, workers=4)) if w.key not in {g.key for g in gangs}]
    sim = Simulation([*gangs, *singles], (DGX, DGX), seconds=lambda task: 30.0).run()
    assert sim.board.incomplete() == []


@pytest.mark.parametrize("seed", range(25))
def test_random_clusters_and_works_always_come_to_an_end(seed: int) -> None:
    rng = random.Random(seed)
    nodes = tuple(Node(rng.choice([4, 8]), (1.0,) * rng.choice([0, 1, 2, 4]), 64.0) for _ in range(rng.randint(1, 4)))
    works = []
    for i in range(rng.randint(1, 6)):
        needs = Resources(
            gpus=rng.choice([0.0, 0.25, 0.5, 1.0, 2.0]), cpus=rng.choice([0.5, 1.0, 3.0]), workers=rng.randint(1, 6)
        )
        found = selftest_works(1, rng.randint(0, 12), needs, variants=(f"v{i}",), gang=rng.choice([1, 1, 1, 2]))
        works += [w for w in found if count_fitting(nodes, Slot.of(w)) > 0]
    sim = Simulation(
        works, nodes, seconds=lambda task: rng.expovariate(0.1), death=lambda task: rng.random() < 0.15
    ).run()
    failed = {stage for outcome in sim.board.failed.values() for stage in outcome.task.stages}
    assert {plan.digest for plan in sim.board.incomplete()} == failed
