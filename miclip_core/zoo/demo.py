"""Models that ship with the package, in the formats of the libraries that will load them."""

from __future__ import annotations

from importlib import import_module

from miclip_core.zoo.locate import Locate
from miclip_core.zoo.recipe import Recipe
from miclip_core.zoo.shipped import find_folder
from schemas.refs import ModelRef

# Which file of a folder tells its format, and who loads that format.
FORMATS = {
    "open_clip_config.json": "miclip_core.zoo.openclip",
    "config.json": "miclip_core.zoo.hf",
    "generator.json": "miclip_core.generate.recipe",
}


def recipe(ref: ModelRef, locate: Locate) -> Recipe:
    """`demo:NAME`: the packaged folder NAME.

    Raises:
        UnknownModel: no model of that name ships.
    """
    folder = find_folder(ref)
    module = next(module for file, module in FORMATS.items() if (folder / file).is_file())
    return import_module(module).from_path(ref.name, folder)
