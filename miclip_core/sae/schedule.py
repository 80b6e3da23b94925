"""What changes from step to step by plan: the learning rate, the weight of JumpReLU's penalty, when thresholds are measured."""

from __future__ import annotations

from schemas.sae import SaeSettings

_THRESHOLD_START = 1000
_THRESHOLD_MEMORY = 1000


def rate(settings: SaeSettings, step: int) -> float:
    """The learning rate of update `step`, counted from 0: linear warm-up (the first is 0), constant, linear decay to 0.

    A run so short that warm-up and decay meet follows the lower of the two.
    """
    warm = step / settings.warmup_steps if step < settings.warmup_steps else 1.0
    decay_start = settings.decay_from * settings.steps
    cool = (settings.steps - step) / (settings.steps - decay_start) if step > decay_start else 1.0
    return settings.lr * max(0.0, min(warm, cool))


def penalty_share(settings: SaeSettings, step: int) -> float:
    """The share of JumpReLU's sparsity penalty that applies at a step: linear from 0 to 1."""
    return step / settings.sparsity_warmup_steps if step < settings.sparsity_warmup_steps else 1.0


def measures_threshold(settings: SaeSettings, step: int) -> bool:
    """Whether a step's smallest activation enters the threshold: after 1000 steps, or in the second half of a shorter run."""
    return step >= min(_THRESHOLD_START, settings.steps // 2)


def next_threshold(threshold: float, updates: int, smallest: float) -> float:
    """The threshold after one more measurement: the mean of the first 1000, from then on an exponential mean of that length.

    An exponential mean alone would stay with the first measurement of a short run.
    """
    return threshold + (smallest - threshold) / min(updates + 1, _THRESHOLD_MEMORY)
