"""The only module that imports open_clip: architectures, pretrained tags, checkpoint folders and tokenisers."""

from __future__ import annotations

import difflib
import json
from copy import deepcopy
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.checkpoint import SUFFIXES, fill_completely, load_complete, read_checkpoint
from miclip_core.zoo.locate import HubFile, Locate, WebFile, revision_of
from miclip_core.zoo.recipe import Built, Recipe
from miclip_core.zoo.text import TOKENISER_FILES, TextTower, Tokeniser
from schemas.errors import ActivationMismatch, ModelUnreachable, UnknownModel
from schemas.models import Geometry
from schemas.refs import ModelRef

ensure_torchvision()

import open_clip  # noqa: E402 - needs a working torchvision
from open_clip.convert import convert_state_dict  # noqa: E402
from open_clip.model import convert_to_custom_text_state_dict  # noqa: E402

CONFIG = "open_clip_config.json"
_LIBRARIES = ("torch", "open_clip_torch")
_PREPROCESS = {field.name for field in fields(open_clip.transform.PreprocessCfg)}
# Files of a hub repository, best first.
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def recipe(ref: ModelRef, locate: Locate) -> Recipe:
    """`ARCH/TAG`, `ARCH/random(SEED)` or `ARCH@location` (a folder with its own config, or a bare checkpoint).

    Raises:
        UnknownModel: no such architecture, tag or file. ActivationMismatch: the tag needs another activation function.
    """
    if ref.location is not None:
        return from_path(ref.base_name, locate(ref.location))
    if ref.random_seed is not None:
        return _recipe(ref.base_name, _architecture(ref.base_name), {}, None)
    arch, slash, tag = ref.name.partition("/")
    if not slash:
        raise UnknownModel(
            f"{ref}: name a pretrained tag, as in open_clip:{arch}/TAG{_tags(arch)}, or {arch}/random(0)"
        )
    return _from_tag(ref, arch, tag, locate)


def from_path(name: str, path: Path) -> Recipe:
    """A folder with open_clip_config.json and weights, or a checkpoint file of the architecture `name`."""
    if path.is_file():
        return _recipe(name, _architecture(name), {}, path)
    config_path = path / CONFIG
    if not config_path.is_file():
        raise UnknownModel(f"{path}: a folder needs {CONFIG} beside the weights; or name one checkpoint file")
    config = json.loads(config_path.read_text())
    weights = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    weights.sort(key=lambda file: (file.suffix != ".safetensors", not file.name.startswith("open_clip")))
    if not weights:
        raise UnknownModel(f"{path}: no checkpoint ({', '.join(SUFFIXES)}) beside {CONFIG}")
    return _recipe(name, config["model_cfg"], config.get("preprocess_cfg", {}), weights[0], path)


def build_from_config(model_cfg: dict[str, Any]) -> nn.Module:
    """An untrained open_clip model (CLIP, CustomTextCLIP or CoCa) from a `model_cfg`; never fetches tower weights."""
    config = deepcopy(model_cfg)
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    if not custom_text:
        return open_clip.CLIP(**config)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    return kind(**config)


def architectures() -> list[str]:
    """Names of the built-in architectures."""
    return list(open_clip.list_models())


# ---------------------------------------------------------------- names


