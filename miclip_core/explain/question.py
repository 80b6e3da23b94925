"""A question as a vision-language model reads it: token ids with places for images, the same for any image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from schemas.errors import BadPrompt

if TYPE_CHECKING:
    from miclip_core.explain.vlm import Vlm

_HINT = "; the text must hold no token that stands for an image, and processor and template must be this model's"
# What processors call cutting an image into several; all are switched off.
_TILING = ("crop_to_patches", "do_pan_and_scan")


@dataclass(frozen=True, eq=False)
class Question:
    """One user turn, ready to be answered.

    ids: int64 [L]. extras: whatever else the model wants to know of every token, by the name of its argument, each [L].
    images: how many images it shows; their places are filled in order.
    """

    ids: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0


def make_question(vlm: Vlm, text: str, images: int) -> Question:
    """One user turn in the model's own chat template, images first, then the text, and the beginning of the answer.

    images: how many images are shown, each as one tile; 0 asks about the text alone.

    Raises:
        BadPrompt: the model has no chat template, or one that leaves the text away where there is nothing else to ask
            about; or the places for images are not `images` times `vlm.language.image_tokens`, as when the text holds one:
            features would land on the wrong tokens.
    """
    read = _read(vlm, text, images)
    if not images and torch.equal(read["input_ids"], _read(vlm, "", 0)["input_ids"]):
        raise BadPrompt(
            f"the chat template of {vlm.tower.facts.model} leaves the text away, so this model cannot be asked about texts "
            "without an image; take another one, or none"
        )
    ids_L = read["input_ids"][0]
    places, expected = int((ids_L == vlm.module.config.image_token_id).sum()), images * vlm.language.image_tokens
    if places != expected:
        raise BadPrompt(
            f"the question has {places} places for image tokens, expected {expected}: {images} images of "
            f"{vlm.language.image_tokens} each{_HINT}"
        )
    extras = {
        name: value[0]
        for name, value in read.items()
        if name not in ("input_ids", "attention_mask")
        and isinstance(value, Tensor)
        and value.shape == read["input_ids"].shape
    }
    return Question(ids_L, extras, images)


def _read(vlm: Vlm, text: str, images: int) -> Any:
    """What the processor makes of the turn; the image is a stand-in of the right size, whose pixels nobody looks at."""
    if not getattr(vlm.processor, "chat_template", None):
        raise BadPrompt(
            f"the processor of {vlm.tower.facts.model} has no chat template; add the chat_template.jinja of the checkpoint "
            "to its folder"
        )
    height, width = vlm.tower.facts.input_hw
    shown = [{"type": "image", "image": Image.new("RGB", (width, height), "white")} for _ in range(images)]
    one_tile = {name: False for name in _TILING if hasattr(vlm.processor.image_processor, name)}
    try:
        return vlm.processor.apply_chat_template(
            [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images_kwargs": one_tile} if images and one_tile else {},
        )
    except ValueError as error:
        reason = str(error).strip().rstrip(".")
        raise BadPrompt(f"the processor of {vlm.tower.facts.model} refuses the question: {reason}{_HINT}") from error
