"""Models that ship with the package, in the formats of the libraries that will load them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import miclip_core
from miclip_core.zoo.locate import Locate
from miclip_core.zoo.recipe import Recipe
from schemas.errors import UnknownModel
from schemas.refs import ModelRef

FOLDER = Path(miclip_core.__file__).parent / "world" / "zoo"
# Which file of a folder tells its format, and who loads that format.
FORMATS = {"open_clip_config.json": "miclip_core.zoo.openclip", "config.json": "miclip_core.zoo.hf"}


def recipe(ref: ModelRef, locate: Locate) -> Recipe:
    """`demo:NAME`: the packaged folder NAME.

    Raises:
        UnknownModel: no model of that name ships.
    """
    folder = FOLDER / ref.name
    for file, module in FORMATS.items():
        if (folder / file).is_file():
            return import_module(module).from_path(ref.name, folder)
    raise UnknownModel(f"{ref}: no such demo model; have {', '.join(names()) or 'none'}")


def names() -> list[str]:
    """The models that ship."""
    return sorted(path.name for path in FOLDER.glob("*") if any((path / file).is_file() for file in FORMATS))
