"""Models of the transformers library: from the hub, from folders and with random weights; never code from a checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo import hf_vlm
from miclip_core.zoo.checkpoint import tensor_names
from miclip_core.zoo.hf_blueprint import LIBRARIES, Blueprint
from miclip_core.zoo.hf_files import Get, folder_files, image_processor, optional, quiet, refuse_code, weight_files
from miclip_core.zoo.locate import HubFile, Locate, revision_of
from miclip_core.zoo.recipe import Recipe
from miclip_core.zoo.text import TOKENISER_FILES
from schemas.errors import UnknownModel, UnsupportedBlock
from schemas.refs import ModelRef

ensure_torchvision()

import transformers  # noqa: E402 - needs a working torchvision

# Model type -> the classes we know, the one for a bare configuration first.
CLASSES: dict[str, tuple[str, ...]] = {
    "clip": ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipModel", "SiglipVisionModel"),
    "siglip_vision_model": ("SiglipVisionModel",),
    "vit": ("ViTModel", "ViTForImageClassification"),
    "vit_mae": ("ViTMAEModel", "ViTMAEForPreTraining"),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
    "internvl_vision": ("InternVLVisionModel",),
    "resnet": ("ResNetModel", "ResNetForImageClassification"),
}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


def recipe(ref: ModelRef, locate: Locate) -> Recipe:
    """`ORG/NAME[@revision]` (hub), `NAME@file:/dir` or `@s3://...` (a folder), `MODELTYPE/random(SEED)`.

    Raises:
        UnknownModel: no such repository, folder or model type. RemoteCodeRefused: the checkpoint brings its own code.
        UnsupportedBlock: a class of transformers that no family knows; said before weights are fetched.
    """
    if ref.random_seed is not None:
        return _random(ref.base_name)
    if ref.location is not None:
        return from_path(ref.base_name, locate(ref.location))
    return _from_files(ref.name, _hub_files(ref.name, ref.revision, locate))


def from_path(name: str, path: Path) -> Recipe:
    """A folder as `save_pretrained` writes it.

    Raises:
        UnknownModel: a file, or a folder without config.json or weights.
    """
    return _from_files(name, folder_files(path))


# ---------------------------------------------------------------- names and files


def _random(model_type: str) -> Recipe:
    """The library's default configuration of a model type."""
    if model_type in hf_vlm.WHOLES:
        raise UnknownModel(
            f"hf:{model_type}/random: a vision-language model is read from a checkpoint; of untrained towers there are "
            f"{', '.join(f'hf:{tower}/random(0)' for tower in hf_vlm.TOWERS)}"
        )
    _check_type(f"hf:{model_type}/random", model_type)
    kind = getattr(transformers, CLASSES[model_type][0])
    with quiet():
        plan = Blueprint(model_type, kind, kind.config_class())
    return Recipe(model_type, (), None, LIBRARIES, plan.build, partial(plan.fill, ()))


def _check_type(where: str, model_type: Any) -> None:
    if model_type not in CLASSES:
        raise UnknownModel(f"{where}: model type {model_type!r} is none of those we know: {', '.join(CLASSES)}")


def _hub_files(repo: str, revision: str | None, locate: Locate) -> Get:
    """Files of one commit: what the revision means is looked up once, so a branch that moves cannot mix two states."""
    try:
        commit = revision_of(locate(HubFile(repo, "config.json", revision))) or revision
    except FileNotFoundError as error:
        raise UnknownModel(
            f"hf:{repo}: the repository has no config.json, so it is no transformers model; for open_clip "
            "checkpoints write open_clip:ARCH/TAG"
        ) from error
    return lambda file: locate(HubFile(repo, file, commit))


def _from_files(name: str, get: Get) -> Recipe:
    config_path = optional(get, "config.json")
    if config_path is None:
        raise UnknownModel(f"hf:{name}: no config.json in the folder; a transformers checkpoint has one")
    config = json.loads(config_path.read_text())
    refuse_code(name, "config.json", config)
    if hf_vlm.is_vlm(config) and config.get("model_type") not in CLASSES:
        return hf_vlm.recipe(name, config_path, config, get)
    kind = _class(name, config)
    processor = image_processor(get)
    tokeniser = _tokeniser_files(name, get) if "text_config" in config else ()
    weights = weight_files(name, get)
    arguments = {}
    if kind.__name__ == "ViTModel":  # whether it was saved with its pooler is written in the weights alone
        arguments["add_pooling_layer"] = any("pooler." in key for file in weights for key in tensor_names(file))
    with quiet():
        settings = kind.config_class.from_pretrained(config_path.parent, local_files_only=True)
    plan = Blueprint(name, kind, settings, processor, arguments, tokeniser[0].parent if tokeniser else None)
    return Recipe(
        architecture=name,
        files=weights,
        revision=revision_of(config_path),
        libraries=LIBRARIES,
        build=plan.build,
        fill=partial(plan.fill, weights),
        settings={"config": config, "processor": processor},
        tokeniser=tokeniser,
    )


def _class(name: str, config: dict[str, Any]) -> Any:
    """The class that the checkpoint was saved from."""
    _check_type(f"hf:{name}", config.get("model_type"))
    known = CLASSES[config["model_type"]]
    wanted = (config.get("architectures") or known)[0]
    if wanted not in known:
        raise UnsupportedBlock(f"hf:{name}: config.json names the class {wanted}; known are {', '.join(known)}")
    return getattr(transformers, wanted)


def _tokeniser_files(name: str, get: Get) -> tuple[Path, ...]:
    """The tokeniser's files, in one folder; none if the checkpoint has no vocabulary."""
    found = {file: path for file in TOKENISER_FILES if (path := optional(get, file)) is not None}
    if "tokenizer_config.json" in found:
        refuse_code(name, "tokenizer_config.json", json.loads(found["tokenizer_config.json"].read_text()))
    return tuple(found.values()) if any(file in found for file in _VOCABULARIES) else ()
