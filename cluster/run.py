"""The main path: what is left of some stages is run and published. Everything else is a room off this corridor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster import ledger
from cluster.board import Board
from cluster.events import EventLog
from cluster.executor import Executor, StopFlag
from cluster.stores.base import Store
from cluster.works import group_siblings
from jobs.kinds import get_all_tables, get_artifacts
from jobs.protocol import Estimate
from schemas import errors
from schemas.errors import DamagedPart
from schemas.plans import Plan, Resources


def run_stages(
    plans: Sequence[tuple[Plan, Resources]],
    store: Store,
    executor: Executor,
    log: EventLog,
    stop: StopFlag,
    watch: Callable[[Board], None] = lambda board: None,
    estimate: Callable[[str], Estimate] = lambda stage: Estimate(),
) -> Board:
    """Run what is left of these stages, side by side where none reads the other; publish each as soon as its last shard
    is done. What reads one that is not published does not start. Rerunning finished ones is quiet.

    watch: called with the board whenever something has become of a task. estimate: what is planned for a stage, by which works are
    ordered.

    Raises:
        Infeasible: a stage asks for what this cluster can never give; nothing was started.
        Interrupted, StoreUnreachable, ClusterUnreachable: finished shards are kept, the same call goes on from there.
    """
    published = ledger.find_published(store, [plan.digest for plan, _ in plans])
    log.cached([plan for plan, _ in plans if plan.digest in published])
    todo = ledger.freeze_plans(store, [(plan, needs) for plan, needs in plans if plan.digest not in published])
    digests = [plan.digest for plan, _ in todo]
    estimates = {stage: estimate(stage) for stage in digests}
    board = Board(group_siblings(todo), ledger.find_done(store, digests), estimates)
    executor.check(list(board.works.values()))
    log.planned(board, board.take_opened())
    _publish(board, board.complete(), store, log)
    for outcome in executor.run(board, stop):
        failed_before = set(board.failed)
        complete = board.record(outcome)
        log.outcome(outcome, board)
        for failed in board.failed.keys() - failed_before:
            ledger.record_failure(store, board.failed[failed])
        _publish(board, complete, store, log)
        watch(board)
    if board.fatal is not None:
        raise getattr(errors, board.fatal.error, errors.StoreUnreachable)(board.fatal.message)
    return board


def _publish(board: Board, complete: Sequence[Plan], store: Store, log: EventLog) -> None:
    there = []
    for plan in complete:
        try:
            log.published(ledger.publish(store, plan, get_all_tables(plan), get_artifacts(plan)))
            there.append(plan)
        except DamagedPart as error:
            board.damaged[plan.digest] = str(error)
            log.damaged(plan, error)
    board.publish(there)
    log.planned(board, board.take_opened())
