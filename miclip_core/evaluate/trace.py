"""At which layer a model turns away from what an image shows: similarity to the truth against the wrong label, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from miclip_core.evaluate.cosines import row_cosines

NONE = -1
"""Stands for no layer and no label."""


def pair_wrong_labels(truth_B: np.ndarray, predicted_B: np.ndarray) -> np.ndarray:
    """The label h that each image is traced against, int64 [B]: what it was mistaken for, or its wrong twin was.

    The twins of the right images of a class are its wrong ones, in turn: the first right image gets the label of the first
    wrong one, and so on, again from the first when they are used up. NONE where no image of the class was mistaken. Takes
    all images of a set at once, in their order in it, so that no shard matters.
    """
    truth, wrong_B = np.asarray(truth_B, np.int64), np.asarray(predicted_B, np.int64).copy()
    is_error = wrong_B != truth
    for label in np.unique(truth):
        right = np.flatnonzero((truth == label) & ~is_error)
        mistaken = np.flatnonzero((truth == label) & is_error)
        wrong_B[right] = wrong_B[mistaken[np.arange(len(right)) % len(mistaken)]] if len(mistaken) else NONE
    return wrong_B


def label_similarity(neurons_BE: Tensor, concepts_ME: Tensor, labels_B: Tensor) -> Tensor:
    """s_l(y) of MICLIP: cosine of each image's embedding E_n(a) at one layer with the text of its label, float32 [B].

    NaN where a label is NONE or a vector has no direction.

    Raises:
        ValueError: a label is no number of a concept.
    """
    outside = labels_B[(labels_B < NONE) | (labels_B >= len(concepts_ME))]
    if len(outside):
        raise ValueError(
            f"{len(outside)} labels are outside 0 to {len(concepts_ME) - 1}, the first are {outside[:5].tolist()}; are "
            "they classes of the same list as the texts?"
        )
    labels_B = labels_B.to(concepts_ME.device)
    cosines_B = row_cosines(neurons_BE, concepts_ME[labels_B.clamp(min=0)].to(neurons_BE.device))
    return torch.where((labels_B >= 0).to(cosines_B.device), cosines_B, torch.nan)


@dataclass(frozen=True, eq=False)
class Traces:
    """The marks of some images, one value per image [B].

    peak int64: mark 1, the layer of the largest lead delta_l = s_l(truth) - s_l(wrong), the first of equal ones; NONE where a
    lead is not known. max_lead float32: that lead. cross int64: mark 2, the failure point, the first layer behind the peak
    where the lead falls below zero; NONE if it never does, or was never zero or more. persistent bool: from there on the
    lead stays below zero to the last layer; False without a failure point.
    """

    peak: np.ndarray
    max_lead: np.ndarray
    cross: np.ndarray
    persistent: np.ndarray


def trace(truth_BL: np.ndarray, wrong_BL: np.ndarray, layers: Sequence[int]) -> Traces:
    """Marks 1 and 2 of images from their similarity to the truth and to the wrong label at each layer [B, layers].

    Section 4.6 of MICLIP. layers: their numbers, ascending; the marks are given in these.

    Raises:
        ValueError: not one value per layer, or layers that do not ascend.
    """
    number = np.asarray(layers, np.int64)
    if truth_BL.shape != wrong_BL.shape or truth_BL.shape[1:] != number.shape or not len(number):
        raise ValueError(f"found similarities {truth_BL.shape} and {wrong_BL.shape} for {len(number)} layers")
    if number[0] < 0 or bool(np.any(number[1:] <= number[:-1])):
        raise ValueError(f"layers are {number.tolist()}; expected each once, ascending from 0 or above")
    lead_BL = truth_BL.astype(np.float32) - wrong_BL.astype(np.float32)
    known = ~np.isnan(lead_BL.sum(1))
    lead_BL = np.where(known[:, None], lead_BL, -np.inf)
    place = lead_BL.argmax(1)
    largest_B1 = lead_BL.max(1, keepdims=True)
    # From a peak of zero or more the first layer below zero follows one that is not, which is a crossover.
    behind = np.arange(len(number)) > place[:, None]
    below = behind & (lead_BL < 0) & (largest_B1 >= 0)
    first = below.argmax(1)
    crossed = below.any(1)
    return Traces(
        peak=np.where(known, number[place], NONE),
        max_lead=np.where(known, largest_B1[:, 0], np.nan).astype(np.float32),
        cross=np.where(crossed, number[first], NONE),
        persistent=crossed & (below.sum(1) == len(number) - first),
    )


@dataclass(frozen=True)
class TraceCounts:
    """Whole numbers of one group of images, the wrong or the right ones; those of disjoint groups add up.

    images: all. unknown: of them without a known lead. never_led: whose lead was below zero at every layer, so that there is
    nothing to lose. crossed: with a failure point. persistent: and no way back. peaks, crossings: images with mark 1, with
    mark 2 at each of the layers.
    """

    layers: tuple[int, ...]
    images: int
    unknown: int
    never_led: int
    crossed: int
    persistent: int
    peaks: tuple[int, ...]
    crossings: tuple[int, ...]

    def __add__(self, other: TraceCounts) -> TraceCounts:
        if self.layers != other.layers:
            raise ValueError(
                f"layers {list(self.layers)} and {list(other.layers)} differ; add up traces of the same ones"
            )
        return TraceCounts(
            self.layers,
            self.images + other.images,
            self.unknown + other.unknown,
            self.never_led + other.never_led,
            self.crossed + other.crossed,
            self.persistent + other.persistent,
            tuple(a + b for a, b in zip(self.peaks, other.peaks)),
            tuple(a + b for a, b in zip(self.crossings, other.crossings)),
        )

    @property
    def crossed_share(self) -> float | None:
        """Share with a failure point of the images whose leads are known; None without any. Of right images: false alarms."""
        known = self.images - self.unknown
        return self.crossed / known if known else None


def count_traces(traces: Traces, which_B: np.ndarray, layers: Sequence[int]) -> TraceCounts:
    """Counts of the images `which` (bool [B]): where predicted and truth differ for the errors, else for the right ones."""
    peak, cross = traces.peak[which_B], traces.cross[which_B]
    return TraceCounts(
        layers=tuple(layers),
        images=len(peak),
        unknown=int((peak == NONE).sum()),
        never_led=int((traces.max_lead[which_B] < 0).sum()),
        crossed=int((cross != NONE).sum()),
        persistent=int(traces.persistent[which_B].sum()),
        peaks=tuple(int((peak == layer).sum()) for layer in layers),
        crossings=tuple(int((cross == layer).sum()) for layer in layers),
    )
