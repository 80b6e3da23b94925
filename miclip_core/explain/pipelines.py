"""Text-to-image pipelines of the diffusers library from local folders, with all of their weights; nothing is fetched or run."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from miclip_core.extras import DIFFUSION
from miclip_core.zoo.hf_files import quiet, refuse_code
from schemas.errors import RemoteCodeRefused, UnknownModel, UnsupportedBlock, WeightsMissing

_INDEX = "model_index.json"
_WANTED = {"prompt", "generator", "num_inference_steps", "guidance_scale", "height", "width", "output_type"}


def load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a folder as `save_pretrained` writes it, on the CPU; each part has all of its weights.

    Raises:
        MissingPackage: diffusers is not installed. UnknownModel: the folder holds no pipeline that it knows.
        RemoteCodeRefused: the pipeline brings its own Python. WeightsMissing: a part lacks weights, or has none in safetensors.
        UnsupportedBlock: it does not make images from texts alone.
    """
    index = _read_index(folder)
    diffusers = _import_diffusers()
    with _silent(diffusers):
        try:
            models = {name: _load_model(folder / name, kind, dtype) for name, kind in _models(diffusers, index).items()}
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, torch_dtype=dtype, **models
            )
        except (AttributeError, ImportError, OSError, TypeError, ValueError) as error:
            raise UnknownModel(f"{folder}: no pipeline that diffusers can load: {_first_line(error)}") from error
    arguments = inspect.signature(pipeline.__call__).parameters
    if not set(arguments) >= _WANTED or "image" in arguments:
        raise UnsupportedBlock(
            f"{folder}: a {type(pipeline).__name__} does not make images from texts alone; use a text-to-image pipeline, such "
            "as a StableDiffusionPipeline or StableDiffusion3Pipeline"
        )
    return pipeline


def _read_index(folder: Path) -> Mapping[str, Any]:
    """Which classes the pipeline is made of, none of them its own."""
    if not (folder / _INDEX).is_file():
        raise UnknownModel(
            f"{folder}: no {_INDEX}; give the folder of a diffusers pipeline, as with `hf download "
            f"stabilityai/stable-diffusion-3.5-medium --local-dir {folder}`"
        )
    index = json.loads((folder / _INDEX).read_text())
    parts = [folder / name / f"{part[0]}.py" for name, part in index.items() if isinstance(part, list)]
    if not isinstance(index.get("_class_name"), str) or any(path.exists() for path in parts):
        raise RemoteCodeRefused(
            f"{folder}: {_INDEX} names Python of its own, which is never run; use a pipeline of diffusers itself"
        )
    for config in folder.glob("*/config.json"):
        refuse_code(folder.name, f"{config.parent.name}/config.json", json.loads(config.read_text()))
    return index


def _import_diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise DIFFUSION.missing(f"not to be imported ({error})") from error


def _models(diffusers: Any, index: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of those parts that have weights."""
    found = {}
    for name, part in index.items():
        if isinstance(part, list) and part[0] is not None:
            library = getattr(diffusers.pipelines, part[0], None) or importlib.import_module(_package(part[0]))
            kind = getattr(library, part[1])
            if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
                found[name] = kind
    return found


def _package(library: str) -> str:
    """Of a part that belongs to no pipeline."""
    if library not in ("diffusers", "transformers"):
        raise ValueError(f"{_INDEX} names the library {library!r}")
    return library


def _load_model(folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """One part; the library would fill weights that are not there with random ones."""
    precision = {"dtype" if kind.__module__.startswith("transformers.") else "torch_dtype": dtype}
    try:
        model, info = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, **precision
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsMissing(f"{folder}: its weights do not load: {_first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        more = ", ..." if len(missing) > 4 else ""
        raise WeightsMissing(f"{folder}: {len(missing)} tensors are missing: {', '.join(missing[:4])}{more}")
    return model


@contextmanager
def _silent(diffusers: Any) -> Iterator[None]:
    """Without the libraries' bars and reports: what is wrong is said by our errors."""
    logging = diffusers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
