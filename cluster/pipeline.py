"""One run of a pipeline from spec to published tables: facts first, then all cells side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.board import Board
from cluster.cells import CellPlans, models_needed
from cluster.cost_log import CostLog
from cluster.events import Event, EventLog
from cluster.executor import Executor, StopFlag
from cluster.facts import FactPlans
from cluster.feasible import Asked
from cluster.hold import Holds
from cluster.lease import Pace
from cluster.ledger import find_published
from cluster.planned import PlannedPipeline, plan_pipeline, stage_state, subject_of, title
from cluster.run import run_stages
from cluster.runs import (
    RunState,
    RunStatus,
    RunTables,
    StageState,
    StateKeeper,
    UnplannedCell,
    get_exit_code,
    save_tables,
    split_run,
    status_of,
)
from cluster.stores.base import Store, prefetch
from schemas.errors import BadRef, BadSite, EmptyImageSet, UnknownModel, UnknownSite, UsageError
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources

FIRST_SAVE_SECONDS, SAVE_SECONDS = 2.0, 20.0
"""Pauses between two writings of the state of a run that has just begun, and of one that goes on."""
SAVE_SHARE = 50.0
"""And so seldom that writing takes at most one part in so many of the time."""
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


class PipelineRun:
    """One submission of a pipeline: keeps `state.json` and `tables.json` true whatever happens.

    planned: what `plan_pipeline` gave for this spec a moment ago, so that sources of images are listed once.
    pace: how long it waits for a sweep that shows no life.
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
        pace: Pace | None = None,
    ) -> None:
        self._spec, self._run, self._store = spec, run, store
        self._executor, self._log, self._stop = executor, log, stop
        self._keeper = StateKeeper(store)
        stop.listen(self._keeper.stop)
        self._started, self._began = time.monotonic(), time.time()
        self._errors: dict[str, str] = {}
        self._waits: dict[str, str] = {}
        """Stage -> one of its inputs that is not published."""
        self._names: dict[str, str] = {}
        self._published: set[str] = set()
        self._made: set[str] = set()
        """Those of the published stages that this run published."""
        self._planned = planned
        self._facts_done = False
        self._saved: RunState | None = None
        self._pause = min(FIRST_SAVE_SECONDS, SAVE_SECONDS)
        self._save_after = self._started + self._pause
        self._holds = Holds(store, run, pace)
        self._waited = False
        self._costs = CostLog(store, run)

    def run(self) -> RunReport:
        """Facts, plans of every cell, then all cells side by side: each starts when what it reads is published.

        Raises:
            UsageError: a stage suits none of its models, or no model is there; nothing but facts was computed.
            Infeasible, Interrupted, StoreUnreachable, ClusterUnreachable: as in `run_stages`.
        """
        self._save("RUNNING")
        self._log.add(self._note_published)
        self._log.add(self._costs)
        try:
            self._run_all()
        except BaseException as error:
            self._end_early(self._stop.error or error)
            raise
        finally:
            self._costs.save()
        return self._finish()

    def _run_all(self) -> None:
        self._planned = planned = self._planned or plan_pipeline(self._spec, self._store)
        # what needs facts first is checked before they cost anything; the rest is, when all are planned
        unplanned = [cell for cell in planned.cells if not cell.plans]
        self._executor.check([Asked(title(c), c.cell.resources) for c in unplanned])
        self._hold(planned)
        self._costs.expect(planned)
        board = self._run_plans(planned.facts.freeze(self._store, self._spec.index_resources))
        self._facts_done = True
        _refuse_wrong_names(board, planned.facts)
        self._planned = planned = plan_pipeline(self._spec, self._store, planned.facts)
        self._hold(planned)
        self._costs.expect(planned)
        for cell in planned.cells:
            if cell.refusal is not None:  # said at once, and again when the others are done
                self._log.emit("error", subject=title(cell), message=str(cell.refusal))
        self._save("RUNNING")
        self._run_plans([(plan, c.cell.resources) for c in planned.cells for plan in c.plans])

    def _hold(self, planned: PlannedPipeline) -> None:
        """Before anything is relied on or made; what was seen published before may have been removed until now."""
        if self._holds.add((plan for _, plan, _ in planned.plans()), self._say_waiting):
            self._published.clear()

    def _say_waiting(self) -> None:
        self._stop.check()
        if not self._waited:
            self._waited = True
            said = "gc is looking what of old runs may go, or removes it; what this run needs of that is made again"
            self._log.emit("waiting", message=said)

    def _run_plans(self, plans: list[tuple[Plan, Resources]]) -> Board:
        board = run_stages(plans, self._store, self._executor, self._log, self._stop, self._watch, self._costs.estimate)
        self._published.update(plan.digest for plan in board.complete() if plan.digest not in board.damaged)
        self._note_failures(board)
        for plan in board.incomplete():
            if absent := board.missing_inputs(plan):
                self._waits.setdefault(plan.digest, min(absent))
        self._save("RUNNING")
        return board

    def _note_published(self, event: Event) -> None:
        if event["event"] == "published":
            self._published.add(event["stage"])
            self._made.add(event["stage"])

    def _watch(self, board: Board) -> None:
        """Keep `state.json` near what is done, by what the board knows, and spend little of the run's time on it."""
        if (began := time.monotonic()) < self._save_after or self._saved is None:
            return
        self._note_failures(board)
        progress = board.progress()
        stages = tuple(self._seen_on(progress, stage) for stage in self._saved.stages)
        self._saved = self._saved.model_copy(update={"stages": stages, "seconds": self._seconds})
        self._keeper.save(self._saved)
        ended = time.monotonic()
        self._pause = min(SAVE_SECONDS, 1.5 * self._pause)
        self._save_after = ended + max(self._pause, SAVE_SHARE * (ended - began))

    def _seen_on(self, progress: Mapping[str, tuple[int, int]], stage: StageState) -> StageState:
        if stage.is_published or not (stage.digest in progress or stage.digest in self._made):
            return stage
        done, shards = progress.get(stage.digest, (stage.shards, stage.shards))
        error = self._errors.get(stage.digest, "")
        state = "published" if stage.digest in self._made else "failed" if error else "to do"
        return stage.model_copy(update={"state": state, "shards_done": done, "shards": shards, "error": error})

    def _note_failures(self, board: Board) -> None:
        self._errors.update(board.damaged)
        for outcome in board.failed.values():
            where = f"shard {outcome.task.shard.number}" if outcome.state != "open_failed" else "opening the worker"
            for stage in outcome.task.stages:
                self._errors.setdefault(stage, f"{where}: {outcome.error}: {outcome.message}")

    def _finish(self) -> RunReport:
        state = self._state("DONE", exit_code=0)
        failures = [f"{s.cell} {s.output}: {s.error or 'not finished'}" for s in state.stages if not s.is_published]
        failures += [f"{cell.cell}: {cell.error}" for cell in state.unplanned]
        if failures:
            state = self._state("FAILED", failures[0], exit_code=1)
        self._keeper.save(state)
        tables: dict[str, list[str]] = {}
        for stage in state.published:
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

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)

    def _unplanned(self, planned: PlannedPipeline) -> Iterator[UnplannedCell]:
        """Once there are all facts that can be had, what cannot be planned has failed."""
        for cell in planned.cells:
            if not cell.plans:
                yield UnplannedCell(
                    cell=title(cell),
                    kind=cell.cell.spec.kind,
                    subject=subject_of(cell),
                    state="failed" if self._facts_done or cell.refusal is not None else "to do",
                    error=self._why_unplanned(cell, planned.facts),
                )

    def _why_unplanned(self, cell: CellPlans, facts: FactPlans) -> str:
        images = cell.cell.images
        plans = [facts.models[model] for model in models_needed(cell.cell) if model in facts.models]
        plans += [facts.images[images.key].plan] if images is not None and images.key in facts.images else []
        return next((self._errors[plan.digest] for plan in plans if plan.digest in self._errors), cell.error)

    def _state(self, status: RunStatus, message: str = "", exit_code: int | None = None) -> RunState:
        planned = self._planned
        stages = tuple(self._stage_states(planned.plans())) if planned else ()
        return RunState(
            run=self._run,
            pipeline=self._spec.name,
            number=split_run(self._run)[1],
            status=status,
            exit_code=exit_code,
            limited=bool(planned and planned.limited),
            message=message,
            seconds=self._seconds,
            began=self._began,
            stages=stages,
            unplanned=tuple(self._unplanned(planned)) if planned else (),
        )

    def _stage_states(self, plans: Sequence[tuple[str, Plan, Resources]]) -> Iterator[StageState]:
        """In the order of the plans; what was seen published is not asked for again."""
        self._published |= find_published(self._store, {p.digest for _, p, _ in plans} - self._published)
        for _, state in prefetch(self._stage_state, plans):
            yield state

    def _stage_state(self, planned: tuple[str, Plan, Resources]) -> StageState:
        cell, plan, _ = planned
        known = plan.digest in self._published
        state = stage_state(self._store, cell, plan, self._why(plan.digest), published=known)
        return state.model_copy(update={"state": "published"}) if known and plan.digest in self._made else state

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

    def _save(self, status: RunStatus, message: str = "", exit_code: int | None = None) -> None:
        self._saved = self._state(status, message, exit_code)
        self._keeper.save(self._saved)

    def _end_early(self, error: BaseException) -> None:
        status, message = status_of(error), str(error)
        try:
            self._save(status, message, get_exit_code(error))
        except Exception as trouble:  # the store may be what failed; the first error is the one to show
            self._log.emit("error", subject=self._run, message=f"state not saved: {trouble}")
        saved = self._keeper.stop_saved  # which a machine that is taken back gives seconds for
        after = {} if saved is None else {"saved_after": round(saved - self._stop.asked, 3)}
        self._log.emit("stopped", status=status, message=message, **after)


_WRONG_NAMES = {cls.__name__ for cls in (UnknownModel, UnknownSite, BadSite, BadRef, EmptyImageSet)}


def _refuse_wrong_names(board: Board, facts: FactPlans) -> None:
    """Where no model, or no image set, is what the spec says, the spec is wrong: say so before any work.

    One among several fails alone, as a damaged checkpoint does, and the rest of the zoo goes on.
    """
    failed = [o for o in board.failed.values() if o.error in _WRONG_NAMES]
    messages = {stage: outcome.message for outcome in failed for stage in outcome.task.stages}
    for plans in (facts.models.values(), (index.plan for index in facts.images.values())):
        stages = [plan.digest for plan in plans]
        if stages and set(stages) <= messages.keys():
            raise UsageError("\n".join(dict.fromkeys(messages[stage] for stage in stages)))
