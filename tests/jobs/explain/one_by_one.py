"""Explanations as one would write them down first: the library's whole model per feature, with a vector added on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn


class Said(NamedTuple):
    """What a model said, and the mean log-probability of its tokens."""

    raw: str
    mean_logprob: float


@contextmanager
def adding(layer: nn.Module, vector_D: Tensor, positions: Sequence[Sequence[int] | None]) -> Iterator[None]:
    """Add a vector to the output of a layer, for every image at its positions; None for all.

    The forward itself is replaced: hooks of the library that record hidden states may run before one of ours.
    """
    calls, forward = 0, layer.forward

    def added(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        out = forward(*args, **kwargs)
        tokens = (out[0] if isinstance(out, tuple) else out).clone()
        assert len(tokens) == len(positions)
        for image, places in zip(tokens, positions, strict=True):
            image[slice(None) if places is None else list(places)] += vector_D
        return (tokens, *out[1:]) if isinstance(out, tuple) else tokens

    layer.forward = added  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward
    assert calls == 1


def layers_of(module: nn.Module, count: int) -> nn.ModuleList:
    """The blocks of a vision tower."""
    (found,) = (
        part
        for name, part in module.named_modules()
        if "vision" in name and isinstance(part, nn.ModuleList) and len(part) == count
    )
    return found


def ids_of(processor: Any, text: str, images: int, side: int) -> Tensor:
    """The question as token ids [1, L]."""
    blank = [{"type": "image", "image": Image.new("RGB", (side, side))} for _ in range(images)]
    turn = [{"role": "user", "content": [*blank, {"type": "text", "text": text}]}]
    return processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )["input_ids"]


def say(module: Any, processor: Any, pixels_KCIJ: Tensor, ids_1L: Tensor, tokens: int) -> Said:
    """The whole model over normalised images and a question, by the library's own generation."""
    out = module.generate(
        input_ids=ids_1L,
        attention_mask=torch.ones_like(ids_1L),
        pixel_values=pixels_KCIJ,
        max_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, ids_1L.shape[1] :]
    logprobs = [logits[0].float().log_softmax(-1)[token] for logits, token in zip(out.logits, new, strict=True)]
    return Said(processor.tokenizer.decode(new, skip_special_tokens=True), float(torch.stack(logprobs).mean()))
