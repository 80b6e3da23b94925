"""Which methods are compared on which units, decided at planning, and what a worker is told of it; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jobs.activations import Forward
from jobs.described import Described, Units, Variant, units_of, variant_of
from jobs.protocol import Cell
from schemas.base import Frozen, canonical_json
from schemas.errors import BadSpec
from schemas.evaluate_specs import EvaluateSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, StageSpec, load_json
from schemas.refs import Site


class Judged(Frozen):
    """A describe stage that is judged; concepts: place of its list among those of the work."""

    stage: str
    method: str
    variant: str
    seed: int | None
    concepts: int


class Group(Frozen):
    """Methods on the same units; truth: the stage that says what these stand for, None where unit i is class i.

    tau: places of the lists of units that count, the same for all.
    """

    site: str
    unit_kind: str
    sae: str | None
    truth: str | None
    truth_concepts: int
    tau: int
    methods: tuple[Judged, ...]

    @property
    def units(self) -> Units:
        """Whose units."""
        return Units(self.site, self.unit_kind, self.sae)


class Changed(Frozen):
    """An intervene stage that is judged."""

    stage: str
    site: str
    unit_kind: str
    sae: str | None
    method: str
    variant: str
    seed: int | None

    @property
    def units(self) -> Units:
        """Whose units were changed."""
        return Units(self.site, self.unit_kind, self.sae)


class Work(Frozen):
    """What a worker has to do, as the effort of its plan: all of it follows from the stages that are its inputs."""

    concepts: tuple[tuple[str, ...], ...]
    groups: tuple[Group, ...]
    unjudged: tuple[str, ...]
    """Units that methods describe, but of which nothing says what they stand for."""
    changed: tuple[Changed, ...]
    clip: Forward
    sentences: str | None


class Intervened(NamedTuple):
    """An intervene stage as planning sees it."""

    stage: StageSpec
    units: Units
    variant: Variant


def find_changed(cell: Cell) -> tuple[Intervened, ...]:
    """Every intervene stage that a cell reads, each once; in an order of their own, whatever is read first."""
    read = {p.digest: p.stage for plans in cell.reads.values() for p in plans if p.stage.kind == "intervene"}
    found = [Intervened(stage, units_of(stage), variant_of(stage)) for stage in read.values()]
    return tuple(sorted(found, key=lambda e: (e.units.key, e.variant.key, e.stage.digest)))


def work_of(plan: Plan) -> Work:
    """What a plan's worker has to do."""
    return load_json(Work, canonical_json(plan.effort))


# ---------------------------------------------------------------- what is compared with what


