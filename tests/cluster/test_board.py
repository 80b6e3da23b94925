"""Every task ends exactly once, as done or failed, whatever happens to the workers that had it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.board import MAX_ATTEMPTS, MAX_FAILED_SHARDS, Board
from cluster.works import Outcome, Task, group_siblings
from schemas.plans import Plan, Resources
from tests.corridor import selftest, selftest_works


def take(board: Board) -> Task:
    """The next task, of those that rest too."""
    for resting in list(board.resting.values()):
        board.wake(resting)
    task = next(iter(board.ready()))
    board.hand_out(task)
    return task


def finish_all(board: Board) -> list[Task]:
    done = []
    while not board.finished:
        task = take(board)
        board.publish(board.record(Outcome(task, "done")))
        done.append(task)
    return done


def test_siblings_share_a_task_per_shard_and_the_second_round_waits_for_the_first() -> None:
    (work,) = selftest_works(1, 3, variants=("a", "b"))
    board = Board([work], {})
    assert [(t.shard.number, len(t.stages)) for t in board.ready()] == [(0, 2), (1, 2), (2, 2)]
    assert [t.shard.number for t in finish_all(board)] == [0, 1, 2, 3]
    assert board.counts() == (8, 8)


def test_finished_shards_are_not_given_again() -> None:
    (work,) = selftest_works(1, 4)
    board = Board([work], {work.plans[0].digest: {0, 2}})
    assert [t.shard.number for t in board.ready()] == [1, 3]
    assert board.progress() == {work.plans[0].digest: (2, 5)}  # four, and their sum


def test_a_shard_that_one_sibling_has_is_done_for_the_other_alone() -> None:
    (work,) = selftest_works(1, 2, variants=("a", "b"))
    a, b = (plan.digest for plan in work.plans)
    board = Board([work], {a: {1}})
    assert [(t.shard.number, t.stages) for t in board.ready()] == [(0, (a, b)), (1, (b,))]


def test_a_stage_that_is_blamed_fails_alone_and_its_siblings_are_tried_again_without_it() -> None:
    (work,) = selftest_works(1, 2, variants=("a", "b", "c"))
    a, b, c = (plan.digest for plan in work.plans)
    board = Board([work], {})
    board.record(Outcome(take(board), "failed", error="X", blamed=(b,)))
    assert [(t.shard.number, t.stages) for t in board.ready()] == [(0, (a, c)), (1, (a, b, c))]
    assert [(failed.task.shard.number, failed.task.stages) for failed in board.failed.values()] == [(0, (b,))]
    finish_all(board)
    assert sorted(plan.digest for plan in board.complete()) == sorted((a, c))


def test_a_failure_that_blames_every_stage_or_none_fails_the_task() -> None:
    for blamed in (0, 2):
        (work,) = selftest_works(1, 1, variants=("a", "b"))
        board = Board([work], {})
        task = take(board)
        board.record(Outcome(task, "failed", error="X", blamed=task.stages[:blamed]))
        assert board.finished and [failed.task for failed in board.failed.values()] == [task]


def test_siblings_that_reach_their_second_round_at_different_times_do_not_mix_up_their_tasks() -> None:
    (work,) = selftest_works(1, 2, variants=("a", "b"))
    a, b = work.plans
    board = Board([work], {a.digest: {1}})
    first, second = take(board), take(board)
    board.record(Outcome(first, "done"))
    merge_of_a = take(board)
    board.record(Outcome(second, "done"))
    merge_of_b = take(board)
    assert (merge_of_a.shard, merge_of_a.stages) == (merge_of_b.shard, (a.digest,))
    assert board.record(Outcome(merge_of_a, "done")) == [a]
    assert board.record(Outcome(merge_of_b, "done")) == [b]
    assert board.finished


def test_a_lost_shard_comes_back_first_and_counts_its_attempts() -> None:
    (work,) = selftest_works(1, 3)
    board = Board([work], {})
    board.record(Outcome(take(board), "lost"))
    assert [t.shard.number for t in board.ready()] == [1, 2] and not board.finished
    assert [(t.shard.number, t.attempt) for t in board.resting.values()] == [(0, 1)]
    again = take(board)
    assert (again.shard.number, again.attempt) == (0, 1)


def test_a_shard_that_loses_its_worker_three_times_is_set_aside_and_the_rest_goes_on() -> None:
    (work,) = selftest_works(1, 3)
    board = Board([work], {})
    for _ in range(MAX_ATTEMPTS):
        board.record(Outcome(take(board), "lost"))
    assert [t.shard.number for t in finish_all(board)] == [1, 2]
    (failed,) = board.failed.values()
    assert (failed.task.shard.number, failed.task.attempt) == (0, 2)
    assert board.incomplete() == list(work.plans)


def test_a_task_queued_behind_a_lost_one_costs_no_attempt() -> None:
    (work,) = selftest_works(1, 3)
    board = Board([work], {})
    for _ in range(MAX_ATTEMPTS):
        lost, queued = take(board), take(board)
        board.take_back(queued)
        board.record(Outcome(lost, "lost"))
    assert {t.shard.number: t.attempt for t in finish_all(board)} == {1: 0, 2: 0}


def test_an_application_error_is_final_at_once_but_a_passing_one_is_tried_again() -> None:
    (work,) = selftest_works(1, 2)
    board = Board([work], {})
    board.record(Outcome(take(board), "failed", error="ValueError"))
    board.record(Outcome(take(board), "failed", error="ConnectionError", retry=True))
    assert [t.shard.number for t in finish_all(board)] == [1]
    assert [o.error for o in board.failed.values()] == ["ValueError"]


def test_a_worker_that_cannot_open_stops_its_own_work_only() -> None:
    bad, good = selftest_works(2, 3)
    board = Board([bad, good], {})
    board.record(Outcome(take(board), "open_failed"))
    assert {t.work for t in finish_all(board)} == {good.key}
    assert board.incomplete() == list(bad.plans)


def test_a_work_in_which_every_shard_fails_is_stopped_after_ten() -> None:
    (work,) = selftest_works(1, 100)
    board = Board([work], {})
    n = 0
    while not board.finished:
        board.record(Outcome(take(board), "failed"))
        n += 1
    assert n == MAX_FAILED_SHARDS


def test_after_a_fatal_outcome_nothing_more_is_ready() -> None:
    (work,) = selftest_works(1, 3)
    board = Board([work], {})
    board.record(Outcome(take(board), "fatal"))
    assert board.finished
    assert list(board.ready()) == []


def test_an_empty_plan_is_complete_at_once_but_for_its_merge() -> None:
    todo = selftest(rows=0)
    board = Board(group_siblings(todo), {})
    assert [(t.shard.round, t.shard.number) for t in finish_all(board)] == [(1, 0)]


def test_cells_that_differ_in_resources_are_different_works() -> None:
    one, two = selftest(Resources(gpus=0.5), variants=("a",)), selftest(Resources(gpus=1.0), variants=("b",))
    assert len(group_siblings([*one, *two])) == 2


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_happens_every_task_ends_exactly_once_and_nothing_hangs(data: st.DataObject) -> None:
    works = selftest_works(data.draw(st.integers(1, 3)), data.draw(st.integers(0, 6)), variants=("a", "b"))
    digests = [plan.digest for work in works for plan in work.plans]
    before = {d: data.draw(st.sets(st.integers(0, 6), max_size=4), label="done before") for d in digests}
    before = {d: {n for n in s if n < works[0].plans[0].n_shards} for d, s in before.items()}
    board = Board(works, before)
    ends: Counter[tuple[str, int]] = Counter()
    out: list[Task] = []
    stopped: set[str] = set()
    for _ in range(2000):
        if board.finished:
            break
        for resting in list(board.resting.values()):
            if not out or data.draw(st.booleans(), label="wake"):
                board.wake(resting)
        may_start = next(iter(board.ready()), None)
        if may_start is None and not out:  # what rested belongs to a work that was stopped meanwhile
            continue
        if may_start is not None and (not out or data.draw(st.booleans(), label="start")):
            board.hand_out(may_start)
            out.append(may_start)
            continue
        task = out.pop(data.draw(st.integers(0, len(out) - 1), label="which"))
        what = data.draw(
            st.sampled_from(["done", "done", "done", "lost", "failed", "retry", "take_back", "open_failed"])
        )
        if what == "take_back":
            board.take_back(task)
            continue
        state = "failed" if what == "retry" else what
        complete = board.record(Outcome(task, state, retry=what == "retry"))  # type: ignore[arg-type]
        if state == "open_failed":
            stopped.add(task.work)
        if state == "done" or task.id in board.failed:
            ends.update((stage, task.shard.number) for stage in task.stages)
        assert all(plan not in board.incomplete() for plan in complete)
    assert board.finished
    assert not out and board.running == 0
    assert set(ends.values()) <= {1}
    for work in works:
        if work.key in stopped:
            continue
        for plan in work.plans:
            failed = {o.task.shard.number for o in board.failed.values() if plan.digest in o.task.stages}
            first_round = {s.number for s in plan.shards(0)}
            over = before[plan.digest] | {n for (d, n) in ends if d == plan.digest}
            assert first_round <= over
            assert (plan in board.complete()) == (not failed)


# -- plans that read each other


def chain(rows: int = 2) -> tuple[list[str], Board]:
    """A stage of some shards, two siblings that read it, and one that reads both of those."""
    first = selftest(rows=rows, shard_rows=1)
    (a, needs) = first[0]
    reads = {"x.0": a.digest}
    second = [(with_inputs(plan, reads), needs) for plan, _ in selftest(subject="two", rows=1, variants=("a", "b"))]
    both = {f"x.{i}": plan.digest for i, (plan, _) in enumerate(second)}
    last = [(with_inputs(plan, both), needs) for plan, _ in selftest(subject="three", rows=1)]
    todo = [*last, *second, *first]
    return [plan.digest for plan, _ in (*first, *second, *last)], Board(group_siblings(todo), {})


def with_inputs(plan: Plan, inputs: dict[str, str]) -> Plan:
    return plan.model_copy(update={"stage": plan.stage.model_copy(update={"inputs": inputs})})


def test_a_plan_waits_for_those_that_it_reads_and_siblings_are_freed_together():
    (a, b, c, d), board = chain()
    order = [task.stages for task in finish_all(board)]
    assert order == [(a,), (a,), (a,), (b, c), (b, c), (d,), (d,)]  # two shards and their merge, then two rounds each
    assert len(board.complete()) == 4


def test_what_reads_a_stage_that_failed_never_starts_and_names_it():
    (a, b, c, d), board = chain()
    task = take(board)
    board.record(Outcome(task, "failed", error="ValueError", message="no"))
    board.publish(board.record(Outcome(take(board), "done")))
    assert board.finished and board.complete() == []
    waiting = {plan.digest: board.missing_inputs(plan) for plan in board.incomplete()}
    assert waiting == {a: set(), b: {a}, c: {a}, d: {b, c}}


def test_a_plan_starts_while_others_that_it_does_not_read_are_at_work():
    (a, b, c, _), chained = chain()
    slow = selftest(subject="slow", rows=9, shard_rows=1)
    board = Board([*chained.works.values(), *group_siblings(slow)], {})
    while a not in {plan.digest for plan in board.complete()}:
        task = next(task for task in board.ready() if task.stages == (a,))
        board.hand_out(task)
        board.publish(board.record(Outcome(task, "done")))
    assert {task.stages for task in board.ready()} == {(b, c), (slow[0][0].digest,)}


def test_a_stage_that_is_complete_and_cannot_be_published_is_not_read():
    (a, b, c, d), board = chain(rows=1)
    for _ in range(2):
        assert [plan.digest for plan in board.record(Outcome(take(board), "done"))] in ([], [a])
    assert board.finished and {p.digest for p in board.incomplete()} == {b, c, d}
    board.publish([plan for plan in board.complete() if plan.digest == a])
    assert len(finish_all(board)) == 4


def test_siblings_whose_inputs_come_at_different_times_are_opened_apart_and_each_once():
    """One worker opens all that its work reads, so a work never holds a plan that must still wait."""
    one, two = selftest(subject="one", rows=1), selftest(subject="two", rows=1)
    (x, needs), (y, _) = selftest(subject="three", rows=1, variants=("a", "b"))
    readers = [(with_inputs(x, {"i": one[0][0].digest}), needs), (with_inputs(y, {"i": two[0][0].digest}), needs)]
    board = Board(group_siblings([*one, *two, *readers]), {})
    assert [len(work.plans) for work in board.works.values()] == [1, 1, 2]
    opened = [work.plans for work in board.take_opened()]
    done = [task.stages for task in finish_all(board)]
    opened += [work.plans for work in board.take_opened()]
    assert sorted(len(plans) for plans in opened) == [1, 1, 1, 1]
    assert sorted(done) == sorted([(p.digest,) for plans in opened for p in plans for _ in range(2)])
    assert board.counts() == (8, 8) and len(board.complete()) == 4


def test_published_twice_frees_once():
    _, board = chain(rows=1)
    while not board.complete():
        board.record(Outcome(take(board), "done"))
    for _ in range(2):
        board.publish(board.complete())
    assert len(list(board.ready())) == 1 and len(board.take_opened()) == 2


def test_an_input_that_is_not_on_the_board_is_not_waited_for():
    plan, needs = selftest(rows=1)[0]
    board = Board(group_siblings([(with_inputs(plan, {"x.0": "0" * 20}), needs)]), {})
    assert len(finish_all(board)) == 2


def test_rows_that_wait_for_an_input_are_left():
    _, board = chain(rows=5)
    assert sorted(board.rows_left(key) for key in board.works) == [1, 1, 5]
