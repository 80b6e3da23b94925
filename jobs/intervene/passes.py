"""One site and SAE under every list of units: its passes over batches of images, and images or batches that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jobs.classes import Classifier
from miclip_core.intervene.sweep import Counts, Sweep
from schemas.errors import NonFiniteActivation, OutOfMemory


class _NotFinite(Exception):
    """Scores that are no numbers; `bad_B` says of which images of the pass."""

    def __init__(self, bad_B: Tensor) -> None:
        self.bad_B = bad_B


@dataclass
class FiniteScores:
    """Scores of a classifier, of which the highest is an answer only if all are numbers.

    quarantine: an image whose scores are none gets the answer C, one past the last class, which is right for no image;
    without it they are an error. `lost` says whether there was one.
    """

    classifier: Classifier
    quarantine: bool
    lost: bool = False

    @property
    def site(self) -> str:
        """`embedding` or `logits`."""
        return self.classifier.site

    def scores(self, tapped_B: Tensor) -> Tensor:
        """Scores [B, C], or [B, C + 1] where some are no numbers. Raises _NotFinite."""
        scores_BC = self.classifier.scores(tapped_B)
        bad_B1 = ~scores_BC.isfinite().all(1, keepdim=True)
        if not bad_B1.any():
            return scores_BC
        if not self.quarantine:
            raise _NotFinite(bad_B1.flatten().cpu())
        self.lost = True
        none_B1 = torch.full_like(scores_BC[:, :1], -torch.inf).masked_fill(bad_B1, torch.inf)
        return torch.cat([scores_BC.masked_fill(bad_B1, -torch.inf), none_B1], 1)


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Images of one batch as the model takes them [B, 3, h, w], their classes, int64 [B] (-1: counts for nothing), and ids."""

    images_BCIJ: Tensor
    labels_B: Tensor
    image_ids: Sequence[str]

    def cut(self, first: int, last: int) -> LabelledBatch:
        """Those at places [first, last)."""
        return LabelledBatch(self.images_BCIJ[first:last], self.labels_B[first:last], self.image_ids[first:last])


@dataclass
class Passes:
    """A sweep over batches of any size, and the scores by which it tells right answers."""

    what: str
    sweep: Sweep
    scorer: FiniteScores
    at_once: int | None = None
    _notes: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What people should know, such as a batch that was halved."""
        lost = f"{self.what}: some scores are NaN or infinite, which counts as a wrong answer"
        return [*self._notes, *([lost] if self.scorer.lost else [])]

    def add(self, batch: LabelledBatch) -> None:
        """Count a batch, at half of its size from here on where the device is too small.

        Raises:
            NonFiniteActivation: scores of an image are NaN or infinite, as the model is or with units changed.
            OutOfMemory: the device cannot hold one image.
            What `Sweep.add` raises.
        """
        for first in range(0, len(batch.image_ids), size := self.at_once or max(1, len(batch.image_ids))):
            self._add(batch.cut(first, first + size))

    def _add(self, batch: LabelledBatch) -> None:
        size = len(batch.image_ids)
        try:
            self.sweep.add(batch.images_BCIJ, batch.labels_B, batch.image_ids)
            return
        except _NotFinite as error:
            names = [batch.image_ids[place] for place in error.bad_B.nonzero().flatten().tolist()]
            raise NonFiniteActivation(
                f"{self.what}: scores of {len(set(names))} images are NaN or infinite, first {names[0]}; use dtype: fp32 or "
                "smaller changes, take the image out, or set on_nonfinite: quarantine, which counts such answers as wrong"
            ) from None
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise OutOfMemory(
                    f"{self.what}: one image does not fit on {batch.images_BCIJ.device}; use a larger device or dtype: bf16"
                ) from error
        # outside of `except`, where the error would hold the tensors of the pass that raised it
        self.at_once = size // 2
        self._notes.append(f"out of memory at batch size {size}, went on with {self.at_once}")
        torch.cuda.empty_cache()
        self.add(batch)


def counts_of(counts: Counts, method: str) -> Counts:
    """Those of one method."""
    m = counts.methods.index(method)
    sums = {name: tensor[m : m + 1] if tensor.ndim == 3 else tensor for name, tensor in counts.sums.items()}
    return Counts((method,), counts.changes, sums)
