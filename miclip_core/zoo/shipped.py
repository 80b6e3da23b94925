"""Which models ship with the package, and where they lie; known without loading any library of models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import miclip_core
from schemas.errors import UnknownModel
from schemas.refs import ModelRef

FOLDER = Path(miclip_core.__file__).parent / "world" / "zoo"


def names() -> list[str]:
    """The models that ship, as `demo:NAME` calls them."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def find_folder(ref: ModelRef) -> Path:
    """The folder of `demo:NAME`.

    Raises:
        UnknownModel: no model of that name ships; the message lists those that do.
    """
    if ref.name not in names():
        raise UnknownModel(f"{ref}: no such demo model; there are {', '.join(f'demo:{name}' for name in names())}")
    return FOLDER / ref.name


def share_targets(models: Iterable[str]) -> bool | None:
    """Whether models were trained on the same targets, and so agree more than independent ones would; None if not known.

    Of shipped models the card beside the weights says which learnt from the truth of each patch.
    """
    refs = {model: ModelRef.parse(model) for model in models}
    if len(refs) == 1:
        return True
    if any(ref.source != "demo" for ref in refs.values()):
        return None
    return all(_learnt_from_patches(ref) for ref in refs.values())


@cache
def _learnt_from_patches(ref: ModelRef) -> bool:
    """What the card of a shipped model says; a zoo asks it for every pair."""
    return bool(json.loads((find_folder(ref) / "card.json").read_text())["patch_targets"])
