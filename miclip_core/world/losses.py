"""The trainer's losses: patch classification from pixel truth, and image-caption losses with exact soft targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from miclip_core.world.scene import PLANTED, WORDS

_WEIGHTS = {"shape": 2.0}


class PatchHeads(nn.Module):
    """One linear classifier per category on dense features (B, P, D); thrown away after training."""

    def __init__(self, width: int, reads_words: bool) -> None:
        super().__init__()
        sizes = {category: len(values) for category, values in PLANTED.items()}
        if reads_words:
            sizes["word"] = len(WORDS)
        self.heads = nn.ModuleDict({category: nn.Linear(width, size) for category, size in sizes.items()})

    def forward(self, features: Tensor, classes: dict[str, np.ndarray]) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of mean cross-entropies over the patches that show something, and the accuracy of each head.

        `classes[category]` is (B, P) with -1 for patches that show none.
        """
        loss, accuracy = features.new_zeros(()), {}
        for category, head in self.heads.items():
            target = torch.from_numpy(classes[category])
            shown = target >= 0
            if shown.any():
                logits, wanted = head(features[shown]), target[shown]
                loss = loss + _WEIGHTS.get(category, 1.0) * nn.functional.cross_entropy(logits, wanted)
                accuracy[category] = float((logits.argmax(1) == wanted).float().mean())
        return loss, accuracy


def clip_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Symmetric cross-entropy of (B, B) image-by-caption logits against every true pair, equally weighted in its row.

    Captions that happen to be true of another image are therefore no false negatives.
    """
    rows = -(truth / truth.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = -(truth / truth.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def siglip_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of each of the (B, B) pairs, summed per image (Zhai et al., 2023, with exact targets)."""
    return nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(logits)
