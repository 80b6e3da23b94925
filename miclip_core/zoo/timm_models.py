"""Models of timm: by name and pretrained tag, from folders and files, and with random weights."""

from __future__ import annotations

import difflib
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.checkpoint import SUFFIXES, fill_completely, load_complete, read_checkpoint
from miclip_core.zoo.locate import HubFile, Locate, WebFile, revision_of
from miclip_core.zoo.recipe import Built, Recipe
from schemas.errors import UnknownModel
from schemas.models import Geometry
from schemas.refs import ModelRef

ensure_torchvision()

import timm  # noqa: E402 - needs a working torchvision
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config  # noqa: E402

CONFIG = "config.json"
_LIBRARIES = ("torch", "timm")
_RESIZES: dict[str, Literal["squash", "longest"]] = {"squash": "squash", "border": "longest"}
# Files of a hub repository, best first.
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def recipe(ref: ModelRef, locate: Locate) -> Recipe:
    """`NAME.TAG` (published weights), `NAME/random(SEED)`, or `NAME@location` (a folder or one checkpoint file).

    Raises:
        UnknownModel: no such architecture, tag or file.
    """
    if ref.location is not None:
        return from_path(ref.base_name, locate(ref.location))
    _check(ref.base_name)
    if ref.random_seed is not None:
        return _recipe(ref.base_name, {}, None)
    if "." not in ref.name:
        raise UnknownModel(f"{ref}: name pretrained weights, as in timm:{ref.name}.TAG{_tags(ref.name)}, or /random(0)")
    return _recipe(ref.name, {}, _fetch(ref, locate), published=True)


def from_path(name: str, path: Path) -> Recipe:
    """A folder as timm saves it for the hub (config.json beside the weights), or a checkpoint of the architecture `name`.

    Raises:
        UnknownModel: the folder holds no checkpoint, or the architecture is unknown.
    """
    if path.is_file():
        _check(name)
        return _recipe(name, {}, path)
    weights = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    weights.sort(key=lambda file: (file.suffix != ".safetensors", file.name != _HUB_WEIGHTS[0]))
    if not weights:
        raise UnknownModel(f"{path}: no checkpoint ({', '.join(SUFFIXES)}) in this folder")
    config = json.loads((path / CONFIG).read_text()) if (path / CONFIG).is_file() else {}
    name = config.get("architecture", name)
    _check(name)
    return _recipe(name, _arguments(config), weights[0])


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """What a folder's config.json says about building the model."""
    found: dict[str, Any] = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    if "pretrained_cfg" in config:
        found["pretrained_cfg_overlay"] = {"label_names": config.get("label_names"), **config["pretrained_cfg"]}
    return {**found, **config.get("model_args", {})}


# ---------------------------------------------------------------- names and files


def _check(name: str) -> None:
    """Refuse an architecture or tag that timm does not have, before anything is fetched."""
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), 3)
        raise UnknownModel(
            f"timm has no architecture {arch!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    known = timm.list_pretrained(f"{arch}.*")
    if tag and name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else _tags(arch)
        raise UnknownModel(f"timm:{name}: {arch} has no pretrained tag {tag}{hint}")


def _tags(arch: str) -> str:
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    return f" with TAG one of {', '.join(tags)}" if tags else " (timm publishes none for it)"


def _fetch(ref: ModelRef, locate: Locate) -> Path:
    """The checkpoint of a tag: from its hub repository, safetensors first, or from its address."""
    published: Any = timm.models.get_pretrained_cfg(ref.name, allow_unregistered=False)
    if not published.hf_hub_id:
        return locate(WebFile(published.url))
    own = published.hf_hub_filename
    names = _HUB_WEIGHTS if not own else tuple(dict.fromkeys((f"{Path(own).stem}.safetensors", own)))
    for name in names:
        try:
            return locate(HubFile(published.hf_hub_id, name, ref.revision))
        except FileNotFoundError:
            continue
    raise UnknownModel(f"{published.hf_hub_id}: the repository has none of {', '.join(names)}")


# ---------------------------------------------------------------- building and filling


def _recipe(name: str, arguments: dict[str, Any], weights: Path | None, published: bool = False) -> Recipe:
    return Recipe(
        architecture=name,
        files=() if weights is None else (weights,),
        revision=None if weights is None else revision_of(weights),
        libraries=_LIBRARIES,
        build=partial(_build, name, arguments, published),
        fill=partial(_fill, name, weights),
        settings={"architecture": name, **arguments},
    )


def _build(name: str, arguments: dict[str, Any], published: bool) -> Built:
    """The model in eval mode, with its geometry and class names; weights are the library's random ones."""
    root: Any = timm.create_model(name, pretrained=False, **arguments).eval()
    return Built(root=root, visual=root, geometry=geometry_of(root.pretrained_cfg), classes=_classes(root, published))


def geometry_of(pretrained_cfg: dict[str, Any]) -> Geometry:
    """timm's evaluation transform: resize to crop size / crop_pct, cut the centre.

    Where timm pads with the mean colour (`border`), its grey value is used.
    """
    config = resolve_data_config(pretrained_cfg=pretrained_cfg)
    height, width = config["input_size"][-2:]
    mean, std = config["mean"], config["std"]
    return Geometry(
        resize=_RESIZES.get(config["crop_mode"], "shortest"),
        resize_hw=(math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])),
        crop_hw=(height, width),
        interpolation=config["interpolation"],
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        fill=round(255 * sum(mean) / 3),
    )


def _classes(root: Any, published: bool) -> tuple[str, ...] | None:
    """Class names of the configuration, those of ImageNet for timm's own ImageNet weights, else numbers."""
    count = getattr(root, "num_classes", 0)
    if not count:
        return None
    names = root.pretrained_cfg.get("label_names")
    if names and len(names) == count:
        return tuple(names)
    subset = infer_imagenet_subset(root.pretrained_cfg) if published else None
    if subset is None:
        return tuple(str(number) for number in range(count))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(number) for number in range(count))


def _fill(name: str, weights: Path | None, built: Built) -> None:
    """Load all weights; checkpoints in the format of another library are renamed by timm's own rules."""
    assert weights is not None
    root: Any = built.root
    if weights.suffix == ".npz" and hasattr(root, "load_pretrained"):
        fill_completely(root, partial(root.load_pretrained, str(weights)), f"timm:{name} from {weights.name}")
        return
    tensors = read_checkpoint(weights)
    rename = getattr(sys.modules[type(root).__module__], "checkpoint_filter_fn", None)
    if rename is not None and not _learned(root) <= tensors.keys():
        tensors = rename(tensors, root)
    load_complete(root, tensors, f"timm:{name} from {weights.name}")


def _learned(root: nn.Module) -> set[str]:
    return {key for key, _ in root.named_parameters()}
