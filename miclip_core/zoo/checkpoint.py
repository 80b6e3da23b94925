"""Checkpoint files: reading them without running code, and loading them completely or not at all."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from schemas.errors import UnsafeCheckpoint, WeightsMissing

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or from a pickle that holds nothing but tensors and plain containers.

    Raises:
        UnsafeCheckpoint: the file would run code, or is a TorchScript archive, which contains code.
        WeightsMissing: the file is damaged or holds no tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsMissing(f"{path}: damaged safetensors file: {error}") from error
    return _tensors(path, read_pickle(path))


def read_pickle(path: Path) -> object:
    """What a pickle of torch holds, as long as that is nothing but tensors and plain containers.

    Raises:
        UnsafeCheckpoint, WeightsMissing: as `read_checkpoint`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unread(path, error) from error


def _unread(path: Path, error: Exception) -> Exception:
    """What an exception of torch's reader means: a file that is not there, one with code in it, or damaged bytes."""
    if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch answers EINVAL to a file that was cut short
        return error
    reason = (str(error) or type(error).__name__).splitlines()[0][:160]
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return UnsafeCheckpoint(
            f"{path}: not a plain file of tensors ({reason}). Loading it would run code "
            "from the file; on a machine you can spare, save its state dict with safetensors and use that file"
        )
    return WeightsMissing(f"{path}: damaged file: {reason}; fetch or save it again")


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsMissing(f"{path}: holds no named tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    prefix = "module."
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def load_complete(module: nn.Module, tensors: Mapping[str, Tensor], name: str, optional: Sequence[str] = ()) -> None:
    """Copy tensors into the module; every parameter must be there, with its shape, and nothing may be left over.

    optional: endings of names that may be left over or missing (position ids that newer code computes).

    Raises:
        WeightsMissing: keys that are missing, left over or of another shape.
    """
    known = module.state_dict()
    missing = [key for key in known if key not in tensors and not key.endswith(tuple(optional))]
    extra = [key for key in tensors if key not in known and not key.endswith(tuple(optional))]
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(known[key].shape)}"
        for key in known
        if key in tensors and tensors[key].shape != known[key].shape
    ]
    for what, keys in (
        ("are missing", missing),
        ("belong to no part of the model", extra),
        ("have another shape", shapes),
    ):
        if keys:
            raise WeightsMissing(
                f"{name}: {len(keys)} tensors of the checkpoint {what}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}; "
                "the checkpoint belongs to another architecture"
            )
    module.load_state_dict({key: tensors[key] for key in known if key in tensors}, strict=False)


def tensor_names(path: Path) -> list[str]:
    """Names of a checkpoint's tensors, without reading their values where the format allows.

    Raises:
        What `read_checkpoint` raises.
    """
    if path.suffix != ".safetensors":
        return list(read_checkpoint(path))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise WeightsMissing(f"{path}: damaged safetensors file: {error}") from error


def read_part(path: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names start with one of `prefixes`, by the rest of the name; no other is read.

    Raises:
        WeightsMissing: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if (prefix := next((start for start in prefixes if name.startswith(start)), None)) is not None:
                    found[name.removeprefix(prefix)] = file.get_tensor(name)
    except SafetensorError as error:
        raise WeightsMissing(f"{path}: damaged safetensors file: {error}") from error
    return found


def fill_completely(module: nn.Module, fill: Callable[[], object], name: str) -> None:
    """Let a library's own reader `fill` set the parameters of a module, and refuse what it left unset.

    Raises:
        WeightsMissing: parameters that the checkpoint does not hold.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
        fill()
    unset = [key for key, parameter in module.named_parameters() if bool(parameter.isnan().any())]
    if unset:
        raise WeightsMissing(
            f"{name}: {len(unset)} tensors of the model are missing in the checkpoint: {', '.join(unset[:4])}; "
            "the checkpoint belongs to another architecture"
        )
