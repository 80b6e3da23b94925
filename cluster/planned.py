"""What a pipeline comes to with what is published so far: every cell with its plans, and where each stage stands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.cells import CellPlans, Needs, cells_read, find_needs, models_needed, spread, with_reads
from cluster.facts import FactPlans, load_known, plan_facts
from cluster.ledger import find_published, load_marks, stored_plan
from cluster.runs import StageState
from cluster.stores.base import Store
from jobs.kinds import get_kind
from jobs.protocol import Cell, Known
from schemas.errors import NotInspected, UnknownModel, UsageError
from schemas.matrix import place_text
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import PAIR, Plan, Resources

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

    def refuse(self) -> None:
        """Raise what is said of the first cell that can never be planned, for those who want all of a spec or nothing."""
        for cell in self.cells:
            if cell.refusal is not None:
                raise cell.refusal

    def plans(self) -> list[tuple[str, Plan, Resources]]:
        """(cell title, plan, resources) of facts and cells."""
        facts = [(_fact_title(p), p, r) for p, r in self.facts.with_resources(self.spec.index_resources)]
        return facts + [(title(c), plan, c.cell.resources) for c in self.cells for plan in c.plans]


def title(cell: CellPlans) -> str:
    """`stage`, `stage/model` or `stage/model+model`, then `/axis=value` for each other axis; for people."""
    about = (cell.cell.model,) if cell.cell.model is not None else cell.cell.pair or ()
    return "/".join(word for word in (cell.cell.name, "+".join(about), place_text(cell.cell.at)) if word)


def subject_of(cell: CellPlans) -> str:
    """What a cell is about: its model or pair of models, as stages name them; its own name if it is about none."""
    return cell.cell.model or PAIR.join(cell.cell.pair or (cell.cell.name,))


def _fact_title(plan: Plan) -> str:
    return f"{'models' if plan.stage.kind == 'inspect' else 'images'}/{plan.stage.subject}"


def plan_pipeline(spec: PipelineSpec, store: Store, facts: FactPlans | None = None) -> PlannedPipeline:
    """Plan what can be planned with what is published; pure but for reading the store and listing files.

    facts: those of an earlier call, so that a file that arrives during a run does not change what the run is about.

    Raises:
        UsageError: all cells of some stage are refused. Where a stage suits some models and not others, or some of
            them are not there, those cells say so and the others are planned.
    """
    needs = find_needs(spec)
    facts = facts or plan_facts(needs, store)
    planned = PlannedPipeline(spec, needs, facts, load_known(facts, store))
    by_stage: dict[str, list[CellPlans]] = {}
    for wave in spec.waves():
        for name in wave:
            known = _with_saes(planned.known, by_stage)
            by_stage[name] = [_plan_cell(cell, by_stage, known, facts) for cell in spread(spec, name)]
            _refuse_whole(by_stage[name])
    # a cell that has neither plans nor a reason is about nothing, such as pages of a model without units
    planned.cells = [cell for name in spec.stages for cell in by_stage[name] if cell.plans or cell.error]
    return planned


def _plan_cell(cell: Cell, earlier: dict[str, list[CellPlans]], known: Known, facts: FactPlans) -> CellPlans:
    read = cells_read(cell, earlier)
    if unplanned := [title(other) for other in read if not other.plans]:
        return CellPlans(cell, error=f"{READS} {unplanned[0]}, which cannot be planned")
    try:
        return CellPlans(cell, get_kind(cell.spec.kind).make_plans(with_reads(cell, earlier), known))
    except NotInspected as error:
        missing = next((facts.missing[model] for model in models_needed(cell) if model in facts.missing), None)
        return CellPlans(cell, error=str(missing or error), refusal=missing)
    except UsageError as error:
        refusal = type(error)(_about(cell, str(error)))
        if cell.zoo or cell.model is None:
            raise refusal from error
        return CellPlans(cell, error=str(error), refusal=refusal)


def _refuse_whole(cells: list[CellPlans]) -> None:
    """Raise what is said of a stage that suits none of its models; the spec is wrong then, rather than a model."""
    refusals = [cell.refusal for cell in cells if cell.refusal is not None]
    if len(refusals) == len(cells) and not any(isinstance(refusal, UnknownModel) for refusal in refusals):
        raise refusals[0]


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


def stage_state(store: Store, cell: str, plan: Plan, error: str = "", published: bool | None = None) -> StageState:
    """Where a stage stands for a run that has not touched it, read from the store; `published` if that is known already."""
    if published is None:
        published = bool(find_published(store, [plan.digest]))
    done, failed = (plan.n_shards, []) if published else load_marks(store, plan.digest)
    if done and not published:
        plan = stored_plan(store, plan)  # its shards are those that are done, whatever the spec says by now
    if failed and not error:
        error = f"shard {failed[0].shard}: {failed[0].error}: {failed[0].message}"
    stage = plan.stage
    return StageState(
        digest=plan.digest,
        cell=cell,
        kind=stage.kind,
        subject=stage.subject,
        output=stage.output,
        detail=stage.detail,
        state="cached" if published else "failed" if error else "to do",
        shards_done=done,
        shards=plan.n_shards,
        error=error,
    )
