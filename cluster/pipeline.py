"""A pipeline from spec to published tables: facts first, then each wave of cells side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cluster.board import Board
from cluster.cells import CellPlans, Needs, cells_read, find_needs, spread, with_reads
from cluster.events import EventLog
from cluster.executor import Executor, StopFlag
from cluster.facts import FactPlans, load_known, plan_facts
from cluster.ledger import done_shards, find_published, load_failures, stored_plan
from cluster.run import run_stages
from cluster.runs import RunState, RunStatus, RunTables, StageState, save_state, save_tables
from cluster.stores.base import Store, prefetch
from jobs.kinds import get_kind
from jobs.protocol import Cell, Known
from schemas.errors import BadRef, BadSite, EmptyImageSet, NotInspected, UnknownModel, UnknownSite, UsageError
from schemas.plans import Plan, Resources
from schemas.specs import PipelineSpec

WAITS = "its input stage"
"""How the reason of a stage begins that fails only because one before it did."""

READS = "it reads"
"""How the reason of a cell begins that cannot be planned only because of one before it."""


@dataclass
class PlannedPipeline:
    """Every cell with its plans, in the order they run; cells that cannot be planned yet or at all say why."""

    spec: PipelineSpec
    needs: Needs
    facts: FactPlans
    known: Known
    cells: list[CellPlans] = field(default_factory=list)

    @property
    def limited(self) -> bool:
        """Whether any image set is cut by a limit."""
        return any(images.limit is not None for images in self.needs.images)

    def plans(self) -> list[tuple[str, Plan, Resources]]:
        """(cell title, plan, resources) of facts and cells."""
        facts = [(_fact_title(p), p, r) for p, r in self.facts.with_resources(self.spec.index_resources)]
        return facts + [(title(c), plan, c.cell.resources) for c in self.cells for plan in c.plans]


def title(cell: CellPlans) -> str:
    """`stage`, `stage/model` or `stage/model+model`, for people."""
    about = (cell.cell.model,) if cell.cell.model is not None else cell.cell.pair
    return cell.cell.name if about is None else f"{cell.cell.name}/{'+'.join(about)}"


def _fact_title(plan: Plan) -> str:
    return f"{'models' if plan.stage.kind == 'inspect' else 'images'}/{plan.stage.subject}"


def plan_pipeline(spec: PipelineSpec, store: Store, facts: FactPlans | None = None) -> PlannedPipeline:
    """Plan what can be planned with what is published; pure but for reading the store and listing files.

    facts: those of an earlier call, so that a file that arrives during a run does not change what the run is about.
    """
    needs = find_needs(spec)
    facts = facts or plan_facts(needs, store)
    planned = PlannedPipeline(spec, needs, facts, load_known(facts, store))
    by_stage: dict[str, list[CellPlans]] = {}
    for wave in spec.waves():
        for name in wave:
            by_stage[name] = [_plan_cell(planned, cell, by_stage) for cell in spread(spec, name)]
    planned.cells = [cell for name in spec.stages for cell in by_stage[name]]
    return planned


def _plan_cell(planned: PlannedPipeline, cell: Cell, earlier: dict[str, list[CellPlans]]) -> CellPlans:
    read = cells_read(cell, earlier)
    if unplanned := [title(other) for other in read if not other.plans]:
        return CellPlans(cell, error=f"{READS} {unplanned[0]}, which cannot be planned")
    try:
        known = _with_saes(planned.known, earlier)
        return CellPlans(cell, get_kind(cell.spec.kind).make_plans(with_reads(cell, earlier), known))
    except NotInspected as error:
        return CellPlans(cell, error=str(error))
    except UsageError as error:
        raise type(error)(_about(cell, str(error))) from error


def _with_saes(known: Known, earlier: dict[str, list[CellPlans]]) -> Known:
    """What is known, and the SAEs that the cells before will make: how many latents they have, only they say."""
    plans = (plan for cells in earlier.values() for cell in cells for plan in cell.plans)
    saes = {f"sae:{plan.digest}": plan.stage for plan in plans if plan.stage.output == "sae"}
    return replace(known, stages={**saes, **known.stages})


def _about(cell: Cell, refusal: str) -> str:
    """A refusal with its stage in front, and with the field of it that the refusal opens with, so that both can be found."""
    if refusal.startswith("stages."):
        return refusal
    opening = refusal.partition(": ")[0]
    return f"stages.{cell.name}{'.' if opening in type(cell.spec).model_fields else ': '}{refusal}"


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
        _refuse_wrong_names(self._run_wave(planned.facts.freeze(self._store, self._spec.index_resources)))
        self._planned = planned = plan_pipeline(self._spec, self._store, planned.facts)
        self._save("RUNNING")
        for wave in self._spec.waves():
            cells = [c for c in planned.cells if c.cell.name in wave]
            self._run_wave(list(self._with_inputs(cells)))

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


def stage_state(store: Store, cell: str, plan: Plan, error: str = "", published: bool | None = None) -> StageState:
    """Where a stage stands, read from the store; `published` if that is known already."""
    if published is None:
        published = bool(find_published(store, [plan.digest]))
    done = plan.n_shards if published else len(done_shards(store, plan.digest))
    if done and not published:
        plan = stored_plan(store, plan)  # its shards are those that are done, whatever the spec says by now
    if not published and not error and (failed := load_failures(store, plan.digest)):
        error = f"shard {failed[0].shard}: {failed[0].error}: {failed[0].message}"
    stage = plan.stage
    return StageState(
        digest=plan.digest,
        cell=cell,
        kind=stage.kind,
        subject=stage.subject,
        output=stage.output,
        detail=stage.detail,
        state="published" if published else "failed" if error else "to do",
        shards_done=done,
        shards=plan.n_shards,
        error=error,
    )