def _architecture(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, architectures(), 3)
        raise UnknownModel(
            f"open_clip has no architecture {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return config


def _tags(arch: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(arch)
    return f" with TAG one of {', '.join(tags)}" if tags else ""


def _from_tag(ref: ModelRef, arch: str, tag: str, locate: Locate) -> Recipe:
    config = _architecture(arch)
    published = open_clip.get_pretrained_cfg(arch, tag)
    _same_activation(arch, tag, config, published)
    if not published:
        near = difflib.get_close_matches(tag, open_clip.list_pretrained_tags_by_model(arch), 1)
        raise UnknownModel(f"{ref}: no such tag{_tags(arch)}" + (f"; did you mean {near[0]}?" if near else ""))
    path = _fetch(published, ref.revision, locate)
    return _recipe(arch, config, published, path)


def _same_activation(arch: str, tag: str, config: dict[str, Any], published: dict[str, Any]) -> None:
    """Refuse before anything is fetched: weights trained with QuickGELU are silently wrong under GELU, and reversed."""
    has = bool(config.get("quick_gelu", False))
    if published and bool(published.get("quick_gelu", False)) != has and "timm_model_name" not in config["vision_cfg"]:
        raise ActivationMismatch(
            f"open_clip:{arch}/{tag} was trained with {'GELU' if has else 'QuickGELU'}, but {arch} is built with "
            f"{'QuickGELU' if has else 'GELU'}; write open_clip:{_sibling(arch, has)}/{tag}"
        )
    if not published and has and open_clip.get_pretrained_cfg(_sibling(arch, True), tag):
        raise ActivationMismatch(
            f"open_clip:{arch}/{tag} was trained with GELU, but {arch} is built with QuickGELU; "
            f"write open_clip:{_sibling(arch, True)}/{tag}"
        )


def _sibling(arch: str, quick: bool) -> str:
    return arch.removesuffix("-quickgelu") if quick else f"{arch}-quickgelu"


def _fetch(published: dict[str, Any], revision: str | None, locate: Locate) -> Path:
    """The checkpoint of a tag: safetensors where the repository has them."""
    hub = published.get("hf_hub", "")
    if not hub:
        return locate(WebFile(published["url"], sha256_in(published["url"])))
    repo, _, file = hub.rpartition("/")
    names = _HUB_WEIGHTS if not file else tuple(dict.fromkeys((f"{Path(file).stem}.safetensors", file)))
    for name in names:
        try:
            return locate(HubFile(repo, name, revision))
        except FileNotFoundError:
            continue
    raise UnknownModel(f"{repo}: the repository has none of {', '.join(names)}")


def sha256_in(url: str) -> str:
    """The digest that an address states, or its beginning: OpenAI's as a folder, open_clip's own behind the file name."""
    *_, folder, file = url.split("/")
    if "openaipublic" in url:
        return folder
    return Path(file).stem.rsplit("-", 1)[-1] if "mlfoundations" in url else ""


# ---------------------------------------------------------------- building and filling


def _recipe(
    name: str, config: dict[str, Any], preprocess: dict[str, Any], weights: Path | None, folder: Path | None = None
) -> Recipe:
    libraries = _LIBRARIES + (("timm",) if "timm_model_name" in config["vision_cfg"] else ())
    return Recipe(
        architecture=name,
        files=() if weights is None else (weights,),
        revision=None if weights is None else revision_of(weights),
        libraries=libraries,
        build=partial(built, name, config, preprocess, folder),
        fill=partial(_fill, name, weights),
        settings={"model_cfg": config, "preprocess_cfg": {k: v for k, v in preprocess.items() if k in _PREPROCESS}},
        tokeniser=() if folder is None else tuple(folder / f for f in TOKENISER_FILES if (folder / f).is_file()),
    )


def built(name: str, config: dict[str, Any], preprocess: dict[str, Any], folder: Path | None = None) -> Built:
    """The model of a config in eval mode, with its geometry and text tower; weights are the library's random ones."""
    root: Any = build_from_config(config).eval()
    return Built(
        root=root,
        visual=root.visual,
        geometry=_geometry(config, preprocess, root),
        text=partial(_text, root, name, folder),
    )


def _geometry(config: dict[str, Any], preprocess: dict[str, Any], root: Any) -> Geometry:
    """The evaluation transform: what the tag or the folder says, else OpenAI's; the size is always the model's own."""
    defaults = open_clip.transform.PreprocessCfg()
    size = getattr(root.visual, "image_size", config["vision_cfg"].get("image_size", 224))
    hw = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def said(key: str) -> Any:
        return preprocess.get(key) or getattr(defaults, key)

    return Geometry(
        resize=said("resize_mode"),
        resize_hw=hw,
        crop_hw=hw,
        interpolation=said("interpolation"),
        mean=_triple(preprocess.get("mean", defaults.mean)),
        std=_triple(preprocess.get("std", defaults.std)),
        fill=int(preprocess.get("fill_color", 0)),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(value) for value in values)
    return r, g, b


def _fill(name: str, weights: Path | None, built: Built) -> None:
    assert weights is not None
    root: Any = built.root
    if weights.suffix == ".npz":
        load = partial(open_clip.convert.load_big_vision_weights, root, str(weights))
        fill_completely(root, load, f"open_clip:{name} from {weights.name}")
        return
    tensors = convert_state_dict(root, read_checkpoint(weights))
    if "positional_embedding" in tensors and not hasattr(root, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for scalar in ("logit_scale", "logit_bias"):
        target = getattr(root, scalar, None)
        if scalar in tensors and target is not None:
            tensors[scalar] = tensors[scalar].reshape(target.shape)  # older files keep one number as a vector
    load_complete(root, tensors, f"open_clip:{name} from {weights.name}", optional=("position_ids", "attn_mask"))


# ---------------------------------------------------------------- text


def _text(root: Any, name: str, folder: Path | None, device: torch.device) -> TextTower:
    # CoCa normalises unless told otherwise.
    return TextTower(partial(tokeniser, name, folder), partial(root.encode_text, normalize=False), device)


def tokeniser(name: str, folder: Path | None = None) -> Tokeniser:
    """The tokeniser of an architecture, or that of a checkpoint folder.

    Raises:
        ModelUnreachable: it is one of the hub's, and neither in the local cache nor to be fetched now.
    """
    if folder is not None:
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    try:
        return open_clip.get_tokenizer(name)
    except OSError as error:
        raise ModelUnreachable(
            f"open_clip:{name}: its tokeniser is not in the local cache and could not be fetched "
            f"({str(error).splitlines()[0]}); fetch it on a machine with a network"
        ) from error
