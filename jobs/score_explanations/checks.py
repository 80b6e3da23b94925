"""What a stage that scores explanations asks of the models and features that it is given, and what it refuses; loads no torch."""

from __future__ import annotations

from typing import Any

from jobs.activations import images_ref
from jobs.model_folders import check_folder
from jobs.protocol import Cell, Known
from jobs.score_explanations.scored import Scored
from schemas.errors import BadSpec, NotInspected
from schemas.explain_specs import ScoreExplanationsSpec
from schemas.models import ModelFacts
from schemas.refs import ImageSetRef

AUTO = "auto"
"""How an alpha is asked for that is chosen on validation features."""


def find_clip(cell: Cell, known: Known) -> ModelFacts | None:
    """The CLIP of a cell, if it needs one. Raises: NotInspected. BadSpec (it has no text tower)."""
    if cell.clip is None:
        return None
    clip = _inspected(known, cell.clip)
    if not clip.has_text:
        raise _refuse(cell, "clip", f"{clip.model} has no text tower, so no text is in its space; name a CLIP")
    return clip


def find_labeller(cell: Cell, known: Known) -> ModelFacts | None:
    """The model that labels, if one does. Raises: NotInspected. BadSpec (it writes no text)."""
    if not cell.spec.beside:
        return None
    labeller = _inspected(known, cell.spec.beside[0])
    if labeller.language is None:
        raise _refuse(cell, "labels", f"{labeller.model} writes no text; name a vision-language model, or world")
    return labeller


def check_scored(cell: Cell, known: Known, facts: ModelFacts, scored: Scored) -> None:
    """That features are left to score, and that a sae_features stage has what the measures ask of it.

    Raises:
        BadSpec: names the field to change.
    """
    spec, params = cell.spec, scored.params
    assert isinstance(spec, ScoreExplanationsSpec)
    if spec.scored == "test":
        _check_validation(cell, scored)
    for metric, field in {"iou": "segmenter", "synthetic": "maker"}.items():
        if metric in spec.metrics:
            check_folder(cell.name, field, getattr(spec, field))
    on_images = set(spec.metrics) & {"iou", "clip"}
    for table, asking in {"top_images": on_images, "selectivity": set(spec.metrics) & {"naming"}}.items():
        if asking and table not in params["tables"]:
            asked = f"which {', '.join(sorted(asking))} asks for"
            raise _refuse(cell, "reads", f"{scored.name} has no table {table}, {asked}; add it to its tables")
    if on_images and params["grid"] is None:
        leave_out = ", ".join(sorted(on_images))
        raise _refuse(cell, "metrics", f"features at {scored.site} have no place in an image; leave out {leave_out}")
    if on_images and params["top_k"] < spec.top:
        raise _refuse(
            cell, "top", f"{spec.top} images per feature, but {scored.name} has {params['top_k']}; raise its top_k"
        )
    if "iou" in spec.metrics and spec.segmenter == "truth":
        _check_truth(cell, known, facts, scored)


def _check_validation(cell: Cell, scored: Scored) -> None:
    """That a chosen alpha was not chosen on every feature that is explained with it, as far as planning knows."""
    read = {plan.digest: plan for plans in cell.reads.values() for plan in plans}
    for one in scored.explained:
        if one.variant.alpha_asked != AUTO:
            continue
        params: Any = one.stage.params
        choice = read.get(one.stage.inputs["alphas"])
        n = int(params["validation"]) if choice is None else choice.rounds[0].rows
        explained = max(params["features"]) + 1 if params["features"] else one.plan.rounds[0].rows
        if explained <= n:
            raise _refuse(
                cell,
                "scored",
                f"test leaves out the first {n} active features, on which the alpha of {one.variant} is chosen, and it "
                "explains no other; give the explain stage a smaller validation, more features or alpha as a number, or "
                "score all",
            )


def _check_truth(cell: Cell, known: Known, facts: ModelFacts, scored: Scored) -> None:
    ref = images_ref(known, scored.index)
    if ref is not None and ImageSetRef.parse(ref).source != "world":
        raise _refuse(
            cell,
            "segmenter",
            f"truth knows the images of world:... alone, found {ref}; give file:/folder of a CLIPSeg model",
        )
    if not scored.params["whole_view"]:
        raise _refuse(
            cell,
            "segmenter",
            f"truth is of whole images, and {facts.model} sees a part of each; set geometry: square in {scored.name}",
        )


def _refuse(cell: Cell, field: str, what: str) -> BadSpec:
    return BadSpec(f"stages.{cell.name}.{field}: {what}")


def _inspected(known: Known, model: str) -> ModelFacts:
    facts = known.models.get(model)
    if facts is None:
        raise NotInspected(f"{model} is not inspected yet")
    return facts
