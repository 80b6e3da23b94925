"""Folders as `save_pretrained` writes them: which files there are, whether they ask for code, all weights or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.checkpoint import read_checkpoint
from schemas.errors import RemoteCodeRefused, UnknownModel, UnsafeCheckpoint, WeightsMissing

ensure_torchvision()

from transformers.utils import logging  # noqa: E402 - needs a working torchvision

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

Get = Callable[[str], Path]
"""Name of a file of one checkpoint -> its local path; FileNotFoundError if the checkpoint has no such file."""


def folder_files(path: Path) -> Get:
    """The files of a local folder.

    Raises:
        UnknownModel: the path is a file.
    """
    if path.is_file():
        raise UnknownModel(f"{path}: give the folder that holds config.json and the weights, not one file")

    def get(file: str) -> Path:
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path / file}")
        return path / file

    return get


def optional(get: Get, file: str) -> Path | None:
    """The path of a file, None if the checkpoint does not have it."""
    try:
        return get(file)
    except FileNotFoundError:
        return None


def refuse_code(name: str, file: str, content: Mapping[str, Any]) -> None:
    """Look whether a file of a checkpoint names Python of its own.

    Raises:
        RemoteCodeRefused: it does.
    """
    if content.get("auto_map"):
        raise RemoteCodeRefused(
            f"hf:{name}: {file} has `auto_map`, so the checkpoint wants to run its own Python "
            f"({', '.join(map(str, content['auto_map'].values()))[:120]}), which is never done; use a checkpoint of a "
            "model that transformers has itself, or, if it is one, save it again without `auto_map`"
        )


def weight_files(name: str, get: Get) -> tuple[Path, ...]:
    """The checkpoint's files: safetensors where it has them, shards of an index in order.

    Raises:
        UnknownModel: it has none. WeightsMissing: a shard is not there. UnsafeCheckpoint: the index names other folders.
    """
    for file in _WEIGHTS:
        if (path := optional(get, file)) is None:
            continue
        if not file.endswith(".index.json"):
            return (path,)
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        if any(Path(shard).name != shard for shard in shards):
            raise UnsafeCheckpoint(f"hf:{name}: {file} names a file outside the checkpoint")
        found = [(shard, optional(get, shard)) for shard in shards]
        if missing := [shard for shard, shard_path in found if shard_path is None]:
            raise WeightsMissing(f"hf:{name}: {file} names {', '.join(missing)}, which is not there")
        return tuple(shard_path for _, shard_path in found if shard_path is not None)
    raise UnknownModel(f"hf:{name}: no weights; expected one of {', '.join(_WEIGHTS)}")


def image_processor(get: Get) -> dict[str, Any]:
    """What the image processor's file says; newer checkpoints keep it inside that of the whole processor."""
    if (path := optional(get, "preprocessor_config.json")) is not None:
        return json.loads(path.read_text())
    if (path := optional(get, "processor_config.json")) is not None:
        return json.loads(path.read_text()).get("image_processor", {})
    return {}


def load_library(
    kind: Any, config: Any, weights: Sequence[Path], name: str, dtype: torch.dtype = torch.float32, **arguments: Any
) -> Any:
    """A model of the library's class `kind` with all weights of the files, or none; see `load_tensors`.

    Raises:
        WeightsMissing, UnsafeCheckpoint: as `load_tensors` and `read_checkpoint`.
    """
    tensors: dict[str, Tensor] = {}
    for file in weights:
        tensors |= read_checkpoint(file)
    return load_tensors(kind, config, tensors, name, dtype, **arguments)


def load_tensors(
    kind: Any,
    config: Any,
    tensors: dict[str, Tensor],
    name: str,
    dtype: torch.dtype = torch.float32,
    **arguments: Any,
) -> Any:
    """A model of the library's class `kind` with all of `tensors`, or none; names of older checkpoints are translated.

    Raises:
        WeightsMissing: tensors that are missing, left over or of another shape.
    """
    with quiet():
        loaded, info = kind.from_pretrained(
            None,
            config=in_precision(config, dtype),
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **arguments,
        )
    shapes = [f"{key} {tuple(has)} instead of {tuple(want)}" for key, has, want in info["mismatched_keys"]]
    for what, keys in (
        ("are missing", info["missing_keys"]),
        ("belong to no part of the model", info["unexpected_keys"]),
        ("have another shape", shapes),
    ):
        if keys:
            raise WeightsMissing(
                f"{name}: {len(keys)} tensors of the checkpoint {what}: {', '.join(sorted(keys)[:4])}"
                f"{', ...' if len(keys) > 4 else ''}; config.json describes another model"
            )
    return loaded


def in_precision(config: Any, dtype: torch.dtype) -> Any:
    """A copy that asks for `dtype` in every part; otherwise parts of a model would be built in the saved one."""
    config = deepcopy(config)
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "text_config"))):
        if part is not None:
            part.dtype = dtype
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's bars and load reports: what is wrong is said by our errors."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
