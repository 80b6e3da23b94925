"""Where it is known what each patch of an image shows: the port, and the demo world behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from miclip_core.concepts.names import world_values
from miclip_core.world.location import parse_location
from miclip_core.world.planted import patch_truth
from miclip_core.world.scene import CONCEPTS, HELD_OUT_INDICES, IMAGE_SIZE, attributes
from schemas.refs import ImageSetRef


class Masks(Protocol):
    """Truth per patch of one image set, at one grid."""

    def classes(self, uris: Sequence[str]) -> dict[str, np.ndarray]:
        """Category -> int16 [images, patches row-major]: the value that a patch shows, -1 where it shows none."""
        ...

    def values(self, category: str) -> tuple[str, ...]:
        """Names of the values of a category."""
        ...

    def places(self, names: Sequence[str]) -> dict[str, int]:
        """`category=value` -> place of the concept of that name, for values that are named."""
        ...


def find_masks(uri: str, grid: tuple[int, int]) -> Masks | None:
    """The masks of the image set that a uri belongs to; None if nothing is known of its patches at this grid."""
    if uri.startswith("world:") and grid[0] == grid[1] and IMAGE_SIZE % grid[0] == 0:
        return WorldMasks(ImageSetRef.parse(uri.partition("#")[0]), IMAGE_SIZE // grid[0])
    return None


class WorldMasks:
    """The demo world's own pixels tell what each patch shows."""

    def __init__(self, ref: ImageSetRef, patch: int) -> None:
        """patch: side of a square patch in pixels of the world."""
        self._world, _ = parse_location(ref)
        self._patch = patch

    def classes(self, uris: Sequence[str]) -> dict[str, np.ndarray]:
        """As `Masks.classes`."""
        numbers = np.array([int(uri.rpartition("#")[2]) for uri in uris], np.int64)
        scenes = attributes(self._world, HELD_OUT_INDICES.start + numbers)
        return {name: classes.astype(np.int16) for name, classes in patch_truth(scenes, self._patch).items()}

    def values(self, category: str) -> tuple[str, ...]:
        """As `Masks.values`."""
        return tuple(CONCEPTS[category])

    def places(self, names: Sequence[str]) -> dict[str, int]:
        """As `Masks.places`."""
        return world_values(names)
