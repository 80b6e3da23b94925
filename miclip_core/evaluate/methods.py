"""Methods side by side: what each is worth on the same things (units, concepts or classes), over seeds and in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from miclip_core.evaluate.significance import (
    LEAST_PAIRS,
    Comparison,
    bootstrap_interval,
    compare_correct,
    compare_scores,
    spread_over_seeds,
)

Scale = Literal["right_or_wrong", "score"]
OURS = "miclip"
"""The variants that begin so are compared with all others, not the other way round."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One method, of one seed, on N things: values float64 [N], in the order that all methods share; NaN where it has none."""

    variant: str
    seed: int | None
    values_N: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """The values that are there."""
        return self.values_N[~np.isnan(self.values_N)]

    @property
    def mean(self) -> float | None:
        """Their mean; None without any."""
        return float(self.known.mean()) if len(self.known) else None


@dataclass(frozen=True)
class Score:
    """A mean over n things and its 95 % bootstrap interval, which is None below LEAST_PAIRS of them."""

    n: int
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Versus:
    """One method against another on the things that both have a value for.

    seeds: of the first. sd_seed: standard deviation of its mean over them; None below two. comparison: see there.
    """

    variant: str
    against: str
    seeds: int
    sd_seed: float | None
    comparison: Comparison


def summarise(measured: Measured, seed: int = 0) -> Score:
    """The mean of what is known, and its interval. seed: of the bootstrap."""
    known = measured.known
    if len(known) < LEAST_PAIRS:
        return Score(len(known), measured.mean)
    return Score(len(known), measured.mean, *bootstrap_interval(known, seed))


def compare_all(methods: Sequence[Measured], scale: Scale, seed: int = 0) -> Iterator[Versus]:
    """Every variant against every other, each pair once: first MICLIP's own, then by name.

    Of a score the mean over a method's seeds is what counts on each thing; what is right or wrong has no mean, and the
    lowest seed counts. seed: of the bootstrap.

    Raises:
        ValueError: values of different numbers of things, or two methods of one variant and seed.
    """
    by_variant: dict[str, list[Measured]] = {}
    for one in sorted(methods, key=lambda one: (not one.variant.startswith(OURS), one.variant, _order(one.seed))):
        same = by_variant.setdefault(one.variant, [])
        if same and same[-1].seed == one.seed:
            raise ValueError(f"{one.variant} with seed {one.seed} is there twice")
        same.append(one)
    for (variant, ours), (against, theirs) in combinations(by_variant.items(), 2):
        means = [one.mean for one in ours if one.mean is not None]
        yield Versus(variant, against, len(ours), spread_over_seeds(means), _compare(ours, theirs, scale, seed))


def _order(seed: int | None) -> float:
    return -np.inf if seed is None else seed


def _compare(ours: Sequence[Measured], theirs: Sequence[Measured], scale: Scale, seed: int) -> Comparison:
    if scale == "score":
        return compare_scores(_over_seeds(ours), _over_seeds(theirs), seed)
    a_N, b_N = ours[0].values_N, theirs[0].values_N
    both_N = ~(np.isnan(a_N) | np.isnan(b_N))
    return compare_correct(a_N[both_N] > 0, b_N[both_N] > 0, seed)


def _over_seeds(methods: Sequence[Measured]) -> np.ndarray:
    """The mean of each thing over the seeds that have a value for it, float64 [N]."""
    values_SN = np.stack([one.values_N for one in methods])
    known_SN = ~np.isnan(values_SN)
    return np.where(known_SN.any(0), np.where(known_SN, values_SN, 0).sum(0) / np.maximum(known_SN.sum(0), 1), np.nan)
