"""How correlations of all pairs of units are distributed where images do not belong together: counted, so that tiles add up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BINS = 1 << 13
"""Of equal width over -1 to 1: a quantile is known to a quarter of a thousandth."""

AT_ONCE = 1 << 20
"""Correlations that are counted at a time: float32 counts to 2^24 without a gap, and they are copied."""


class Counted:
    """How many correlations lie in each bin: int64 [BINS]."""

    def __init__(self, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts.astype(np.int64)

    def add(self, r_AB: Tensor) -> None:
        """Take the correlations of a tile in; minus infinity and NaN, of units that are not compared, count for nothing."""
        for rows in r_AB.split(max(1, AT_ONCE // max(1, r_AB.shape[1]))):
            inside = rows.clamp(-1, 1).masked_fill_(~torch.isfinite(rows), -2)  # beyond the bins
            self.counts += torch.histc(inside, BINS, -1, 1).long().cpu().numpy()

    def merge(self, counts: np.ndarray) -> None:
        """Join what other tiles had."""
        self.counts += counts

    def quantile(self, q: float) -> float:
        """The upper edge of the bin in which the q-quantile lies. Raises ValueError: nothing was counted."""
        total = int(self.counts.sum())
        if not total:
            raise ValueError("no correlation was counted; there is no quantile of nothing")
        place = int(np.searchsorted(self.counts.cumsum(), q * total))
        return 2 * (min(place, BINS - 1) + 1) / BINS - 1
