"""Masks of free texts in images of an index: by the demo world's truth, or by a CLIPSeg model from a folder."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from jobs.files import open_planned
from jobs.protocol import Inputs
from miclip_core.explain.segmenters import ClipsegSegmenter, TextDriven, WorldSegmenter
from miclip_core.world.location import parse_location
from miclip_core.world.scene import HELD_OUT_INDICES
from schemas.errors import BadSpec
from schemas.refs import ImageSetRef

TRUTH = "truth"


class IndexSegmenter:
    """A text-driven segmenter for images that are known by their uri.

    segmenter: `truth`, or the sha256 of a CLIPSeg model's files; location: where these lie.

    Raises:
        WeightsMissing: the files are not what they were when the run was planned. Further what `ClipsegSegmenter` raises.
    """

    def __init__(self, inputs: Inputs, segmenter: str, location: str | None, device: str) -> None:
        self._clipseg: TextDriven | None = None
        if segmenter != TRUTH:
            self._clipseg = ClipsegSegmenter(open_planned(inputs, str(location), segmenter), device=device)

    def masks(self, pixels_CIJ: Tensor, uri: str, text: str) -> Tensor:
        """bool [n, I, J], one mask per thing that was found, as `TextDriven.masks`.

        Raises:
            BadSpec: the truth is asked for, and the image is none of the demo world.
        """
        if self._clipseg is not None:
            return self._clipseg.masks(pixels_CIJ, None, text)
        images, _, number = uri.partition("#")
        return _of_world(images).masks(pixels_CIJ, HELD_OUT_INDICES.start + int(number or 0), text)


@cache
def _of_world(images: str) -> WorldSegmenter:
    if not images.startswith("world:"):
        raise BadSpec(
            f"segmenter truth knows the images of world:... alone, found {images}; give those, or a segmenter: file:/folder "
            "of a CLIPSeg model"
        )
    world, _ = parse_location(ImageSetRef.parse(images))
    return WorldSegmenter(world)
