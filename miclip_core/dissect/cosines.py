"""Similarity of units and concepts by what both do on all images: two of CLIP-Dissect's functions, from sums over images.

Oikarinen and Weng (2023), "CLIP-Dissect", appendix on similarity functions. T is the activations [N,U], P the cosines
[N,M] of the images' and the concepts' CLIP embeddings; all sums are in float64, so that the order of shards does not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from miclip_core.dissect.embeddings import unit_concepts, unit_images
from miclip_core.dissect.spread import Spread

MIN_NORM = 1e-3
"""Floor under the norms of centred and cubed columns."""


@dataclass(eq=False)
class Cosines:
    """`cos`: the cosine of a unit's activations T[:,u] and a concept's cosines P[:,c] over the images, not centred.

    Because P = X C^T for image embeddings X and concept embeddings C, all that is kept is T^T X [U,E], the squares of T
    [U] and X^T X [E,E]: the images are read once, and concepts may be chosen afterwards.
    """

    cross_UE: Tensor | None = None
    square_U: Tensor | None = None
    gram_EE: Tensor | None = None
    spread: Spread = field(default_factory=Spread)

    def add(self, t_NU: Tensor, x_NE: Tensor) -> None:
        """More images by their activations [N,U] and CLIP embeddings [N,E]. Raises: NonFiniteActivation, BadAlignment."""
        self.spread.add(t_NU)
        t_NU, x_NE = t_NU.double(), unit_images(x_NE, len(t_NU), torch.float64)
        self._join(t_NU.T @ x_NE, t_NU.square().sum(0), x_NE.T @ x_NE)

    def merge(self, other: Cosines) -> None:
        """Join the sums of the same units over other images."""
        self.spread.merge(other.spread)
        if other.cross_UE is not None and other.square_U is not None and other.gram_EE is not None:
            self._join(other.cross_UE, other.square_U, other.gram_EE)

    def scores(self, concepts_ME: Tensor) -> Tensor:
        """Score of every unit and concept, float32 [U,M]; NaN for units that are 0 on all images. Raises: BadAlignment."""
        assert self.cross_UE is not None and self.square_U is not None and self.gram_EE is not None, "no images yet"
        c_ME = unit_concepts(concepts_ME, len(self.gram_EE), torch.float64)
        length_M = ((c_ME @ self.gram_EE) * c_ME).sum(1).sqrt()
        cosine_UM = self.cross_UE @ c_ME.T / (self.square_U.sqrt()[:, None] * length_M)
        return cosine_UM.masked_fill(self.spread.silent[:, None], torch.nan).float()

    def _join(self, cross_UE: Tensor, square_U: Tensor, gram_EE: Tensor) -> None:
        self.cross_UE = cross_UE if self.cross_UE is None else self.cross_UE + cross_UE
        self.square_U = square_U if self.square_U is None else self.square_U + square_U
        self.gram_EE = gram_EE if self.gram_EE is None else self.gram_EE + gram_EE


@dataclass(eq=False)
class Means:
    """What the centring of `CubedCosines` needs: the mean activation of every unit and the mean embedding of all images."""

    count: int = 0
    sum_U: Tensor | None = None
    sum_E: Tensor | None = None
    spread: Spread = field(default_factory=Spread)

    def add(self, t_NU: Tensor, x_NE: Tensor) -> None:
        """More images by their activations [N,U] and CLIP embeddings [N,E]. Raises: NonFiniteActivation, BadAlignment."""
        self.spread.add(t_NU)
        sum_U, sum_E = t_NU.double().sum(0), unit_images(x_NE, len(t_NU), torch.float64).sum(0)
        self.count += len(t_NU)
        self.sum_U = sum_U if self.sum_U is None else self.sum_U + sum_U
        self.sum_E = sum_E if self.sum_E is None else self.sum_E + sum_E

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Of the units' activations and of the unit-length embeddings: float64 [U] and [E]."""
        assert self.sum_U is not None and self.sum_E is not None, "no images yet"
        return self.sum_U / self.count, self.sum_E / self.count


@dataclass(eq=False)
class CubedCosines:
    """`cos_cubed`: the cosine of T[:,u] and P[:,c], both centred over all images and cubed, with floors under their norms.

    A second pass over the images, after `Means` saw all of them; U x M sums are kept, so give it blocks of units or
    concepts where that is too much.
    """

    means: Means
    concepts_ME: Tensor
    cross_UM: Tensor | None = None
    square_U: Tensor | None = None
    square_M: Tensor | None = None

    def add(self, t_NU: Tensor, x_NE: Tensor) -> None:
        """The same images once more, in any portions. Raises: BadAlignment."""
        mean_U, mean_E = self.means.means
        c_ME = unit_concepts(self.concepts_ME, len(mean_E), torch.float64)
        t_NU = (t_NU.double() - mean_U) ** 3
        p_NM = ((unit_images(x_NE, len(t_NU), torch.float64) - mean_E) @ c_ME.T) ** 3
        cross_UM, square_U, square_M = t_NU.T @ p_NM, t_NU.square().sum(0), p_NM.square().sum(0)
        self.cross_UM = cross_UM if self.cross_UM is None else self.cross_UM + cross_UM
        self.square_U = square_U if self.square_U is None else self.square_U + square_U
        self.square_M = square_M if self.square_M is None else self.square_M + square_M

    def scores(self) -> Tensor:
        """Score of every unit and concept, float32 [U,M]; NaN for units that are equally active on all images."""
        assert self.cross_UM is not None and self.square_U is not None and self.square_M is not None, "no images yet"
        length_U, length_M = (square.sqrt().clamp(min=MIN_NORM) for square in (self.square_U, self.square_M))
        scores_UM = self.cross_UM / (length_U[:, None] * length_M)
        return scores_UM.masked_fill(self.means.spread.constant[:, None], torch.nan).float()
