"""V-Interp: units described by captions of the patches that excite them most, compared with concepts as texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.dissect.caption import Captioner, Patch


def caption_patches(captioner: Captioner, patches: Iterable[Patch], prompt: str, batch_size: int = 64) -> list[str]:
    """One text per patch, in order. The patches may be cut while they are captioned: `batch_size` are held at a time."""
    texts: list[str] = []
    waiting = iter(patches)
    while batch := list(islice(waiting, batch_size)):
        texts += captioner.caption(batch, prompt)
    return texts


def embed_captions(texts: Sequence[str], embed: Callable[[list[str]], Tensor]) -> Tensor:
    """Unit vectors float32 [Q,E] of Q captions by a text tower, each different text embedded once; zero for empty ones.

    embed: texts -> [M,E] of any length, such as VisionModel.embed_text of the CLIP that also embeds the concepts.
    """
    clean = [text.strip() for text in texts]
    different = sorted({text for text in clean if text})
    vector_ME = normalize(embed(different or [""]).float(), dim=1)
    vector_ME = torch.cat((vector_ME, torch.zeros_like(vector_ME[:1])))
    number = {text: i for i, text in enumerate(different)}
    places = torch.tensor([number.get(text, len(vector_ME) - 1) for text in clean], dtype=torch.int64)
    return vector_ME[places.to(vector_ME.device)]


def unit_embeddings(place_UK: Tensor, caption_QE: Tensor) -> Tensor:
    """What the captions of a unit's patches have in common: the unit vector [U,E] along the mean of their unit vectors.

    place: int64, which caption each of a unit's patches has, -1 for none (PatchList.place). caption: unit vectors, zero
    for an empty caption, which then does not count. A unit without any caption is zero and has no cosine with anything.
    The relevance of a concept to a unit is the cosine of this vector with the concept's embedding by the same tower.
    """
    padded = torch.cat((caption_QE, caption_QE.new_zeros(1, caption_QE.shape[1])))
    total_UE = padded.new_zeros(len(place_UK), padded.shape[1])
    for place_U in place_UK.to(padded.device).T:  # at once they would take K times the memory
        total_UE += padded[torch.where(place_U < 0, len(padded) - 1, place_U)]
    return normalize(total_UE, dim=1)
