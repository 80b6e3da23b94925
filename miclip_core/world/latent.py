"""What the numbers of the demo generator's latent stand for: softmaxed choices, and one object's size and place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miclip_core.world.factors import Factors
from miclip_core.world.scene import IMAGE_SIZE, PLANTED, POSITIONS, ROTATIONS, SIZES

CHOICES = {category: len(values) for category, values in PLANTED.items() if category != "size"}
PLACE = ("size", "x", "y", "turn")
LENGTH = sum(CHOICES.values()) + len(PLACE)
_GENTLE = 2.0
_SHOWN = 0.8  # weight from which an image shows a value
_APART = 8.0  # pixels from the image's middle, from which an object is in a quadrant
_SMALL, _LARGE = 8.0, 13.0  # pixels, the middle radius of either size
_STOPS = 10  # centres that a small object can have along an axis: five in each half


@dataclass(frozen=True)
class Choosing:
    """How scores become weights: a softmax of `sharpness` times the scores, and a `share` of a gentle one.

    Sharp, most latents of a normal distribution show one value. The share keeps a gradient towards values that are not
    shown: without it, an optimiser that starts at a red circle hardly ever finds a blue star.
    """

    sharpness: float = 14.0
    share: float = 0.1

    def weights(self, scores_BV: Tensor) -> Tensor:
        """[B, V], each row with sum 1."""
        sharp, gentle = ((factor * scores_BV).softmax(1) for factor in (self.sharpness, _GENTLE))
        return (1 - self.share) * sharp + self.share * gentle


CHOOSING = Choosing()


class Meaning(NamedTuple):
    """Weights of the values of each category and the object's place, differentiable in the latents that they are of."""

    shape: Tensor  # [B, 8]
    colour: Tensor  # [B, 8]
    texture: Tensor  # [B, 4]
    background: Tensor  # [B, 6]
    x: Tensor  # [B] centre in pixels
    y: Tensor
    radius: Tensor  # [B] pixels
    turn: Tensor  # [B] degrees

    def factors(self) -> Factors:
        """The same as arrays, for the true renderer."""
        return Factors(*(part.detach().double().cpu().numpy() for part in self))


def meaning_of(latents_BZ: Tensor, choosing: Choosing = CHOOSING) -> Meaning:
    """What latents [B, 30], standard normal, ask the generator to draw.

    26 numbers are scores of the values of shape, colour, texture and background. The others are monotone in what they
    mean: small to large, left to right, top to bottom, and turned to the left or right. Centres linger where the world's
    scenes have theirs, because models that were trained on those know no others.
    """
    *scores, place = latents_BZ.split([*CHOICES.values(), len(PLACE)], 1)
    size, x, y, turn = place.unbind(1)
    large = (1 + torch.tanh(10 * size)) / 2
    return Meaning(
        **{name: choosing.weights(score) for name, score in zip(CHOICES, scores, strict=True)},
        x=_centre(x, large),
        y=_centre(y, large),
        radius=_SMALL + (_LARGE - _SMALL) * large,
        turn=ROTATIONS[-1] * (2 * torch.special.ndtr(turn) - 1),
    )


def _centre(position: Tensor, large: Tensor) -> Tensor:
    """Pixels: for a small object 8, 12, 16, 20, 24 and 40 to 56, for a large one 16 and 48, and the way between."""
    t = _STOPS * torch.special.ndtr(position) - 0.5
    stop = _linger(_linger(t)).clamp(0, _STOPS - 1)
    across = (stop - (_STOPS // 2 - 1)).clamp(0, 1)
    return (1 - large) * (8 + 4 * stop + 12 * across) + large * (16 + 32 * across)


def _linger(t: Tensor) -> Tensor:
    """A monotone staircase without corners: flat at whole numbers, steep between them."""
    return t - torch.sin(2 * math.pi * t) / (2 * math.pi)


def truth_rows(asked: Meaning) -> list[dict[str, Any]]:
    """What each image shows, in the columns of the world's own truth; None where it lies between two values.

    label is "red circle". A value is shown if it has at least 0.8 of the weight, a size within 1 px of its middle radius,
    a position at least 8 px from the image's middle on both axes.
    """
    factors = asked.factors()
    rows = []
    for b in range(len(factors)):
        row: dict[str, Any] = {"objects": 1}
        for category in CHOICES:
            weights = getattr(factors, category)[b]
            shown = weights.max() >= _SHOWN
            row[category] = PLANTED[category][int(weights.argmax())] if shown else None
        x, y, radius = (float(part[b]) for part in (factors.x, factors.y, factors.radius))
        row["size"] = next((name for name, middle in zip(SIZES, (_SMALL, _LARGE)) if abs(radius - middle) <= 1), None)
        middle = IMAGE_SIZE / 2
        apart = min(abs(x - middle), abs(y - middle)) >= _APART
        row["position"] = POSITIONS[2 * (y > middle) + (x > middle)] if apart else None
        row["label"] = f"{row['colour']} {row['shape']}" if row["colour"] and row["shape"] else None
        rows.append(row)
    return rows
