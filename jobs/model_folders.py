"""What planning sees of models that lie in folders: whether the file that tells their type is there, and what their weights take; loads none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from schemas.errors import BadSpec


class _Expected(NamedTuple):
    """The file that such a folder has, the key in it that names a type, and the start of that type; None: any."""

    what: str
    file: str
    key: str | None = None
    start: str | None = None


_BY_FIELD = {
    "segmenter": _Expected("a CLIPSeg model", "config.json", "model_type", "clipseg"),
    "maker": _Expected("a diffusers pipeline", "model_index.json", "_class_name"),
    "sentences": _Expected("a sentence-transformers model", "modules.json"),
}


def check_folder(stage: str, field: str, named: str) -> None:
    """That a local folder that a field of a stage names holds what the field expects, as far as one file tells.

    Folders that cannot be seen from here, as on another machine or in an object store, are left to the workers.

    Raises:
        BadSpec: names the field, what was found and what was expected.
    """
    folder, expected = Path(named.removeprefix("file:")), _BY_FIELD[field]
    if not named.startswith(("file:", "/")) or not folder.is_dir():
        return
    if found := _amiss(folder, expected):
        raise BadSpec(f"stages.{stage}.{field}: {folder}: {found}; expected the folder of {expected.what}")


def weight_bytes(path: Path) -> int:
    """Of a file, or of the weights that libraries load of a folder: safetensors, or where there are none PyTorch's own.

    Of a pipeline those of its parts. Variants, such as `model.fp16.safetensors`, are not loaded.
    """
    if path.is_file():
        return path.stat().st_size
    folders = [part for part in path.iterdir() if part.is_dir()]
    if not (path / _BY_FIELD["maker"].file).is_file():
        folders.append(path)
    return sum(_of_folder(folder) for folder in folders)


def _of_folder(folder: Path) -> int:
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := [file for file in folder.glob(pattern) if "." not in file.stem]:
            return sum(file.stat().st_size for file in files)
    return 0


def _amiss(folder: Path, expected: _Expected) -> str | None:
    file = folder / expected.file
    if not file.is_file():
        there = sorted(path.name for path in folder.iterdir())
        return (
            f"found {', '.join(there[:4])}{', ...' if there[4:] else ''} and no {file.name}"
            if there
            else "found nothing in it"
        )
    if expected.key is None:
        return None
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        return f"found a {file.name} that is no JSON ({error})"
    kind = config.get(expected.key) if isinstance(config, dict) else None
    if not isinstance(kind, str) or (expected.start is not None and not kind.startswith(expected.start)):
        return f"found {expected.key} {kind!r} in {file.name}"
    return None
