"""Models of the transformers library together with their processors, from local folders; nothing is fetched or run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.hf_files import folder_files, load_library, optional, quiet, refuse_code, weight_files
from schemas.errors import MissingPackage, UnknownModel

ensure_torchvision()

import transformers  # noqa: E402 - needs a working torchvision

_MAY_NAME_CODE = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def load_folder(
    folder: Path, choose: Callable[[Any], Any], dtype: torch.dtype, device: str | torch.device
) -> tuple[Any, Any]:
    """The model in eval mode, without gradients, and the processor that turns its inputs into tensors.

    folder: as `save_pretrained` of both writes it. choose: configuration -> the library's class; may refuse it.

    Raises:
        UnknownModel: no configuration, processor or weights. RemoteCodeRefused: it brings its own Python.
        UnsafeCheckpoint, WeightsMissing: as for every checkpoint. MissingPackage: the processor needs another package.
    """
    get = folder_files(folder)
    for file in _MAY_NAME_CODE:
        if (path := optional(get, file)) is not None:
            refuse_code(folder.name, file, json.loads(path.read_text()))
    config, processor = _read(folder)
    weights = weight_files(folder.name, get)
    model = load_library(choose(config), config, weights, folder.name, dtype)
    if optional(get, "generation_config.json") is not None:  # which tokens end a text
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval().requires_grad_(False).to(device), processor


def _read(folder: Path) -> tuple[Any, Any]:
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            processor = transformers.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise MissingPackage(f"{folder}: its processor needs another package: {error}") from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnknownModel(f"{folder}: no model with a processor that transformers knows: {reason}") from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UnknownModel(f"{folder}: found a {type(processor).__name__}, expected one that reads images and text")
    return config, processor
