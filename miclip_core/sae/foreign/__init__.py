"""Files of other libraries: which formats there are, and reading and writing an SAE in one of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from miclip_core.new_folder import new_folder
from miclip_core.sae.sae import Sae
from schemas.errors import BadSae, UsageError

FORMATS: dict[str, str] = {
    "miclip": "miclip_core.sae.foreign.own",
    "saelens": "miclip_core.sae.foreign.saelens",
    "sparsify": "miclip_core.sae.foreign.sparsify",
    "dictionary_learning": "miclip_core.sae.foreign.dictionary_learning",
    "overcomplete": "miclip_core.sae.foreign.overcomplete",
    "attributing_clip": "miclip_core.sae.foreign.attributing_clip",
}
WRITTEN: tuple[str, ...] = tuple(name for name in FORMATS if name != "attributing_clip")


def load_foreign(name: str, path: Path) -> Sae:
    """The SAE in a file or folder of a format of FORMATS, checked; code in files is never run.

    Raises:
        BadRef: nothing of that format is there. BadSae, ThresholdUnset: it cannot be used; every missing name is listed.
        UnsupportedSae: of a kind that is not read. UnsafeCheckpoint: reading it would run code.
    """
    try:
        return _load(name, path)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadSae(f"{path}: {'.'.join(map(str, problem['loc']))} {problem['input']!r}: {problem['msg']}") from error
    except BadSae as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _load(name: str, path: Path) -> Sae:
    sae: Sae = _module(name).load(path)
    if sae.config.k is not None and sae.config.k > sae.config.latents:
        raise BadSae(f"k is {sae.config.k}, but there are {sae.config.latents} latents; expected k <= latents")
    return sae.check()


def save_foreign(name: str, sae: Sae, folder: Path) -> None:
    """Write an SAE as a new folder of a format of WRITTEN: whole, shown by one rename, and never over something else.

    Raises:
        UsageError: the folder is there already, or its parent is not. UnsupportedSae: the format cannot hold this SAE.
    """
    if name not in WRITTEN:
        raise UsageError(f"format {name!r} is not written; expected one of {', '.join(WRITTEN)}")
    with new_folder(folder) as partial:
        _module(name).save(sae.check(), partial)


def _module(name: str) -> ModuleType:
    return import_module(FORMATS[name])
