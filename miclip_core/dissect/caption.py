"""Texts about patches of images: by a multimodal model that is asked, or the captions that images came with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from miclip_core.dissect.library import load_folder, transformers
from schemas.errors import BadSpec, UnsupportedBlock


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of an image: which image of its set it is from, and its pixels (RGB)."""

    image: int
    pixels: Image.Image


class Captioner(Protocol):
    """What puts patches into words."""

    @property
    def name(self) -> str:
        """What to call it in tables."""
        ...

    def rendered(self, prompt: str) -> str:
        """Everything but the patch that decides its words: the prompt as the captioner reads it, and its settings."""
        ...

    def caption(self, patches: Sequence[Patch], prompt: str) -> list[str]:
        """One text per patch, without surrounding white space; empty where it has nothing to say."""
        ...


def prompt_hash(captioner: Captioner, prompt: str) -> str:
    """sha256 of how the captioner reads the prompt: equal ones asked equal questions."""
    return hashlib.sha256(captioner.rendered(prompt).encode()).hexdigest()


class GivenCaptions:
    """Captions that belong to the whole images, as an image set brings them; a patch has that of its image.

    captions: image -> text. name: what to call them. An image without a caption is given the empty text.
    """

    def __init__(self, captions: Mapping[int, str], name: str = "caption"):
        self._captions, self._name = captions, name

    @property
    def name(self) -> str:
        """What to call them in tables."""
        return self._name

    def rendered(self, prompt: str) -> str:
        """Nobody is asked, so nothing: the prompt is not read."""
        return ""

    def caption(self, patches: Sequence[Patch], prompt: str) -> list[str]:
        """The captions of the patches' images."""
        return [self._captions.get(patch.image, "").strip() for patch in patches]


class AskedCaptions:
    """A multimodal model of transformers that is shown one patch and asked; it answers greedily, so the same each time.

    folder: of `save_pretrained`, with its processor; any class that turns an image and a text into text (LLaVA and its
    kind). max_new_tokens: length of an answer. dtype: of weights and arithmetic. batch_size: patches asked about at once.

    Raises:
        BadSpec: no tokens or no patches at once. UnsupportedBlock: the model is none of this kind.
        Further what `load_folder` raises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_new_tokens: int = 32,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        batch_size: int = 8,
    ):
        if max_new_tokens < 1 or batch_size < 1:
            raise BadSpec(f"found max_new_tokens={max_new_tokens} and batch_size={batch_size}, expected 1 or more")
        self._model, self._processor = load_folder(folder, _answering, dtype, device)
        self._processor.tokenizer.padding_side = "left"  # an answer continues the last token of its row
        self._name, self.max_new_tokens, self.batch_size = folder.name, max_new_tokens, batch_size

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._name

    def rendered(self, prompt: str) -> str:
        """JSON of the prompt in the model's own form and the length of an answer."""
        return json.dumps({"max_new_tokens": self.max_new_tokens, "prompt": self._question(prompt)}, sort_keys=True)

    def caption(self, patches: Sequence[Patch], prompt: str) -> list[str]:
        """The model's answers."""
        batches = [patches[i : i + self.batch_size] for i in range(0, len(patches), self.batch_size)]
        return [text for batch in batches for text in self._answers(batch, self._question(prompt))]

    def _question(self, prompt: str) -> str:
        """As the checkpoint's chat template has it; without one, the picture and then the prompt."""
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            return self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        picture = getattr(self._processor, "image_token", None)
        return f"{picture}\n{prompt}" if picture else prompt

    @torch.no_grad()
    def _answers(self, patches: Sequence[Patch], question: str) -> list[str]:
        pictures, questions = [patch.pixels for patch in patches], [question] * len(patches)
        inputs = self._processor(images=pictures, text=questions, padding=True, return_tensors="pt")
        inputs = inputs.to(self._model.device, self._model.dtype)
        ids_BL = self._model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        answers = self._processor.batch_decode(_new(ids_BL, inputs.input_ids), skip_special_tokens=True)
        return [answer.strip() for answer in answers]


def _new(ids_BL: Tensor, asked_BL: Tensor) -> Tensor:
    """What follows the question; a model with an encoder does not repeat it."""
    length = asked_BL.shape[1]
    return ids_BL[:, length:] if torch.equal(ids_BL[:, :length], asked_BL) else ids_BL


def _answering(config: Any) -> Any:
    """The library's class for this configuration that turns images and text into text."""
    classes = transformers.AutoModelForImageTextToText._model_mapping
    if type(config) not in classes:
        raise UnsupportedBlock(
            f"model type {config.model_type!r} does not turn an image and a question into text; "
            "use a checkpoint that transformers lists under image-text-to-text"
        )
    return classes[type(config)]
