"""Encoders of texts by meaning: sentence-transformers where it is installed, or the text tower of a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from miclip_core.extras import SENTENCES
from miclip_core.torchvision_shim import ensure_torchvision
from schemas.errors import UnknownModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceEncoder(Protocol):
    """Anything that gives texts embeddings whose cosines say how alike they are."""

    @property
    def name(self) -> str:
        """What is written beside its scores, since scores of two encoders cannot be compared."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [M, E] of any length."""


@dataclass(frozen=True, eq=False)
class TowerEncoder:
    """The text tower of a CLIP: the CLIP score of CLIP-Dissect, and what is left where no sentence encoder is at hand.

    tower: texts -> [M, E], as `VisionModel.embed_text`. template: what a text is put into, at its `{}`.
    """

    name: str
    tower: Callable[[Sequence[str]], Tensor]
    template: str = "{}"

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [M, E]."""
        return self.tower([self.template.replace("{}", text) for text in texts]).float()


@dataclass(frozen=True, eq=False)
class TransformerEncoder:
    """A model of sentence-transformers, with the pooling and normalisation that its folder asks for."""

    name: str
    model: SentenceTransformer
    batch_size: int = 64

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [M, E]."""
        found = self.model.encode(
            list(texts), batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        assert isinstance(found, Tensor)
        return found.float()


def load_sentence_encoder(folder: Path, device: str = "cpu") -> TransformerEncoder:
    """The sentence-transformers model of a local folder, in fp32; nothing is fetched and none of its own code is run.

    Raises:
        UnknownModel: there is no such folder, or it is none of sentence-transformers.
        MissingPackage: sentence-transformers is not installed.
    """
    if not (folder / "modules.json").is_file():
        raise UnknownModel(
            f"{folder}: no folder of sentence-transformers, which holds a modules.json; fetch a model there first, as with "
            f"`hf download sentence-transformers/all-mpnet-base-v2 --local-dir {folder}`"
        )
    ensure_torchvision()  # transformers imports it on the way
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SENTENCES.missing(f"not to be imported ({error})") from error
    model = SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False)
    return TransformerEncoder(folder.name, model.float().eval())


def embed_each(encoder: SentenceEncoder, texts: Sequence[str | None]) -> Tensor:
    """Embeddings float32 [M, E] of every text, each distinct one encoded once; a row of zeros for None.

    Raises:
        ValueError: there is no text at all.
    """
    distinct = sorted({text for text in texts if text is not None})
    if not distinct:
        raise ValueError(f"found {len(texts)} texts, all None; expected at least one to embed")
    found = encoder.embed(distinct)
    place = {text: number for number, text in enumerate(distinct)} | {None: len(distinct)}
    return torch.cat([found, torch.zeros_like(found[:1])])[[place[text] for text in texts]]
