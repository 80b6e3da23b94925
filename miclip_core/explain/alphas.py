"""How much of a direction to add: the strength whose texts find best where features are active."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from miclip_core.explain.summary import summarise
from schemas.errors import NoAlpha

LEAST_SHARE = 0.5
"""Of the features that are scored with the alpha that has most of them: one with fewer is not chosen."""


@dataclass(frozen=True)
class AlphaScore:
    """What texts made with one alpha are worth.

    mean_iou, sd_iou: over the n features whose text has a score; None without one. distinct: different texts over
    all texts, 0 without one: near 0 where steering drowns out everything. n_empty: features whose text is empty or refused.
    """

    alpha: float
    mean_iou: float | None
    sd_iou: float | None
    distinct: float
    n: int
    n_empty: int
    is_chosen: bool = False


def are_enough(counts: Sequence[int]) -> list[bool]:
    """Of several settings that score so many features each, which ones can be the best: those with at least half of the most.

    Any other could be best by what it fails at.
    """
    return [count >= LEAST_SHARE * max(counts) for count in counts]


def compare_alphas(trials: Mapping[float, Sequence[tuple[str | None, float | None]]]) -> list[AlphaScore]:
    """Every alpha of a grid, ascending, and which of them is chosen: the one with the best mean IoU.

    trials: for each alpha the (text, IoU) of every feature of the validation set; None for a text that is empty or refused,
    and for an IoU that could not be measured. Of equal means the alpha nearest to 0 is chosen, and the positive one of
    two. An alpha with less than half the scored features of another is not chosen, see `are_enough`.

    Raises:
        NoAlpha: no text of any alpha has a score.
    """
    scores = [_score(alpha, trials[alpha]) for alpha in sorted(trials)]
    if not any(score.n for score in scores):
        texts = sum(len(trial) for trial in trials.values())
        raise NoAlpha(
            f"none of {texts} texts with alphas {', '.join(f'{alpha:g}' for alpha in sorted(trials))} could be scored: all "
            "are empty or refused, or no validation feature is on an image; write alpha as a number, or change alpha_grid"
        )
    best = max(
        compress(scores, are_enough([score.n for score in scores])),
        key=lambda score: (score.mean_iou or 0.0, -abs(score.alpha), score.alpha),
    )
    return [replace(score, is_chosen=score is best) for score in scores]


def _score(alpha: float, trial: Sequence[tuple[str | None, float | None]]) -> AlphaScore:
    texts = [text for text, _ in trial if text is not None]
    of_iou = summarise([math.nan if text is None or iou is None else iou for text, iou in trial])
    distinct = len({text.casefold() for text in texts}) / len(texts) if texts else 0.0
    return AlphaScore(alpha, of_iou.mean, of_iou.sd, distinct, of_iou.n, len(trial) - len(texts))