def group_methods(
    spec: EvaluateSpec, classes: tuple[str, ...], described: Sequence[Described], lists: Sequence[tuple[str, ...]]
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Methods by the units they describe; and the units of which nothing that is read says what they stand for."""
    truths = {d.units: d for d in described if d.method == "auroc"}
    by_units: dict[Units, list[Described]] = {}
    for one in described:
        if one.method != "auroc":
            by_units.setdefault(one.units, []).append(one)
    groups, without = [], []
    for units, methods in by_units.items():
        truth = truths.get(units) if spec.truth == "auroc" else None
        if truth is None and not (classes and _is_head(units)):
            without.append(str(units))
            continue
        judged = tuple(
            Judged(
                stage=d.stage.digest,
                method=d.method,
                variant=d.variant.name,
                seed=d.variant.seed,
                concepts=lists.index(d.concepts),
            )
            for d in methods
        )
        names = truth.concepts if truth is not None else classes
        groups.append(
            Group(
                **units._asdict(),
                truth=None if truth is None else truth.stage.digest,
                truth_concepts=lists.index(names),
                tau=min(d.tau for d in methods),
                methods=judged,
            )
        )
    return tuple(groups), tuple(without)


def _is_head(units: Units) -> bool:
    return units.unit_kind == "neurons" and Site.parse(units.site).path == "logits"


def why_nothing_judged(spec: EvaluateSpec, facts: ModelFacts, described: Sequence[Described]) -> str:
    """Why no method can be compared with any truth, and what to do."""
    methods = sorted({str(d.units) for d in described if d.method != "auroc"})
    truths = sorted({str(d.units) for d in described if d.method == "auroc"})
    if not methods:
        found = "only method auroc, which is the truth" if truths else "no describe stage"
        return f"found {found} of {facts.model}; expected a describe stage with a method to judge, such as miclip"
    of_methods = f"methods describe {', '.join(methods)} of {facts.model}"
    if spec.truth == "classes" and facts.classes is None:
        return f"truth is classes, but {facts.model} has no head with named classes; use truth: auroc"
    if spec.truth == "classes":
        return f"truth is classes, but {of_methods}; expected neurons at logits, or truth: auroc"
    if not truths:
        return (
            f"truth is auroc, but no describe stage that is read has it, so nothing says what units stand for; add auroc to "
            f"the methods of a describe stage ({of_methods})"
        )
    return f"no units in common: {of_methods}, but auroc knows {', '.join(truths)}; describe the same sites and SAEs"


# ---------------------------------------------------------------- what is there twice


def refuse_twice(name: str, described: Sequence[Described], changed: Sequence[Intervened]) -> None:
    """Refuse two stages that would have one name in the tables, such as one method with two lists of concepts.

    Raises:
        BadSpec: names both stages and what they differ in.
    """
    seen: dict[Any, StageSpec] = {}
    for one in described:
        variant = "auroc" if one.method == "auroc" else one.variant  # of truths there can only be one
        _check_new(name, seen, (one.units, variant), one.stage, "describes", one.variant, one.units)
    seen = {}
    for effects in changed:
        params: Any = effects.stage.params
        for change in params["changes"]:
            key = (effects.units, effects.variant, params["error"], canonical_json(change))
            _check_new(name, seen, key, effects.stage, "changes", effects.variant, effects.units)


def _check_new(
    name: str, seen: dict[Any, StageSpec], key: Any, stage: StageSpec, does: str, variant: Variant, units: Units
) -> None:
    other = seen.setdefault(key, stage)
    if other.digest != stage.digest:
        seed = "" if variant.seed is None else f" (seed {variant.seed})"
        raise BadSpec(
            f"stages.{name}.reads: {variant.name}{seed} {does} {units} twice, with different {', '.join(_differ(other, stage))} "
            f"(stages {other.digest} and {stage.digest}); give each its own evaluate stage"
        )


def _differ(one: StageSpec, other: StageSpec) -> list[str]:
    """Names of the parameters and inputs in which two stages differ."""
    pairs = ((one.params, other.params), (one.inputs, other.inputs))
    return sorted(k for a, b in pairs for k in {**a, **b} if a.get(k) != b.get(k))


OF_THE_METHOD = ("method", "variant", "seed", "concept_ids", "units", "changes")
"""In what interventions may differ that are compared: by which method units were found, and which other changes are made."""


def refuse_unlike(name: str, changed: Sequence[Intervened]) -> None:
    """Refuse to compare one change of the same units on other images, at other positions or of other numbers of units.

    Raises:
        BadSpec: names both stages and what they differ in.
    """
    seen: dict[Any, Intervened] = {}
    for effects in changed:
        params: Any = effects.stage.params
        for change in params["changes"]:
            other = seen.setdefault((effects.units, params["error"], canonical_json(change)), effects)
            if differ := [k for k in _differ(other.stage, effects.stage) if k not in OF_THE_METHOD]:
                raise BadSpec(
                    f"stages.{name}.reads: {effects.variant.name} and {other.variant.name} change {effects.units} with different "
                    f"{', '.join(differ)}, so their effects cannot be compared; intervene alike (tau, for example, cuts lists "
                    "of any length), or give each its own evaluate stage"
                )
