"""The scheduler's decisions as a specification, and a simulated cluster that shows what they add up to."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from cluster.board import Board, Outcome, Task, Work
from cluster.scheduler import (
    QUEUE_AHEAD,
    WINDOW,
    Action,
    Assign,
    Demand,
    Node,
    Slot,
    Start,
    Stop,
    View,
    WorkerState,
    count_fitting,
    decide,
    get_demands,
)
from schemas.plans import Resources
from tests.corridor import selftest_works

CPU = Slot(cpus=1)
GPU = Slot(cpus=2, gpus=1)
HALF = Slot(cpus=1, gpus=0.5)
DGX = Node(cpus=64, gpus=(1.0,) * 8, memory_gb=512)


def plan(demands: list[Demand], workers: list[WorkerState], *nodes: Node) -> list[Action]:
    return decide(View(demands, workers, tuple(nodes)))


def starts(actions: list[Action]) -> dict[Slot, int]:
    return {a.slot: a.count for a in actions if isinstance(a, Start)}


def assigned(actions: list[Action]) -> list[tuple[int, str]]:
    return [(a.worker, a.work) for a in actions if isinstance(a, Assign)]


def test_nothing_to_do_starts_nothing() -> None:
    assert plan([], [], DGX) == []
    assert plan([Demand("a", CPU, 4, 0)], [], DGX) == []


def test_as_many_workers_start_as_tasks_wait_and_the_work_allows() -> None:
    assert starts(plan([Demand("a", CPU, 4, 100)], [], DGX)) == {CPU: 4}
    assert starts(plan([Demand("a", CPU, 4, 3)], [], DGX)) == {CPU: 3}


def test_no_more_workers_start_than_the_machines_hold() -> None:
    assert starts(plan([Demand("a", GPU, 1000, 1000)], [], DGX, DGX)) == {GPU: 16}
    assert starts(plan([Demand("a", Slot(cpus=33), 10, 10)], [], DGX, DGX)) == {Slot(cpus=33): 2}


def test_workers_that_are_starting_count() -> None:
    starting = [WorkerState(i, CPU, starting=True) for i in range(3)]
    assert starts(plan([Demand("a", CPU, 4, 100)], starting, DGX)) == {CPU: 1}


def test_two_half_gpu_workers_share_a_gpu_but_none_spans_two() -> None:
    assert count_fitting((DGX,), HALF) == 16
    assert count_fitting((DGX,), Slot(cpus=1, gpus=0.75)) == 8
    assert count_fitting((DGX,), Slot(cpus=1, gpus=0.3)) == 24
    assert count_fitting((DGX,), Slot(cpus=1, gpus=3)) == 2
    assert count_fitting((DGX.without(HALF, 1),), Slot(cpus=1, gpus=8)) == 0


def test_memory_bounds_workers_too() -> None:
    assert count_fitting((DGX,), Slot(cpus=1, memory_gb=100)) == 5


def test_a_gang_is_all_or_nothing() -> None:
    gang = Slot(cpus=1, gpus=1, gang=6)
    assert count_fitting((DGX, DGX), gang) == 2
    assert starts(plan([Demand("a", gang, 5, 5)], [], DGX, DGX)) == {gang: 2}
    assert starts(plan([Demand("a", Slot(cpus=1, gpus=1, gang=17), 5, 5)], [], DGX, DGX)) == {}


def test_a_worker_goes_on_with_the_work_it_has_open() -> None:
    workers = [WorkerState(0, CPU, opened="b"), WorkerState(1, CPU, opened="a")]
    actions = plan([Demand("a", CPU, 4, 1), Demand("b", CPU, 4, 1)], workers, DGX)
    assert sorted(assigned(actions)) == [(0, "b"), (1, "a")]


def test_an_idle_worker_opens_another_work_when_its_own_has_nothing_left() -> None:
    actions = plan([Demand("a", CPU, 4, 0), Demand("b", CPU, 4, 2)], [WorkerState(0, CPU, opened="a")], DGX)
    assert assigned(actions) == [(0, "b")]


def test_a_fresh_worker_is_taken_before_one_that_would_have_to_close_something() -> None:
    workers = [WorkerState(0, CPU, opened="old"), WorkerState(1, CPU)]
    assert assigned(plan([Demand("a", CPU, 4, 1)], workers, DGX)) == [(1, "a")]


def test_idle_workers_spread_over_works_by_what_waits_for_each() -> None:
    workers = [WorkerState(i, CPU) for i in range(4)]
    actions = plan([Demand("a", CPU, 9, 30), Demand("b", CPU, 9, 10)], workers, Node(4))
    assert Counter(work for _, work in dict(assigned(actions)).items()) == {"a": 3, "b": 1}


def test_a_work_never_has_more_workers_than_it_allows() -> None:
    workers = [
        WorkerState(0, CPU, ("a",), "a"),
        WorkerState(1, CPU, ("a",), "a"),
        WorkerState(2, CPU),
        WorkerState(3, CPU),
    ]
    actions = plan([Demand("a", CPU, 2, 3)], workers, DGX)
    assert actions == []


def test_a_work_at_its_limit_starts_nobody() -> None:
    busy = [WorkerState(i, CPU, ("a", "a"), "a") for i in range(2)]
    assert plan([Demand("a", CPU, 2, 500)], busy, DGX) == []


def test_a_second_task_waits_at_a_busy_worker_only_while_many_are_left() -> None:
    busy = [WorkerState(0, CPU, ("a",), "a")]
    assert assigned(plan([Demand("a", CPU, 1, QUEUE_AHEAD)], busy, DGX)) == [(0, "a")]
    assert assigned(plan([Demand("a", CPU, 1, QUEUE_AHEAD - 1)], busy, DGX)) == []


def test_nothing_queues_behind_a_busy_worker_while_another_comes_up() -> None:
    workers = [WorkerState(0, CPU), WorkerState(1, CPU, starting=True)]
    assert assigned(plan([Demand("a", CPU, 2, 2)], workers, DGX)) == [(0, "a")]


def test_a_worker_holds_two_tasks_at_most() -> None:
    workers = [WorkerState(0, CPU), WorkerState(1, CPU, ("a", "a"), "a")]
    assert Counter(w for w, _ in assigned(plan([Demand("a", CPU, 2, 1000)], workers, DGX))) == {0: WINDOW}


def test_a_gang_holds_one_task() -> None:
    gang = Slot(cpus=1, gang=2)
    assert assigned(plan([Demand("a", gang, 2, 1000)], [WorkerState(0, gang)], DGX)) == [(0, "a")]


def test_a_worker_is_only_given_work_of_its_own_resource_class() -> None:
    assert assigned(plan([Demand("a", GPU, 2, 5)], [WorkerState(0, CPU)], Node(1))) == []


def test_works_of_several_classes_run_side_by_side() -> None:
    actions = plan([Demand("a", GPU, 4, 50), Demand("b", CPU, 4, 50)], [], DGX)
    assert starts(actions) == {GPU: 4, CPU: 4}


def test_scarce_room_is_shared_by_need_and_nobody_starves() -> None:
    actions = plan([Demand("big", Slot(cpus=1, gpus=1), 64, 9000), Demand("small", GPU, 2, 9)], [], DGX)
    assert starts(actions)[GPU] >= 1
    assert sum(starts(actions).values()) == 8


def test_idle_workers_of_a_class_without_need_make_room_for_another() -> None:
    idle = [WorkerState(i, HALF, opened="old") for i in range(16)]
    actions = plan([Demand("old", HALF, 16, 0), Demand("new", GPU, 1, 5)], idle, DGX)
    assert [type(a) for a in actions] == [Stop, Stop]
    left = [w for w in idle if Stop(w.id) not in actions]
    assert starts(plan([Demand("new", GPU, 1, 5)], left, DGX)) == {GPU: 1}


def test_busy_workers_are_never_stopped() -> None:
    busy = [WorkerState(i, HALF, ("old",), "old") for i in range(16)]
    assert plan([Demand("new", GPU, 1, 5)], busy, DGX) == []


def test_idle_workers_are_kept_when_ending_them_would_not_help() -> None:
    assert plan([Demand("new", GPU, 1, 5)], [WorkerState(0, CPU)], Node(cpus=1)) == []


def test_idle_workers_are_kept_when_nobody_needs_their_room() -> None:
    assert plan([Demand("a", CPU, 1, 0)], [WorkerState(0, CPU, opened="a")], Node(cpus=1)) == []


def test_a_cluster_that_grows_gets_more_workers() -> None:
    busy = [WorkerState(i, GPU, ("a", "a"), "a") for i in range(8)]
    demand = [Demand("a", GPU, 64, 500)]
    assert starts(plan(demand, busy, DGX)) == {}
    assert starts(plan(demand, busy, DGX, DGX)) == {GPU: 8}


def test_a_slot_that_ran_out_of_memory_gets_fewer_workers() -> None:
    busy = [WorkerState(0, CPU, ("a",), "a")]
    actions = decide(View([Demand("a", CPU, 8, 3)], busy, (DGX,), most={CPU: 2}))
    assert starts(actions) == {CPU: 1}
    assert decide(View([Demand("a", CPU, 8, 3)], busy, (DGX,), most={CPU: 1})) == []


def test_decode_threads_count_as_cpus_of_the_worker() -> None:
    (work,) = selftest_works(1, 1, Resources(cpus=1, decode_threads=4, gpus=0.25, memory_gb=2.0, workers=6))
    assert Demand.of(work, 7) == Demand(work.key, Slot(4.0, 0.25, 2.0, 1), 6, 7)


def test_the_members_of_gangs_count_as_workers_but_one_gang_is_always_allowed() -> None:
    (four,) = selftest_works(1, 1, Resources(workers=9), gang=4)
    (eight,) = selftest_works(1, 1, Resources(workers=2), gang=8)
    assert (Demand.of(four, 1).limit, Demand.of(eight, 1).limit) == (2, 1)


def test_a_decision_over_a_thousand_busy_workers_and_a_million_tasks_takes_milliseconds() -> None:
    workers = [WorkerState(i, GPU, (f"w{i % 100}",) * 2, f"w{i % 100}") for i in range(1000)]
    view = View([Demand(f"w{i}", GPU, 64, 10_000) for i in range(100)], workers, (DGX,) * 125)
    decide(view)
    started = time.perf_counter()
    for _ in range(20):
        decide(view)
    print(f"one decision: {(time.perf_counter() - started) / 20 * 1e3:.2f} ms")


# -- a cluster in virtual time


class Simulation:
    """Board and scheduler over machines that exist only as numbers."""

    def __init__(
        self,
        works: list[Work],
        nodes: tuple[Node, ...],
        seconds: Callable[[Task], float],
        open_seconds: float = 10.0,
        start_seconds: float = 5.0,
        death: Callable[[Task], bool] = lambda task: False,
    ) -> None:
        self.board = Board(works, {})
        self.nodes = nodes
        self.seconds, self.death = seconds, death
        self.open_seconds, self.start_seconds = open_seconds, start_seconds
        self.now, self.useful, self.opens, self.peak = 0.0, 0.0, 0, Counter[str]()
        self.slots: dict[int, Slot] = {}
        self.tasks: dict[int, list[Task]] = {}
        self.opened: dict[int, str] = {}
        self.starting: set[int] = set()
        self._ids, self._order = count(), count()
        self._events: list[tuple[float, int, int]] = []

    def run(self) -> Simulation:
        for _ in range(1_000_000):
            made_room = self._decide()
            if self.board.finished:
                return self
            if made_room:
                continue
            assert self._events, "tasks are left, nothing runs and nothing starts"
            self.now, _, worker = heapq.heappop(self._events)
            self._happen(worker)
        raise AssertionError("does not end")

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
        held = sum(slot.gpus * slot.gang for slot in self.slots.values())
        assert held <= sum(len(node.gpus) for node in self.nodes) + 1e-6

    def _start(self, slot: Slot) -> None:
        worker = next(self._ids)
        self.slots[worker], self.tasks[worker] = slot, []
        self.starting.add(worker)
        self._later(self.start_seconds, worker)

    def _begin(self, worker: int) -> None:
        task = self.tasks[worker][0]
        cost = self.seconds(task)
        self.useful += cost * self.slots[worker].gpus * self.slots[worker].gang
        if self.opened.get(worker) != task.work:
            self.opens += 1
            self.opened[worker] = task.work
            cost += self.open_seconds
        self._later(cost, worker)

    def _later(self, seconds: float, worker: int) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), worker))

    def _forget(self, worker: int) -> None:
        del self.slots[worker], self.tasks[worker]
        self.opened.pop(worker, None)
        self.starting.discard(worker)

    def _happen(self, worker: int) -> None:
        if worker not in self.slots:
            return
        if worker in self.starting:
            self.starting.discard(worker)
            return
        task, *queued = self.tasks[worker]
        if self.death(task):
            for other in queued:
                self.board.take_back(other)
            self._forget(worker)
            self.board.record(Outcome(task, "lost"))
            for resting in list(self.board.resting.values()):
                self.board.wake(resting)
            return
        self.tasks[worker] = queued
        self.board.record(Outcome(task, "done"))
        if queued:
            self._begin(worker)

    @property
    def utilisation(self) -> float:
        gpus = sum(len(node.gpus) for node in self.nodes)
        return self.useful / (self.now * gpus)


def test_a_hundred_models_on_64_gpus_with_stragglers_and_deaths_keep_them_busy() -> None:
    rng = random.Random(0)
    works = selftest_works(100, 50, Resources(gpus=1.0, cpus=4.0, workers=16))
    sim = Simulation(
        works,
        (DGX,) * 8,
        seconds=lambda task: rng.uniform(45, 75) * (4 if rng.random() < 0.01 else 1) if task.shard.round == 0 else 1.0,
        death=lambda task: rng.random() < 0.005,
    ).run()
    assert not sim.board.incomplete() or len(sim.board.failed) > 0
    print(
        f"utilisation {sim.utilisation:.3f} in {sim.now / 3600:.2f} h, {sim.opens} openings of 100 models, "
        f"most workers on one {max(sim.peak.values())}"
    )
    assert sim.utilisation >= 0.90
    assert sim.opens < 600


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
