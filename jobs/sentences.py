"""Opens what gives texts their embeddings, if it is still what a stage was planned with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from jobs.files import open_planned
from jobs.models import notes_of_cut, open_model
from jobs.protocol import Inputs
from jobs.text_encoders import TextEncoder
from miclip_core.evaluate.sentences import SentenceEncoder, TowerEncoder, embed_each, load_sentence_encoder
from miclip_core.zoo.model import VisionModel

SIGNS = ("\U00012000", "\U00012345")
"""Words that are in no vocabulary: cuneiform."""
SAME = 1e-5
"""Numbers of two embeddings of unit length that differ by less are those of one input."""


class Sentences:
    """An encoder of texts that is open."""

    def __init__(self, encoder: SentenceEncoder, clip: VisionModel | None = None) -> None:
        self._encoder, self._clip = encoder, clip

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [M, E] of unit length, on the CPU; each distinct text is encoded once."""
        return normalize(embed_each(self._encoder, texts).float().cpu(), dim=-1)

    def unknown(self, words: Sequence[str]) -> list[str]:
        """Those of some words that are all the same to it, since its vocabulary has none of them; [] if it spells words out."""
        one_E, other_E = self.embed(SIGNS)
        if not words or not torch.allclose(one_E, other_E, rtol=0, atol=SAME):
            return []
        same_M = ((self.embed(words) - one_E).abs() < SAME).all(1)
        return [word for word, same in zip(words, same_M.tolist(), strict=True) if same]

    def notes(self, texts: Sequence[str]) -> list[str]:
        """What people should know of texts of which it does not see the end."""
        return [] if self._clip is None else notes_of_cut(self._clip, sorted(set(texts)))


def open_sentences(encoder: TextEncoder, inputs: Inputs, device: str) -> Sentences:
    """The text tower of a CLIP, or a model of sentence-transformers.

    Raises:
        WeightsMissing: its files are others now. UnknownModel, MissingPackage: as `load_sentence_encoder`.
    """
    if encoder.is_folder:
        return Sentences(load_sentence_encoder(open_planned(inputs, encoder.name, encoder.files), device))
    clip = open_model(encoder.forward, inputs, device, [])
    return Sentences(TowerEncoder("clip", clip.embed_text), clip)
