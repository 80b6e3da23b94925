"""The images that excite each unit most: the same whichever way the images are dealt out over shards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from miclip_core.dissect.spread import Spread
from miclip_core.sae.kernels import lowest_topk
from schemas.errors import TooFewImages


@dataclass(eq=False)
class TopImages:
    """The k images with the largest activation of each unit, largest first, of equal ones the lower image first.

    An image is an integer that is its own over all shards, and is added once. values float32 [U,K], images int64 [U,K],
    None before any image; K is k, or less while fewer images were seen. seen: images so far.
    """

    k: int
    values_UK: Tensor | None = None
    images_UK: Tensor | None = None
    seen: int = 0
    spread: Spread = field(default_factory=Spread)

    def add(self, images_N: Tensor, t_NU: Tensor) -> None:
        """More images int64 [N] with their activations [N,U]. Raises: NonFiniteActivation."""
        self.spread.add(t_NU)
        ascending = images_N.argsort()
        values_UK, columns_UK = lowest_topk(t_NU[ascending].float().T.contiguous(), self.k)
        self._join(values_UK, images_N[ascending][columns_UK], len(images_N))

    def merge(self, other: TopImages) -> None:
        """Join what was kept of the same units over other images."""
        self.spread.merge(other.spread)
        if other.values_UK is not None and other.images_UK is not None:
            self._join(other.values_UK, other.images_UK, other.seen)

    def first(self, k: int) -> TopImages:
        """The k largest only. Raises: TooFewImages."""
        values_UK, images_UK = self._kept()
        if k > images_UK.shape[1]:
            raise TooFewImages(
                f"the {k} most exciting images of every unit are needed, {images_UK.shape[1]} are at hand of "
                f"{self.seen} seen; give more images, or a similarity that needs none of these (cos, cos_cubed)"
            )
        return replace(self, k=k, values_UK=values_UK[:, :k], images_UK=images_UK[:, :k])

    def used(self) -> Tensor:
        """Every image that is among the kept of any unit, ascending int64 [R]: only these need an embedding."""
        return self._kept()[1].unique()

    def places(self) -> Tensor:
        """Where in `used()` each kept image stands, int64 [U,K]."""
        return torch.searchsorted(self.used(), self._kept()[1].contiguous())

    @property
    def values(self) -> Tensor:
        """Activations, float32 [U,K]."""
        return self._kept()[0]

    @property
    def images(self) -> Tensor:
        """Images, int64 [U,K]."""
        return self._kept()[1]

    def _kept(self) -> tuple[Tensor, Tensor]:
        assert self.values_UK is not None and self.images_UK is not None, "no images yet"
        return self.values_UK, self.images_UK

    def _join(self, values_UK: Tensor, images_UK: Tensor, seen: int) -> None:
        self.seen += seen
        if self.values_UK is None or self.images_UK is None:
            self.values_UK, self.images_UK = values_UK, images_UK
        elif self.values_UK.shape[1] < self.k:
            self.values_UK, self.images_UK = self._best(self.values_UK, self.images_UK, values_UK, images_UK)
        else:  # few units are beaten once many images were seen
            beaten = (values_UK[:, 0] >= self.values_UK[:, -1]).nonzero().flatten()
            lists = (self.values_UK[beaten], self.images_UK[beaten], values_UK[beaten], images_UK[beaten])
            values_UK, images_UK = self._best(*lists)
            self.values_UK = self.values_UK.index_copy(0, beaten, values_UK)
            self.images_UK = self.images_UK.index_copy(0, beaten, images_UK)

    def _best(self, *lists: Tensor) -> tuple[Tensor, Tensor]:
        """The best k of two lists, given as values, images, values, images."""
        images, by_image = torch.cat(lists[1::2], 1).sort(dim=1)
        values, order = torch.cat(lists[::2], 1).gather(1, by_image).sort(dim=1, descending=True, stable=True)
        return values[:, : self.k].contiguous(), images.gather(1, order)[:, : self.k].contiguous()
