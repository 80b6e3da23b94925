"""One run of a pipeline from spec to published tables: facts first, then each wave of cells side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.board import Board
from cluster.cells import CellPlans, cells_read
from cluster.events import EventLog
from cluster.executor import Executor, StopFlag
from cluster.hold import Holds
from cluster.ledger import find_published
from cluster.planned import PlannedPipeline, plan_pipeline, stage_state, title
from cluster.run import run_stages
from cluster.runs import RunState, RunStatus, RunTables, StageState, save_state, save_tables
from cluster.stores.base import Store, prefetch
from schemas.errors import BadRef, BadSite, EmptyImageSet, UnknownModel, UnknownSite, UsageError
from schemas.plans import Plan, Resources
from schemas.specs import PipelineSpec

WAITS = "its input stage"
"""How the reason of a stage begins that fails only because one before it did."""


@dataclass
class RunReport:
    """What a run did, for the closing words of the command line and `state.json`."""

    state: RunState
    failures: list[str]

    @property
    def exit_code(self) -> int:
        """0 if everything it stands for is published."""
        return 0 if self.state.status == "DONE" else 1


class _Unplanned(NamedTuple):
    """A cell as an executor can check it before its models and images are known."""

    title: str
    resources: Resources
    gang: int = 1


class PipelineRun:
    """One submission of a pipeline: keeps `state.json` and `tables.json` true whatever happens.

    planned: what `plan_pipeline` gave for this spec a moment ago, so that sources of images are listed once.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        run: str,
        store: Store,
        executor: Executor,
        log: EventLog,
        stop: StopFlag,
        planned: PlannedPipeline | None = None,
    ) -> None:
        self._spec, self._run, self._store = spec, run, store
        self._executor, self._log, self._stop = executor, log, stop
        self._started = time.monotonic()
        self._errors: dict[str, str] = {}
        self._waits: dict[str, str] = {}
        """Stage -> one of its inputs that is not published."""
        self._names: dict[str, str] = {}
        self._published: set[str] = set()
        self._planned = planned
        self._holds = Holds(store, run)

    def run(self) -> RunReport:
        """Facts, plans of every cell, then the cells wave by wave.

        Raises:
            UsageError: a cell cannot be planned; nothing but facts was computed.
            Infeasible, Interrupted, StoreUnreachable, ClusterUnreachable: as in `run_stages`.
        """
        self._save("RUNNING")
        try:
            self._run_all()
        except BaseException as error:
            status: RunStatus = (
                "INTERRUPTED" if type(error).__name__ in ("Interrupted", "KeyboardInterrupt") else "STOPPED"
            )
            self._try_save(status, str(error))
            raise
        return self._finish()

    def _run_all(self) -> None:
        self._planned = planned = self._planned or plan_pipeline(self._spec, self._store)
        # what needs facts first is checked before they cost anything; the rest is, when its wave begins
        unplanned = [cell for cell in planned.cells if not cell.plans]
        self._executor.check([_Unplanned(title(c), c.cell.resources) for c in unplanned])
        self._hold(planned)
        _refuse_wrong_names(self._run_wave(planned.facts.freeze(self._store, self._spec.index_resources)))
        self._planned = planned = plan_pipeline(self._spec, self._store, planned.facts)
        self._hold(planned)
        self._save("RUNNING")
        for wave in self._spec.waves():
            cells = [c for c in planned.cells if c.cell.name in wave]
            self._run_wave(list(self._with_inputs(cells)))

    def _hold(self, planned: PlannedPipeline) -> None:
        """Before anything is relied on or made; what was seen published before may have been removed until now."""
        if self._holds.add((plan for _, plan, _ in planned.plans()), self._stop.check):
            self._published.clear()

    def _run_wave(self, plans: list[tuple[Plan, Resources]]) -> Board:
        board = run_stages(plans, self._store, self._executor, self._log, self._stop)
        self._published.update(plan.digest for plan in board.complete() if plan.digest not in board.damaged)
        self._note_failures(board)
        self._save("RUNNING")
        return board

    def _with_inputs(self, cells: Sequence[CellPlans]) -> Iterator[tuple[Plan, Resources]]:
        """The plans of a wave whose inputs are there; where one failed, its failure is the one that is reported."""
        assert self._planned is not None
        earlier: dict[str, list[CellPlans]] = {name: [] for name in self._spec.stages}
        for cell in self._planned.cells:
            earlier[cell.cell.name].append(cell)
        read = {plan.digest for cell in cells for other in cells_read(cell.cell, earlier) for plan in other.plans}
        missing = read - self._published
        missing -= find_published(self._store, missing)
        for cell in cells:
            for plan in cell.plans:
                if absent := missing & set(plan.stage.inputs.values()):
                    self._waits[plan.digest] = min(absent)
                else:
                    yield plan, cell.cell.resources

    def _note_failures(self, board: Board) -> None:
        self._errors.update(board.damaged)
        for outcome in board.failed.values():
            where = f"shard {outcome.task.shard.number}" if outcome.state != "open_failed" else "opening the worker"
            for stage in outcome.task.stages:
                self._errors.setdefault(stage, f"{where}: {outcome.error}: {outcome.message}")
        for plan in board.incomplete():
            if absent := board.missing_inputs(plan):
                self._waits.setdefault(plan.digest, min(absent))

    def _finish(self) -> RunReport:
        state = self._state("DONE")
        missing = [s for s in state.stages if s.state not in ("cached", "published")]
        unplanned = self._unplanned()
        failures = [f"{s.cell} {s.output}: {s.error or 'not finished'}" for s in missing] + unplanned
        if failures:
            state = self._state("FAILED", failures[0])
        save_state(self._store, state)
        tables: dict[str, list[str]] = {}
        for stage in state.stages:
            if stage.state in ("cached", "published"):
                tables.setdefault(stage.cell, []).append(stage.digest)
        save_tables(
            self._store,
            RunTables(
                run=self._run,
                pipeline=self._spec.name,
                limited=state.limited,
                failed=len(failures),
                stages={cell: tuple(digests) for cell, digests in tables.items()},
            ),
        )
        self._log.emit("finished", status=state.status, failures=failures, seconds=state.seconds)
        return RunReport(state, failures)

    def _unplanned(self) -> list[str]:
        assert self._planned is not None
        return [f"{title(c)}: {self._why_unplanned(c)}" for c in self._planned.cells if not c.plans]

    def _why_unplanned(self, cell: CellPlans) -> str:
        assert self._planned is not None
        inspected = (self._planned.facts.models.get(model) for model in cell.cell.models)
        return next(
            (self._errors[plan.digest] for plan in inspected if plan and plan.digest in self._errors), cell.error
        )

    def _state(self, status: RunStatus, message: str = "") -> RunState:
        planned = self._planned
        stages = tuple(self._stage_states(planned.plans())) if planned else ()
        return RunState(
            run=self._run,
            pipeline=self._spec.name,
            number=int(self._run.rpartition("-")[2]),
            status=status,
            limited=bool(planned and planned.limited),
            message=message,
            seconds=round(time.monotonic() - self._started, 1),
            stages=stages,
        )

    def _stage_states(self, plans: Sequence[tuple[str, Plan, Resources]]) -> Iterator[StageState]:
        """In the order of the plans; what was seen published is not asked for again."""
        self._published |= find_published(self._store, {p.digest for _, p, _ in plans} - self._published)
        for _, state in prefetch(self._stage_state, plans):
            yield state

    def _stage_state(self, planned: tuple[str, Plan, Resources]) -> StageState:
        cell, plan, _ = planned
        known = plan.digest in self._published
        return stage_state(self._store, cell, plan, self._why(plan.digest), published=known)

    def _why(self, digest: str) -> str:
        """Why a stage is not published; one that waits names the stage that failed, however far behind it that is."""
        cause = digest
        while cause in self._waits and cause not in self._errors:
            cause = self._waits[cause]
        if cause == digest:
            return self._errors.get(digest, "")
        if cause not in self._names:
            self._names[cause] = self._name_of(cause)
        return f"{WAITS} {self._names[cause]} is not published"

    def _name_of(self, digest: str) -> str:
        """What people call a stage of this run; its digest if the run does not plan it."""
        planned = self._planned.plans() if self._planned else ()
        stages = ((cell, plan.stage) for cell, plan, _ in planned if plan.digest == digest)
        return next((f"{cell} {stage.output} {stage.detail}".rstrip() for cell, stage in stages), digest)

    def _save(self, status: RunStatus, message: str = "") -> None:
        save_state(self._store, self._state(status, message))

    def _try_save(self, status: RunStatus, message: str) -> None:
        try:
            self._save(status, message)
        except Exception as error:  # the store may be what failed; the first error is the one to show
            self._log.emit("error", subject=self._run, message=f"state not saved: {error}")


_WRONG_NAMES = {cls.__name__ for cls in (UnknownModel, UnknownSite, BadSite, BadRef, EmptyImageSet)}


def _refuse_wrong_names(board: Board) -> None:
    """A model or image set that does not exist is a fault of the spec: say so before any work, as for a wrong site.

    What exists and fails (a damaged checkpoint, a file that went away) fails alone, and the rest of the zoo goes on.
    """
    wrong = [outcome.message for outcome in board.failed.values() if outcome.error in _WRONG_NAMES]
    if wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
