"""The files of a generator that ships: where they lie and what tells one state of them from another; loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miclip_core.zoo.digests import identity_sha256, weights_sha256
from miclip_core.zoo.shipped import find_folder
from schemas.errors import NoGenerator, UnknownModel
from schemas.refs import ModelRef

CONFIG = "generator.json"
WEIGHTS = "model.safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """What the folder's generator.json says: the sizes of the decoder's layers."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def find_generator(ref: ModelRef) -> Path:
    """The folder of `demo:NAME`.

    Raises:
        UnknownModel: no such model ships. NoGenerator: it reads images and draws none.
    """
    if ref.source != "demo":
        raise NoGenerator(f"{ref}: generators are found among the models that ship, such as demo:generator")
    folder = find_folder(ref)
    if not (folder / CONFIG).is_file():
        raise NoGenerator(f"{ref} draws no images; a generator is demo:generator")
    if not (folder / WEIGHTS).is_file():
        raise UnknownModel(f"{folder}: no {WEIGHTS} beside {CONFIG}")
    return folder


def files_sha256(ref: ModelRef) -> str:
    """sha256 over all that decides what the generator draws, as its inspected facts have it. Raises: `find_generator`."""
    folder = find_generator(ref)
    return identity_sha256(weights_sha256([folder / WEIGHTS]), read_config(folder), ())
