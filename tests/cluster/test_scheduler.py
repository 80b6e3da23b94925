"""The scheduler's decisions as a specification; what they add up to is seen on a simulated cluster."""

from __future__ import annotations

import time
from collections import Counter

from cluster.held_back import HeldBack
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


def order(*demands: Demand) -> list[str]:
    """Works in the order in which fresh workers join them, one task each."""
    workers = [WorkerState(i, CPU) for i in range(len(demands))]
    return [work for _, work in assigned(plan(list(demands), workers, DGX))]


def test_idle_workers_join_the_work_that_holds_back_most() -> None:
    """Its own task and the longest chain behind it: 1 + 9 is more than 5, which is more than 2 + 2."""
    short, long, first = HeldBack(2, 2), HeldBack(5, 0), HeldBack(1, 9)
    assert order(Demand("a", CPU, 1, 1, short), Demand("b", CPU, 1, 1, long), Demand("c", CPU, 1, 1, first)) == [
        "c",
        "b",
        "a",
    ]


def test_a_work_that_has_workers_holds_back_only_their_share_more() -> None:
    """Six tasks of 10 come to 60 for a first worker, five to 25 for each of two, four to 13 for each of three: less than 20."""
    many, one = Demand("a", CPU, 9, 6, HeldBack(10, 0)), Demand("b", CPU, 1, 1, HeldBack(20, 0))
    workers = [WorkerState(i, CPU) for i in range(3)]
    assert [work for _, work in assigned(plan([many, one], workers, Node(3)))][:3] == ["a", "a", "b"]


def test_works_that_hold_back_as_much_go_by_tasks_per_worker_and_then_by_name() -> None:
    assert order(Demand("b", CPU, 1, 1), Demand("c", CPU, 1, 2), Demand("a", CPU, 1, 1)) == ["c", "a", "b"]


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
