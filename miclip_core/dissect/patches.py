"""The patches that excite each unit most, and where in an image a patch is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from miclip_core.dissect.ordered import from_ordered, to_ordered
from miclip_core.sae.codes import Codes
from schemas.errors import NonFiniteActivation

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom lie outside."""

_NONE = torch.iinfo(torch.int64).min
_LAST_IMAGE = 0x7FFFFFFF


@dataclass(frozen=True, eq=False)
class PatchList:
    """The Q different patches among the top ones of all units, by image, then position.

    image, position: int64 [Q]. place: int64 [U,K], which of them a unit's k-th patch is; -1 where it has no k-th.
    """

    image: Tensor
    position: Tensor
    place: Tensor


class TopPatches:
    """For each unit the K images that it is highest in, each with its highest patch: at most one patch of an image.

    Ties: the lower image, and in it the lower position. What is exactly 0 is no excitation and is never listed, so units
    may have fewer than K patches, dead ones none. Images may come in any order and in shards, which `merge` joins.

    n_units: U. k: K. Memory is 16 bytes for each of U * K.
    """

    def __init__(self, n_units: int, k: int, device: str | torch.device = "cpu"):
        if k < 1:
            raise ValueError(f"k={k}: expected 1 patch or more per unit")
        # The activation's order in the upper half and the image's, backwards, in the lower: all keys differ, so that the
        # largest ones are the same whatever the order of images.
        self._key_UK = torch.full((n_units, k), _NONE, dtype=torch.int64, device=device)
        self._position_UK = torch.full((n_units, k), -1, dtype=torch.int64, device=device)

    def add(self, images_B: Tensor, activations: Tensor | Codes) -> None:
        """Take in B images, numbers below 2^31 that were not added before: dense [B,P,U] or codes of their B * P tokens.

        Of codes only those above 0 count.

        Raises:
            ValueError: other numbers of units or images. NonFiniteActivation: NaN or infinity among them.
        """
        if isinstance(activations, Codes):
            width, whole = activations.width, len(activations) % max(1, len(images_B)) == 0
        else:
            width, whole = activations.shape[2], len(activations) == len(images_B)
        if width != len(self._key_UK) or not whole:
            raise ValueError(f"found {width} units and {len(activations)} rows, expected {len(self._key_UK)} units")
        if not len(images_B):
            return
        if isinstance(activations, Codes):
            value_BU, position_BU = _best_codes(activations, len(images_B))
        else:
            value_BU, position_BU = activations.float().max(1)
        if not bool(value_BU.isfinite().all()):
            raise NonFiniteActivation("an activation is NaN or infinite; the highest patches need finite numbers")
        key_BU = (to_ordered(value_BU).long() << 32) + (_LAST_IMAGE - images_B.to(value_BU.device))[:, None]
        self._keep(torch.where(value_BU == 0, _NONE, key_BU).T, position_BU.T)

    def state(self) -> tuple[Tensor, Tensor]:
        """All that it holds, int64 [U,K] both, which `add_state` of another one of these units takes in."""
        return self._key_UK, self._position_UK

    def add_state(self, key_UK: Tensor, position_UK: Tensor) -> None:
        """Take in what the `state` of other images holds of these units.

        Raises:
            ValueError: it is of another number of units.
        """
        if len(key_UK) != len(self._key_UK):
            raise ValueError(f"found the patches of {len(key_UK)} units, expected {len(self._key_UK)}")
        self._keep(key_UK, position_UK)

    def merge(self, other: TopPatches) -> None:
        """Take in the patches of other images."""
        self._keep(other._key_UK, other._position_UK)

    @property
    def image_UK(self) -> Tensor:
        """Images, highest first: int64, -1 where there is none."""
        return torch.where(self._key_UK == _NONE, -1, _LAST_IMAGE - (self._key_UK & 0xFFFFFFFF))

    @property
    def position_UK(self) -> Tensor:
        """Patches by their row-major number: int64, -1 where there is none."""
        return self._position_UK

    @property
    def value_UK(self) -> Tensor:
        """Activations: float32, NaN where there is none."""
        return torch.where(self._key_UK == _NONE, torch.nan, from_ordered((self._key_UK >> 32).int()))

    def distinct(self) -> PatchList:
        """Every listed patch once; units share many, and each needs one caption only."""
        pair_UK = torch.where(self._key_UK == _NONE, -1, (self.image_UK << 32) + self._position_UK)
        pairs, place_UK = pair_UK.unique(return_inverse=True)
        if len(pairs) and pairs[0] < 0:
            pairs, place_UK = pairs[1:], place_UK - 1
        return PatchList(pairs >> 32, pairs & 0xFFFFFFFF, place_UK)

    def _keep(self, key_UN: Tensor, position_UN: Tensor) -> None:
        keys = torch.cat((self._key_UK, key_UN), 1)
        self._key_UK, order_UK = keys.topk(self._key_UK.shape[1], dim=1)
        position_UK = torch.cat((self._position_UK, position_UN), 1).gather(1, order_UK)
        self._position_UK = torch.where(self._key_UK == _NONE, -1, position_UK)


def _best_codes(codes: Codes, images: int) -> tuple[Tensor, Tensor]:
    """The largest code of every latent in every image and its lowest position, both [B,U]; 0 where it never fires."""
    positions = len(codes) // images
    rows = codes.rows()
    pair, values = rows // positions * codes.width + codes.latents.long(), codes.values.float()
    best = values.new_zeros(images * codes.width).scatter_reduce_(0, pair, values, "amax")
    first = torch.full_like(best, positions, dtype=torch.int64)
    highest = values == best[pair]
    first.scatter_reduce_(0, pair[highest], rows[highest] % positions, "amin")
    return best.view(images, -1), first.view(images, -1)


def patch_box(position: int, grid: tuple[int, int], size: tuple[int, int], context: float = 1.0) -> Box:
    """The pixels around a patch: `context` times as wide and high as the patch, moved inside the image at its borders.

    position: row-major on a grid of (rows, columns). size: (height, width) of the view that the grid divides.
    Borders between pixels are widened to whole pixels.

    Raises:
        ValueError: no such position, or a context below 1.
    """
    if not 0 <= position < grid[0] * grid[1] or not context >= 1:
        raise ValueError(f"found position {position} and context {context}, expected one of {grid} and at least 1")
    row, column = divmod(position, grid[1])
    top, bottom = _stretch(row, grid[0], size[0], context)
    left, right = _stretch(column, grid[1], size[1], context)
    return left, top, right, bottom


def _stretch(cell: int, cells: int, pixels: int, context: float) -> tuple[int, int]:
    """First and last pixel (exclusive) along one axis."""
    length = min(context * pixels / cells, pixels)
    start = min(max((cell + 0.5) * pixels / cells - length / 2, 0.0), pixels - length)
    return math.floor(start + 1e-6), math.ceil(start + length - 1e-6)


def crop(pixels_CIJ: Tensor, box: Box) -> Image.Image:
    """The box of an image (uint8 RGB) as a picture."""
    left, top, right, bottom = box
    return Image.fromarray(pixels_CIJ[:, top:bottom, left:right].permute(1, 2, 0).cpu().contiguous().numpy())
