"""Similarity of units and concepts by pointwise mutual information over a unit's most exciting images, hard and soft.

Oikarinen and Weng (2023), "CLIP-Dissect": `wpmi` and `soft_wpmi`, which is its default. With p_ic the softmax over all
concepts of a P_ic, and i_0, i_1, ... the images of unit u by falling activation,

    l_uc = sum_r log(1 + q_r (p_{i_r c} - 1) + 1e-7)        score_uc = l_uc - weight (logsumexp_u l_uc - log units)

where q is 1 for `wpmi` and falls from image to image for `soft_wpmi`. The marginal goes over the units that are described
and the softmax over the concepts: with other units or concepts all scores are others. Units that are equally active on
all images have no most exciting ones; they get NaN and do not count as units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from miclip_core.dissect.embeddings import unit_concepts, unit_images
from miclip_core.dissect.top_images import TopImages

FLOOR = 1e-7
"""What keeps the logarithm of a vanishing probability finite."""
BLOCK_PROBABILITIES = 1 << 25
"""Probabilities of images x concepts that exist at once: 128 MB."""
TILE = {"cpu": (512, 256)}
"""Units and concepts whose products exist at once; on CPU two such tiles of floats stay in its cache."""
TILE_ACCELERATOR = (4096, 8192)
_REACH = {torch.float32: 80.0, torch.float64: 700.0}  # logarithms that products may have


@dataclass(frozen=True)
class Pmi:
    """top_k: images of a unit; sharpness: a, what multiplies cosines before the softmax; weight: lambda of the marginal;
    q_first, q_last: q_r = q_first - (r / top_k) (q_first - q_last) for r from 0 to top_k - 1, so q_last is never reached."""

    top_k: int
    sharpness: float
    weight: float
    q_first: float = 1.0
    q_last: float = 1.0


WPMI = Pmi(top_k=28, sharpness=2.0, weight=0.6)
SOFT_WPMI = Pmi(top_k=100, sharpness=10.0, weight=1.0, q_first=0.998, q_last=0.97)


def log_likelihoods(pmi: Pmi, top: TopImages, x_RE: Tensor, concepts_ME: Tensor) -> Tensor:
    """l of every unit in `top` and every concept, float64 [U,M]; NaN for units that are equally active on all images.

    top: of these units, with k at least pmi.top_k. x [R,E]: CLIP embeddings of the images `top.first(pmi.top_k).used()`,
    in that order. concepts [M,E]: CLIP embeddings of all concepts.

    A term is d_r (1 + p q_r / d_r) with d_r = 1 - q_r + 1e-7: terms are multiplied and one logarithm taken of many.

    Raises:
        TooFewImages: fewer than top_k were seen. BadAlignment: embeddings without a direction.
    """
    best = top.first(pmi.top_k)
    places_KU = best.places().T.contiguous()
    q = [pmi.q_first - r / pmi.top_k * (pmi.q_first - pmi.q_last) for r in range(pmi.top_k)]
    d = [1 - q_r + FLOOR for q_r in q]
    slopes = [q_r / d_r for q_r, d_r in zip(q, d)]
    x_RE = unit_images(x_RE, len(best.used()), torch.float32)
    c_ME = unit_concepts(concepts_ME, x_RE.shape[1], torch.float32)
    blocks = c_ME.split(max(1, BLOCK_PROBABILITIES // len(x_RE)))
    parts = [_log_products(p_RM, places_KU, slopes) for p_RM in _probabilities(pmi.sharpness * x_RE, blocks)]
    likelihood_UM = torch.cat(parts, 1) + math.fsum(map(math.log, d))
    return likelihood_UM.masked_fill_(best.spread.constant[:, None], torch.nan)


@dataclass(eq=False)
class Marginal:
    """The mean of exp(l_uc) over units u, as its logarithm: merged from units in any order, exact to rounding.

    Kept per concept: the largest l [M] and the sum of exp(l - largest) [M], float64; units: how many, without those of NaN.
    """

    largest_M: Tensor | None = None
    sum_M: Tensor | None = None
    units: int = 0

    def add(self, likelihood_UM: Tensor) -> None:
        """More units, by their log likelihoods [U,M]; every unit once."""
        alive_UM = likelihood_UM[~likelihood_UM.isnan().any(1)]
        if len(alive_UM):
            largest_M = alive_UM.amax(0)
            self._join(largest_M, (alive_UM - largest_M).exp_().sum(0), len(alive_UM))

    def merge(self, other: Marginal) -> None:
        """Join other units."""
        if other.largest_M is not None and other.sum_M is not None:
            self._join(other.largest_M, other.sum_M, other.units)

    def log_mean(self) -> Tensor:
        """logsumexp_u l_uc - log units, float64 [M]."""
        assert self.largest_M is not None and self.sum_M is not None, "no live units yet"
        return self.largest_M + self.sum_M.log() - math.log(self.units)

    def _join(self, largest_M: Tensor, sum_M: Tensor, units: int) -> None:
        self.units += units
        if self.largest_M is None or self.sum_M is None:
            self.largest_M, self.sum_M = largest_M, sum_M
            return
        both_M = torch.maximum(self.largest_M, largest_M)
        self.sum_M = self.sum_M * (self.largest_M - both_M).exp() + sum_M * (largest_M - both_M).exp()
        self.largest_M = both_M


def pmi_scores(pmi: Pmi, likelihood_UM: Tensor, marginal: Marginal) -> Tensor:
    """Scores of units, float32 [U,M], from their log likelihoods and the marginal of all units that are described."""
    return (likelihood_UM - pmi.weight * marginal.log_mean()).float()


def _probabilities(x_RE: Tensor, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Softmax over all concepts of x C^T, float32 [R, block] for one block of concepts after another."""
    if len(blocks) == 1:
        yield linear(x_RE, blocks[0]).softmax(1)
        return
    total_R1 = torch.stack([linear(x_RE, c_ME).logsumexp(1) for c_ME in blocks]).logsumexp(0)[:, None]
    for c_ME in blocks:
        yield linear(x_RE, c_ME).sub_(total_R1).exp_()


