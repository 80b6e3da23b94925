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


def list_members() -> dict[str, str]:
    """Name -> what it is, of every member of the demo zoo that is on this machine."""
    from miclip_core import world
    from miclip_core.world.recipes import GENERATOR, RECIPES

    zoo = Path(world.__file__).parent / "zoo"
    members = {name: recipe.title for name, recipe in RECIPES.items()} | {GENERATOR.name: GENERATOR.title}
    return {name: title for name, title in members.items() if (zoo / name / "card.json").is_file()}
