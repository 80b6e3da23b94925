"""Act-Values: what a unit stands for by its mean activation on the images of each concept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from miclip_core.dissect.spread import Spread
from miclip_core.sae.kernels import accumulate_rows
from schemas.errors import BadAlignment


@dataclass(eq=False)
class ActValues:
    """Sums per concept, in float64 so that the order of shards does not show: the baseline of MICLIP, section 4.

    concepts: how many, M. sum [M,U] of activations and count int64 [M] of images, None before any image.
    """

    concepts: int
    sum_MU: Tensor | None = None
    count_M: Tensor | None = None
    spread: Spread = field(default_factory=Spread)

    def add(self, t_NU: Tensor, labels_NM: Tensor) -> None:
        """More images by their activations [N,U] and which of them are labelled with which concepts, bool [N,M].

        Raises:
            NonFiniteActivation. BadAlignment: labels of another shape or type.
        """
        self.spread.add(t_NU)
        if labels_NM.dtype != torch.bool or labels_NM.shape != (len(t_NU), self.concepts):
            raise BadAlignment(
                f"expected labels as bool [{len(t_NU)}, {self.concepts}], got {labels_NM.dtype} {tuple(labels_NM.shape)}"
            )
        rows, concepts = labels_NM.nonzero(as_tuple=True)  # every image beside every concept of it, images ascending
        count_M = torch.bincount(concepts, minlength=self.concepts)
        offsets = torch.cat((rows.new_zeros(1), torch.bincount(rows, minlength=len(t_NU)).cumsum(0)))
        sum_MU = t_NU.new_zeros(self.concepts, t_NU.shape[1], dtype=torch.float64)
        ones = torch.ones_like(concepts, dtype=torch.float64)
        accumulate_rows(sum_MU, concepts, ones, t_NU.double(), offsets)
        self.sum_MU = sum_MU if self.sum_MU is None else self.sum_MU + sum_MU
        self.count_M = count_M if self.count_M is None else self.count_M + count_M

    def scores(self) -> Tensor:
        """Mean activation of every unit on the images of every concept, float32 [U,M].

        NaN for concepts without an image and for units that are 0 on all images.
        """
        assert self.sum_MU is not None and self.count_M is not None, "no images yet"
        mean_UM = self.sum_MU.T / self.count_M  # 0 / 0 where there is no image
        return mean_UM.masked_fill(self.spread.silent[:, None], torch.nan).float()
