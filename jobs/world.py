"""The door from the command line to the demo world's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def export_images(
    directory: Path, n: int, *, by_class: bool = False, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write n images of the demo world with labels and masks; returns how many files were new.

    Raises:
        BadSpec: the folder holds something else, or n is out of range.
    """
    from miclip_core.world.export import export_world

    directory.mkdir(parents=True, exist_ok=True)
    return export_world(directory, n=n, by_class=by_class, progress=progress).written