def _log_products(p_RM: Tensor, places_KU: Tensor, slopes: Sequence[float]) -> Tensor:
    """sum_r log(1 + slope_r p[places[r,u]]), float64 [U,M]."""
    units, concepts = TILE.get(p_RM.device.type, TILE_ACCELERATOR)
    out_UM = p_RM.new_zeros(places_KU.shape[1], p_RM.shape[1], dtype=torch.float64)
    for columns, p in zip(out_UM.split(concepts, 1), p_RM.split(concepts, 1)):
        p = p.contiguous()
        for out, places in zip(columns.split(units), places_KU.split(units, 1)):
            _add_log_products(out, p, places, slopes)
    return out_UM


def _add_log_products(out_UM: Tensor, p_RM: Tensor, places_KU: Tensor, slopes: Sequence[float]) -> None:
    """The same for one tile: narrow products of few terms, wide products of those, and logarithms of the wide ones."""
    term, product = p_RM.new_empty(out_UM.shape), p_RM.new_empty(out_UM.shape)
    for wide_ranks in _runs(range(len(slopes)), slopes, torch.float64):
        wide = torch.ones_like(out_UM)
        for ranks in _runs(wide_ranks, slopes, torch.float32):
            product.fill_(1)
            for r in ranks:
                torch.index_select(p_RM, 0, places_KU[r], out=term)
                product.addcmul_(product, term, value=slopes[r])
            wide.mul_(product)
        out_UM += wide.log_()


def _runs(ranks: Sequence[int], slopes: Sequence[float], dtype: torch.dtype) -> Iterator[list[int]]:
    """Cut ranks so that the product of the terms 1 + slope p of one cut, which is 1 or more, is in the range of `dtype`."""
    run: list[int] = []
    reached = 0.0
    for r in ranks:
        reach = math.log1p(slopes[r])
        if run and reached + reach > _REACH[dtype]:
            yield run
            run, reached = [], 0.0
        run.append(r)
        reached += reach
    yield run
