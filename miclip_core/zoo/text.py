"""Text towers and zero-shot classifiers built from class names and prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.zoo.templates import OPENAI_TEMPLATES

if TYPE_CHECKING:
    from miclip_core.zoo.model import VisionModel

Tokeniser = Callable[[list[str]], Tensor]
TOKENISER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
"""What the tokenisers of transformers and open_clip read from a checkpoint folder."""


@dataclass(eq=False)
class TextTower:
    """The text side of a dual encoder.

    make_tokeniser: () -> (texts -> token ids [M, L]); called on first use, because it may have to fetch a vocabulary.
    encode: token ids -> embeddings [M, E], not normalised. device: where token ids go.
    """

    make_tokeniser: Callable[[], Tokeniser]
    encode: Callable[[Tensor], Tensor]
    device: torch.device
    batch_size: int = 256

    @cached_property
    def tokenise(self) -> Tokeniser:
        """Texts -> token ids [M, L]."""
        return self.make_tokeniser()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [M, E], not normalised; surrounding white space does not matter.

        Gradients flow to the parameters only if they ask for them.
        """
        clean = [text.strip() for text in texts]
        parts = []
        with torch.no_grad():
            for first in range(0, len(clean), self.batch_size):
                ids_ML = self.tokenise(clean[first : first + self.batch_size]).to(self.device)
                parts.append(self.encode(ids_ML))
        return torch.cat(parts)

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of which the tower does not see the end, because they are longer than its context."""
        clean = [text.strip() for text in texts]
        length = self.tokenise([""]).shape[1]
        long = [text for text in clean if len(text.encode()) > length - 2]  # no token is shorter than a byte
        if not long:
            return []
        ids_ML = self.tokenise(long)
        # neither does the last letter matter, nor a word more
        same_M = (ids_ML == self.tokenise([text[:-1] for text in long])).all(1)
        same_M &= (ids_ML == self.tokenise([f"{text} a" for text in long])).all(1)
        return [text for text, same in zip(long, same_M.tolist(), strict=True) if same]


def fill_templates(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, name by name."""
    return [template.replace("{}", name) for name in class_names for template in templates]


def zero_shot_classifier(
    model: VisionModel,
    class_names: Sequence[str],
    templates: Sequence[str] = OPENAI_TEMPLATES,
    class_batch: int = 8,
) -> Tensor:
    """Classifier columns [E, C] in fp32, each of unit length; predict argmax of embedding @ columns.

    A column is normalise(mean over templates of normalise(text embedding)), as Radford et al. 2021 ensemble prompts in
    embedding space. `{}` in a template is replaced by the class name.

    Raises:
        UnsupportedBlock: the model has no text tower.
        ValueError: a template without a place for the name.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the class name")
    columns = []
    for first in range(0, len(class_names), class_batch):
        names = class_names[first : first + class_batch]
        texts = fill_templates(names, templates)
        embedding_MSE = normalize(model.embed_text(texts).float(), dim=-1).unflatten(0, (len(names), len(templates)))
        columns.append(normalize(embedding_MSE.mean(1), dim=-1))
    return torch.cat(columns).T.contiguous()
