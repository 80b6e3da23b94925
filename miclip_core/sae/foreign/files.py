"""Files of other libraries: settings of a stated type and tensors by name and shape, all of them or none, and never code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from schemas.errors import BadRef, BadSae

T = TypeVar("T", bool, int, float, str)
Settings = Mapping[str, Any]


def find(path: Path, *names: str) -> Path:
    """The first file of these names in the folder `path`, or `path` itself where it is a file.

    Raises:
        BadRef: there is none; folders below that hold one are named.
    """
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    below = sorted({str(found.parent.relative_to(path)) for name in names for found in path.glob(f"*/{name}")})
    there = f"; these folders in it do: {', '.join(below[:8])}. Name one of them" if below else ""
    raise BadRef(f"{path}: {'holds no' if path.is_dir() else 'is not there; expected'} {' or '.join(names)}{there}")


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadSae: the file is no JSON, or another kind of value.
    """
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise BadSae(f"{path}: no JSON ({error}); fetch the file again") from error
    if not isinstance(settings, dict):
        raise BadSae(f"{path}: found {type(settings).__name__}, expected an object of settings")
    return settings


def get(settings: Settings, key: str, kind: type[T], path: Path, default: T | None = None) -> T:
    """One setting, which must be there unless there is a default, and of this type.

    Raises:
        BadSae: it is missing or of another type.
    """
    value = settings.get(key, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        found = "missing" if value is None else repr(value)
        raise BadSae(f"{path}: setting {key!r} is {found}; expected {kind.__name__}")
    return value


def get_settings(settings: Settings, key: str, path: Path) -> dict[str, Any]:
    """Settings inside settings; none where there are none. Raises BadSae where there is something else."""
    inner = settings.get(key) or {}
    if not isinstance(inner, dict):
        raise BadSae(f"{path}: setting {key!r} is {inner!r}; expected an object of settings")
    return inner


def take(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path, ignored: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors of these names and shapes as float32, or float64 if the first of them is; nothing may be left over.

    Raises:
        BadSae: names that are missing or unknown, and shapes that differ; all of them.
    """
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes and name not in ignored]
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    problems = [f"missing {', '.join(missing)}"] if missing else []
    problems += [f"of another shape {', '.join(wrong)}"] if wrong else []
    problems += [f"unknown {', '.join(sorted(extra))}"] if extra else []
    if problems:
        raise BadSae(
            f"{path}: tensors {'; '.join(problems)}. Expected {', '.join(shapes)}; nothing was loaded: is this the "
            "right file, and does its configuration belong to it?"
        )
    first = tensors[next(iter(shapes))]
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return {name: tensors[name].detach().to(dtype).contiguous() for name in shapes}


def shape_of(tensors: Mapping[str, Tensor], name: str, path: Path) -> tuple[int, int]:
    """Rows and columns of one matrix. Raises BadSae where it is missing or no matrix."""
    if name not in tensors or tensors[name].ndim != 2:
        found = f"shape {tuple(tensors[name].shape)}" if name in tensors else f"only {', '.join(sorted(tensors)[:12])}"
        raise BadSae(f"{path}: expected a matrix {name}, found {found}; nothing was loaded: is this the right file?")
    rows, columns = tensors[name].shape
    return rows, columns


def write_settings(path: Path, settings: Settings) -> None:
    """The settings as indented JSON."""
    path.write_text(json.dumps(settings, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The tensors as safetensors, to be read by whoever may read new files of this user; the library's own are private."""
    path.write_bytes(save(plain(tensors)))


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own contiguous memory, so that a file holds them and nothing beside them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
