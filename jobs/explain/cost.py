"""What it costs to explain features: tokens of the language model, the part of the tower behind a block, memory; loads no torch."""

from __future__ import annotations

from typing import Any

from jobs.explain.asked import Asked
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Estimate, Known
from schemas.models import LanguageFacts, ModelFacts
from schemas.plans import Plan

CHARACTERS = 4
"""Of a prompt, that make a token."""
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
TOKEN_COPIES = 3
"""Tokens of all images of a batch are there so often: before and after steering, and as the language model reads them."""
BLOCK_COPIES = 12
"""Numbers that one block of a tower holds for each number of a token: attention, and an MLP of four times the width."""
ROW_BYTES = 1000


def estimate(plan: Plan, known: Known) -> Estimate:
    """Texts, passes of the tower from the edited block on, and what the stages of one worker do once for all of them.

    The library's attention is not counted (2 FLOPs per parameter and token), nor is segmenting, where alphas are compared.
    Of several maskings, which each render all images, one is.
    """
    asked = Asked(plan)
    params: Any = asked.params
    vlm = known.models.get(params["vlm"])
    if vlm is None or vlm.language is None:
        return Estimate()
    images, features = params["k"] if asked.sees_images else 1, plan.rounds[0].rows
    tries, sequences = len(params.get("alphas", [0])), params.get("sequences", 1)
    tokens = _tokens(asked, vlm.language, images)
    written = 2 * vlm.language.params * tokens
    before, behind = _shares(asked, vlm)
    shown = features * images if asked.sees_images else 1
    return Estimate(
        images=features * images if asked.sees_images else 0,
        flops=round(features * tries * (sequences * written + images * behind * vlm.flops)),
        shared_flops=round(shown * before * vlm.flops),
        bytes=features * sequences * ROW_BYTES,
        memory=plan.rounds[0].shard_rows * sequences * ROW_BYTES,
        worker_memory=LIBRARY_BYTES + _held(asked, vlm, vlm.language, images, tokens) + _segmenter(plan, known),
        note=_note(asked, features * tries * sequences),
    )


def _tokens(asked: Asked, language: LanguageFacts, images: int) -> int:
    """Of one question with its answer at its longest."""
    generation: Any = asked.params["generation"]
    return images * language.image_tokens + len(asked.prompt) // CHARACTERS + int(generation["max_new_tokens"])


def _shares(asked: Asked, vlm: ModelFacts) -> tuple[float, float]:
    """About which share of the tower is run once for all stages of a worker, and which by every stage."""
    assert vlm.language is not None
    reads = vlm.language.reads_block
    block = reads if asked.block is None else min(asked.block, reads)
    return (block + 1) / vlm.n_blocks, (reads - block) / vlm.n_blocks


def _held(asked: Asked, vlm: ModelFacts, language: LanguageFacts, images: int, tokens: int) -> int:
    """Bytes of weights while they are loaded, tokens of a batch, one block over a part of it, and keys and values."""
    each = NUMBER_BYTES[str(asked.params["dtype"])]
    positions = vlm.site(f"resid_post.{vlm.n_blocks - 1}").positions
    batch = asked.batch * positions * vlm.width
    numbers = TOKEN_COPIES * images * batch + BLOCK_COPIES * batch
    numbers += asked.batch * tokens * language.width * (2 * language.layers + BLOCK_COPIES)
    return each * (2 * (vlm.params + language.params) + numbers)


def _segmenter(plan: Plan, known: Known) -> int:
    """Bytes of the weights of the segmenter by which alphas are compared, if that lies in a folder."""
    return known.weights.get(str(plan.effort.get("segmenter", "")).removeprefix("file:"), 0)


def _note(asked: Asked, texts: int) -> str:
    if asked.sees_images:
        return (
            f"{texts} texts per stage; images are rendered, and run up to the edited block, once for all methods, directions and "
            "alphas"
        )
    return f"{texts} texts per stage; the blank image is run up to the edited block once"
