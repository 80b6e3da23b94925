"""Scores units against the planted truth: which unit finds which value of the demo world, chosen and judged on different images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.evaluate.auroc import aurocs, weighted_auroc
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import PLANTED, Scenes
from miclip_core.world.truth import patch_classes

VALUES: tuple[tuple[str, str], ...] = tuple((name, value) for name, values in PLANTED.items() for value in values)
"""(category, value) of the 28 planted values."""
CHOSEN_ON = 1 / 3
"""Share of the images on which the best unit of a value is chosen; it is judged on the others."""


@dataclass(frozen=True)
class Judged:
    """One unit per planted value, in the order of VALUES: which one, its sign, and its AUROC on images it was not chosen on.

    scores: per value the signed scores of its unit on the judged patches; positive: which of them show the value;
    image: the image of each, so that images can be drawn again.
    """

    unit: np.ndarray  # (V,)
    sign: np.ndarray  # (V,)
    auroc: np.ndarray  # (V,)
    scores: tuple[np.ndarray, ...]
    positive: tuple[np.ndarray, ...]
    image: tuple[np.ndarray, ...]

    def share(self, above: float) -> float:
        """Share of the planted values that some unit finds with more than this AUROC."""
        return float((self.auroc > above).mean())


def patch_truth(scenes: Scenes, patch: int) -> dict[str, np.ndarray]:
    """Category -> class of every patch (B, P), -1 where the patch shows none."""
    return patch_classes(scenes, render_scenes(scenes)[1], patch)


def judge(scores_BPU: np.ndarray, truth: Mapping[str, np.ndarray], *, signed: bool) -> Judged:
    """The best unit of every planted value among patches that show some value of its category.

    scores: (B, P, U), a number per unit and patch. signed: whether a unit may also find a value by being low, as
    directions can and codes cannot.

    Raises:
        ValueError: a value is shown by no patch of one of the two parts; more images are needed.
    """
    first = max(1, round(CHOSEN_ON * len(scores_BPU)))
    found: list[tuple[int, int, float, np.ndarray, np.ndarray, np.ndarray]] = []
    for category, values in PLANTED.items():
        chosen_on = _part(scores_BPU[:first], truth[category][:first])
        judged_on = _part(scores_BPU[first:], truth[category][first:])
        auroc_CU = aurocs(chosen_on[0], _one_hot(chosen_on[1], values))
        strength_CU = np.maximum(auroc_CU, 1 - auroc_CU) if signed else auroc_CU
        for number, unit in enumerate(strength_CU.argmax(1)):
            sign = 1 if auroc_CU[number, unit] >= 0.5 or not signed else -1
            column, positive = sign * judged_on[0][:, unit], judged_on[1] == number
            auroc = aurocs(column[:, None], positive[:, None])[0, 0]
            found.append((int(unit), sign, float(auroc), column, positive, judged_on[2]))
    unit, sign, auroc, columns, positives, images = zip(*found, strict=True)
    return Judged(np.array(unit), np.array(sign), np.array(auroc), columns, positives, images)


def share_interval(
    runs: Sequence[Judged], above: float, draws: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of `share`: each draw takes one of the runs (seeds of a method) and images with replacement."""
    shares = list(_draw_shares(runs, above, draws, np.random.default_rng(seed)))
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draw_shares(runs: Sequence[Judged], above: float, draws: int, rng: np.random.Generator) -> Iterator[float]:
    for _ in range(draws):
        run = runs[int(rng.integers(len(runs)))]
        images = np.unique(np.concatenate(run.image))
        weight = np.bincount(rng.choice(images, len(images)), minlength=images.max() + 1)
        aurocs = [
            weighted_auroc(score, positive, weight[image])
            for score, positive, image in zip(run.scores, run.positive, run.image, strict=True)
        ]
        yield float((np.array(aurocs) > above).mean())


def _part(scores_BPU: np.ndarray, class_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patches that show some value of a category: their scores, classes and images."""
    image, patch = np.nonzero(class_BP >= 0)
    return scores_BPU[image, patch], class_BP[image, patch], image


def _one_hot(class_N: np.ndarray, values: Sequence[str]) -> np.ndarray:
    return class_N[:, None] == np.arange(len(values))
