"""What scoring costs: passes of the models that see images or texts, and the memory that these take; loads no torch."""

from __future__ import annotations

from typing import Any

from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Estimate, Known
from schemas.plans import Plan

LABEL_TOKENS = 150
"""Of a question about one text, and of its answer."""
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images that are looked at or made, FLOPs of the models that see them, and the memory that models take.

    What a segmenter or a maker from a folder computes is not known, and left out.
    """
    params: Any = plan.stage.params
    effort: Any = plan.effort
    features = plan.rounds[0].rows
    match plan.stage.output:
        case "iou":
            note = "" if params["segmenter"] == "truth" else "without what the segmenter computes"
            return Estimate(images=features * params["top"], worker_memory=LIBRARY_BYTES, note=note)
        case "clip":
            flops, memory = _of_model(known, params["clip"], "fp32")
            images = features * params["top"]
            return Estimate(images=images, shared_flops=images * flops, worker_memory=LIBRARY_BYTES + memory)
        case "synthetic" | "random":
            flops, memory = _of_model(known, plan.stage.subject, params["dtype"])
            images = features * params["maker_images"]
            note = "without what the maker computes" if "maker_steps" in params else ""
            return Estimate(images=images, flops=images * flops, worker_memory=LIBRARY_BYTES + memory, note=note)
        case "summary" if effort["labeller"] is not None:
            return _asked(plan, known, features * len(effort["variants"]))
        case _:
            return Estimate(worker_memory=LIBRARY_BYTES)


def _of_model(known: Known, model: str, dtype: str) -> tuple[int, int]:
    """FLOPs of one image, and bytes of the weights; 0 of a model that is not known yet."""
    facts = known.models.get(model)
    return (facts.flops, NUMBER_BYTES[dtype] * facts.params) if facts is not None else (0, 0)


def _asked(plan: Plan, known: Known, texts: int) -> Estimate:
    """Two questions about each of so many texts."""
    facts = known.models.get(str(plan.stage.params["labels"]).removeprefix("vlm:"))
    if facts is None or facts.language is None:
        return Estimate()
    flops = 2 * 2 * facts.language.params * LABEL_TOKENS * texts
    weights = NUMBER_BYTES[str(plan.stage.params["dtype"])] * (facts.params + facts.language.params)
    return Estimate(flops=flops, worker_memory=LIBRARY_BYTES + weights)
