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


@dataclass(frozen=True, eq=False)
class FiniteScores:
    """Scores of a classifier that are numbers: the highest of anything else would be an answer all the same."""

    classifier: Classifier

    @property
    def site(self) -> str:
        """`embedding` or `logits`."""
        return self.classifier.site

    def scores(self, tapped_B: Tensor) -> Tensor:
        """Scores [B, C]. Raises _NotFinite."""
        scores_BC = self.classifier.scores(tapped_B)
        bad_B = ~scores_BC.isfinite().all(1)
        if bad_B.any():
            raise _NotFinite(bad_B.cpu())
        return scores_BC


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of one batch as the model takes them [B, 3, h, w], their classes, int64 [B] (-1: counts for nothing), and ids."""

    images_BCIJ: Tensor
    labels_B: Tensor
    image_ids: Sequence[str]

    def cut(self, first: int, last: int) -> Labelled:
        """Those at places [first, last)."""
        return Labelled(self.images_BCIJ[first:last], self.labels_B[first:last], self.image_ids[first:last])

    def pick(self, chosen_B: Tensor) -> Labelled:
        """Those where the mask is true."""
        ids = [name for name, chosen in zip(self.image_ids, chosen_B.tolist(), strict=True) if chosen]
        return Labelled(self.images_BCIJ[chosen_B.to(self.images_BCIJ.device)], self.labels_B[chosen_B], ids)


@dataclass
class Passes:
    """A sweep over batches of any size. quarantine: images whose scores are no numbers are left out, else they are an error.

    `notes` says what people should know.
    """

    what: str
    sweep: Sweep
    quarantine: bool
    notes: list[str] = field(default_factory=list)
    at_once: int | None = None

    def add(self, batch: Labelled) -> None:
        """Count a batch, at half of its size from here on where the device is too small.

        Raises:
            NonFiniteActivation: scores of an image are NaN or infinite, as the model is or with units changed.
            OutOfMemory: the device cannot hold one image.
            What `Sweep.add` raises.
        """
        for first in range(0, len(batch.image_ids), size := self.at_once or max(1, len(batch.image_ids))):
            self._add(batch.cut(first, first + size))

    def _add(self, batch: Labelled) -> None:
        # what is tried again is tried outside of `except`: an error holds the tensors of the pass that raised it
        try:
            self.sweep.add(batch.images_BCIJ, batch.labels_B, batch.image_ids)
            return
        except _NotFinite as error:
            bad_B = error.bad_B
        except torch.OutOfMemoryError as error:
            if len(batch.image_ids) == 1:
                raise OutOfMemory(
                    f"{self.what}: one image does not fit on {batch.images_BCIJ.device}; use a larger device or dtype: bf16"
                ) from error
            bad_B = None
        if bad_B is None:
            self._halve(len(batch.image_ids))
            self.add(batch)
        else:
            self._leave_out([name for name, bad in zip(batch.image_ids, bad_B.tolist(), strict=True) if bad])
            self.add(batch.pick(~bad_B))

    def _halve(self, size: int) -> None:
        self.at_once = size // 2
        self.notes.append(f"out of memory at batch size {size}, went on with {self.at_once}")
        torch.cuda.empty_cache()

    def _leave_out(self, image_ids: Sequence[str]) -> None:
        names = list(dict.fromkeys(image_ids))  # the last may be there again, to fill the batch
        said = f"{self.what}: scores of {len(names)} images are NaN or infinite, first {names[0]}"
        if not self.quarantine:
            raise NonFiniteActivation(
                f"{said}; use dtype: fp32 or smaller changes, take the image out, or set on_nonfinite: quarantine"
            )
        self.notes.append(f"{said}; left out")


def counts_of(counts: Counts, method: str) -> Counts:
    """Those of one method."""
    m = counts.methods.index(method)
    sums = {name: tensor[m : m + 1] if tensor.ndim == 3 else tensor for name, tensor in counts.sums.items()}
    return Counts((method,), counts.changes, sums)
