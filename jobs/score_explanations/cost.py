"""What scoring costs: passes of the models that see images or texts, and the memory that these take; loads no torch."""

from __future__ import annotations

from typing import Any

from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Estimate, Known
from jobs.text_encoders import encoder_bytes, encoder_of, extras_of
from miclip_core.extras import DIFFUSION, Extra
from schemas.plans import Plan

LABEL_TOKENS = 150
"""Of a question about one text, and of its answer."""
MASKS_KEPT = 1 << 14
"""Masks that a worker remembers: features of different shards share texts and images."""
MASK_BYTES = 224 * 224 // 8
ID_BYTES = 200
"""Of an image of the sets that are compared: a sha256 in hex, as read, joined and hashed."""
TEXT_BYTES = 2000
"""Of a text with its scores in a summary, as Python objects and as rows of tables."""
ROW_BYTES = 1000
"""Of an image that a text was scored on, while one way to explain is summarised."""
USUAL_IMAGES = 5
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images that are looked at or made, FLOPs of the models that see them, and the memory that models take.

    What a segmenter or a maker from a folder computes is not known, and left out; its weights are as large as its files.
    """
    params: Any = plan.stage.params
    effort: Any = plan.effort
    features = plan.rounds[0].rows
    base = LIBRARY_BYTES + _ids(plan)
    match plan.stage.output:
        case "iou":
            note = "" if params["segmenter"] == "truth" else "without what the segmenter computes"
            held = base + MASKS_KEPT * MASK_BYTES + _of_folder(plan, known)
            return Estimate(images=features * params["top"], worker_memory=held, note=note)
        case "clip":
            flops, memory = _of_model(known, params["clip"], "fp32")
            images = features * params["top"]
            return Estimate(images=images, shared_flops=images * flops, worker_memory=base + memory)
        case "synthetic" | "random":
            flops, memory = _of_model(known, plan.stage.subject, params["dtype"])
            images = features * params["maker_images"]
            notes = ["without what the maker computes" if "maker_steps" in params else "", *_missing(plan)]
            held = base + memory + _of_folder(plan, known)
            note = "; ".join(note for note in notes if note)
            return Estimate(images=images, flops=images * flops, worker_memory=held, note=note)
        case "summary":
            flops, weights = _asked(plan, known, features * len(effort["variants"])) if effort["labeller"] else (0, 0)
            held = base + weights + encoder_bytes(encoder_of(plan), known) + _texts(effort)
            return Estimate(flops=flops, worker_memory=held, note="; ".join(_missing(plan)))
        case _:
            return Estimate(worker_memory=base)


def needs(plan: Plan) -> tuple[Extra, ...]:
    """The optional packages that its worker needs."""
    if plan.stage.output == "summary":
        return extras_of(encoder_of(plan))
    return (DIFFUSION,) if "maker_steps" in plan.stage.params else ()


def _missing(plan: Plan) -> list[str]:
    return [extra.note for extra in needs(plan) if extra.note]


def _of_folder(plan: Plan, known: Known) -> int:
    """Bytes of the weights of its segmenter or maker, if that lies in a folder."""
    return known.weights.get(str(plan.effort.get("folder")), 0)


def _ids(plan: Plan) -> int:
    """Bytes of the ids of the images to score on and of all that explanations were made from; a summary reads none."""
    params: Any = plan.stage.params
    shown = {(plan.stage.inputs[f"shown.{n}"], rows) for n, rows in enumerate(params.get("shown_rows", ()))}
    return ID_BYTES * (params["rows"] + sum(rows for _, rows in shown)) if shown else 0


def _texts(effort: Any) -> int:
    """Bytes of all texts of a summary with what they score, and of the images of one way to explain."""
    return effort["features"] * (len(effort["variants"]) * TEXT_BYTES + USUAL_IMAGES * ROW_BYTES)


def _of_model(known: Known, model: str, dtype: str) -> tuple[int, int]:
    """FLOPs of one image, and bytes of the weights; 0 of a model that is not known yet."""
    facts = known.models.get(model)
    return (facts.flops, NUMBER_BYTES[dtype] * facts.params) if facts is not None else (0, 0)


def _asked(plan: Plan, known: Known, texts: int) -> tuple[int, int]:
    """FLOPs of two questions about each of so many texts, and bytes of the weights of the model that is asked."""
    facts = known.models.get(str(plan.stage.params["labels"]).removeprefix("vlm:"))
    if facts is None or facts.language is None:
        return 0, 0
    flops = 2 * 2 * facts.language.params * LABEL_TOKENS * texts
    weights = NUMBER_BYTES[str(plan.stage.params["dtype"])] * (facts.params + facts.language.params)
    return flops, weights
