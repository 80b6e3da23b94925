"""Evaluate cells to plans: one stage per model over all describe and intervene stages that are read; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint, get_facts, model_digest
from jobs.described import Described, Units, Variant, find_described, units_of, variant_of
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from schemas.base import Frozen, canonical_json
from schemas.errors import BadSpec, NotInspected
from schemas.evaluate_specs import EvaluateSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json
from schemas.refs import Site

METHOD = 1
TABLES = {"scores": {"judge": ("description_eval", "method_scores", "method_tests")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"scores": ()}


class Judged(Frozen):
    """A describe stage that is judged; concepts: place of its list among those of the work."""

    stage: str
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


class _Effects(NamedTuple):
    """An intervene stage as planning sees it."""

    stage: StageSpec
    units: Units
    variant: Variant


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The one plan of a model.

    Raises:
        NotInspected: the model or the CLIP is not known yet.
        BadSpec: nothing is read that can be judged, or something is there twice.
    """
    spec = cell.spec
    assert isinstance(spec, EvaluateSpec) and cell.clip is not None
    facts, clip = get_facts(cell, known), known.models.get(cell.clip)
    if clip is None:
        raise NotInspected(f"{cell.clip} is not inspected yet")
    if not clip.has_text:
        raise BadSpec(
            f"stages.{cell.name}.clip: {clip.model} has no text tower, so it cannot say how alike two texts are; name a CLIP"
        )
    described, changed = find_described(cell), _find_changed(cell)
    _refuse_twice(cell.name, described, changed)
    classes = tuple(name.strip() for name in facts.classes or ()) if spec.truth == "classes" else ()
    concepts = tuple(dict.fromkeys([*(d.concepts for d in described), classes]))
    groups, unjudged = _group(spec, classes, described, concepts)
    if not groups and not changed:
        raise BadSpec(f"stages.{cell.name}.reads: {_nothing_judged(spec, facts, described)}")
    work = Work(
        concepts=concepts,
        groups=groups,
        unjudged=unjudged,
        changed=tuple(
            Changed(stage=e.stage.digest, **e.units._asdict(), variant=e.variant.name, seed=e.variant.seed)
            for e in changed
        ),
        clip=_text_pass(clip),
        sentences=spec.sentences,
    )
    stage = StageSpec(
        kind="evaluate",
        method=METHOD,
        subject=facts.model,
        output="scores",
        params=_params(spec, clip, known),
        inputs=_inputs(facts, clip, described, changed),
    )
    worker = f"evaluate {facts.model} {stage.digest}"
    rounds = (Round(name="judge", rows=1, shard_rows=1),)
    return (Plan(stage=stage, rounds=rounds, worker=worker, effort=work.model_dump(mode="json")),)


def _find_changed(cell: Cell) -> tuple[_Effects, ...]:
    read = {p.digest: p.stage for plans in cell.reads.values() for p in plans if p.stage.kind == "intervene"}
    found = [_Effects(stage, units_of(stage), variant_of(stage)) for stage in read.values()]
    return tuple(sorted(found, key=lambda e: (e.units.key, e.variant.key, e.stage.digest)))


def _params(spec: EvaluateSpec, clip: ModelFacts, known: Known) -> dict[str, JsonValue]:
    """Of a folder of sentence encoders its content counts, not where it is."""
    sentences = [known.files[folder] for folder in spec.folders]
    return {
        "truth": spec.truth,
        "min_truth": spec.min_truth if spec.truth == "auroc" else None,
        "clip": clip.model,
        "sentences": sentences[0] if sentences else None,
        "random_seed": spec.seed,
    }


def _inputs(
    facts: ModelFacts, clip: ModelFacts, described: Iterable[Described], changed: Iterable[_Effects]
) -> dict[str, str]:
    """Numbered in the order that they have of their own, so that the one in which they are read does not matter."""
    inputs = {"model": model_digest(facts), "clip": model_digest(clip)}
    inputs |= {f"describe.{number}": one.stage.digest for number, one in enumerate(described)}
    return inputs | {f"intervene.{number}": one.stage.digest for number, one in enumerate(changed)}


def _text_pass(clip: ModelFacts) -> Forward:
    """The CLIP whose text tower is opened; no image goes through it."""
    return Forward(
        model=clip.model, inputs={"model": model_digest(clip)}, params={"dtype": "fp32"}, effort=checkpoint(clip)
    )


# ---------------------------------------------------------------- what is compared with what


def _group(
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
            Judged(stage=d.stage.digest, variant=d.variant.name, seed=d.variant.seed, concepts=lists.index(d.concepts))
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


def _nothing_judged(spec: EvaluateSpec, facts: ModelFacts, described: Sequence[Described]) -> str:
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


def _refuse_twice(name: str, described: Sequence[Described], changed: Sequence[_Effects]) -> None:
    """Two stages that would have one name in the tables, such as one method with two lists of concepts."""
    seen: dict[Any, StageSpec] = {}
    for one in described:
        _check_new(name, seen, (one.units, one.variant), one.stage, "describes", one.variant, one.units)
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
        differ = [k for k in {**other.params, **stage.params} if other.params.get(k) != stage.params.get(k)]
        differ += [k for k in {**other.inputs, **stage.inputs} if other.inputs.get(k) != stage.inputs.get(k)]
        seed = "" if variant.seed is None else f" (seed {variant.seed})"
        raise BadSpec(
            f"stages.{name}.reads: {variant.name}{seed} {does} {units} twice, with different {', '.join(sorted(differ))} "
            f"(stages {other.digest} and {stage.digest}); give each its own evaluate stage"
        )


def work_of(plan: Plan) -> Work:
    """What a plan's worker has to do."""
    return load_json(Work, canonical_json(plan.effort))


def estimate(plan: Plan, known: Known) -> Estimate:
    """What the worker holds: libraries and the CLIP; the tests take seconds."""
    clip = known.models.get(str(plan.stage.params["clip"]))
    return Estimate(worker_memory=LIBRARY_BYTES + (4 * clip.params if clip else 0))
