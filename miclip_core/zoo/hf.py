"""Models of the transformers library: from the hub, from folders and with random weights; never code from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.checkpoint import tensor_names
from miclip_core.zoo.hf_files import (
    Get,
    folder_files,
    in_precision,
    load_library,
    optional,
    quiet,
    refuse_code,
    weight_files,
)
from miclip_core.zoo.hf_geometry import geometry_of
from miclip_core.zoo.hf_vit import input_size, tower_of
from miclip_core.zoo.locate import HubFile, Locate, revision_of
from miclip_core.zoo.recipe import Built, Recipe
from miclip_core.zoo.text import TOKENISER_FILES, TextTower, Tokeniser
from schemas.errors import (
    MissingPackage,
    UnknownModel,
    UnsupportedBlock,
)
from schemas.models import Geometry
from schemas.refs import ModelRef

ensure_torchvision()

import transformers  # noqa: E402 - needs a working torchvision
from transformers.initialization import no_init_weights  # noqa: E402

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
    "resnet": ("ResNetModel", "ResNetForImageClassification"),
}
# Models without a fixed image size: convolutional, or with position embeddings that they resize themselves.
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "resnet")
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
    _check_type(f"hf:{model_type}/random", model_type)
    kind = getattr(transformers, CLASSES[model_type][0])
    with quiet():
        plan = Blueprint(model_type, kind, kind.config_class())
    return Recipe(model_type, (), None, _LIBRARIES, plan.build, partial(plan.fill, ()))


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
    kind = _class(name, config)
    processor = _processor(get)
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
        libraries=_LIBRARIES,
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


def _processor(get: Get) -> dict[str, Any]:
    """What the image processor's file says; newer checkpoints keep it inside that of the whole processor."""
    if (path := optional(get, "preprocessor_config.json")) is not None:
        return json.loads(path.read_text())
    if (path := optional(get, "processor_config.json")) is not None:
        return json.loads(path.read_text()).get("image_processor", {})
    return {}


def _tokeniser_files(name: str, get: Get) -> tuple[Path, ...]:
    """The tokeniser's files, in one folder; none if the checkpoint has no vocabulary."""
    found = {file: path for file in TOKENISER_FILES if (path := optional(get, file)) is not None}
    if "tokenizer_config.json" in found:
        refuse_code(name, "tokenizer_config.json", json.loads(found["tokenizer_config.json"].read_text()))
    return tuple(found.values()) if any(file in found for file in _VOCABULARIES) else ()


# ---------------------------------------------------------------- building and filling

_LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What is needed to build one model.

    kind: the library's class. processor: the content of preprocessor_config.json. arguments: more of the constructor's.
    tokeniser: the folder of its files, None for models that read no text or have no vocabulary.
    """

    name: str
    kind: Any
    config: Any
    processor: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    tokeniser: Path | None = None

    def build(self) -> Built:
        """The library's model in fp32 and eval mode, with its geometry, text tower and class names."""
        with quiet(), no_init_weights():  # whatever builds this fills it next
            root = self.kind(in_precision(self.config, torch.float32), **self.arguments).float().eval()
        for name in ("logit_scale", "logit_bias"):
            if getattr(root, name, torch.zeros(())).ndim:  # SigLIP's, which start at random without initialisation
                torch.nn.init.zeros_(getattr(root, name))
        tower: Any = tower_of(root)
        if hasattr(tower.config, "mask_ratio"):
            tower.config.mask_ratio = 0.0  # a masked autoencoder is read whole
        geometry = self._geometry(tower)
        tower.config.image_size = geometry.crop_hw  # what this model is run at; its weights do not depend on it
        labels = root.config.id2label
        return Built(
            root=root,
            visual=root,
            geometry=geometry,
            text=partial(_text, root, self.name, self.tokeniser) if self.tokeniser is not None else None,
            classes=tuple(labels[i] for i in range(len(labels))) if hasattr(root, "classifier") else None,
        )

    def _geometry(self, tower: Any) -> Geometry:
        model_type = self.config.model_type
        own_hw = input_size(tower) if hasattr(tower.config, "image_size") else (224, 224)
        return geometry_of(model_type, self.processor, own_hw, fixed=model_type not in _ANY_SIZE)

    def fill(self, weights: tuple[Path, ...], built: Built) -> None:
        """Load all weights, or refuse; the library translates names of older checkpoints.

        Raises:
            WeightsMissing: tensors that are missing, left over or of another shape.
        """
        loaded = load_library(self.kind, self.config, weights, f"hf:{self.name}", **self.arguments)
        built.root.load_state_dict(loaded.state_dict(), assign=True)


# ---------------------------------------------------------------- text


def _text(root: Any, name: str, folder: Path, device: torch.device) -> TextTower:
    def encode(ids_ML: Tensor) -> Tensor:
        return root.get_text_features(input_ids=ids_ML, return_dict=True).pooler_output

    return TextTower(partial(_tokeniser, root, name, folder), encode, device)


def _tokeniser(root: Any, name: str, folder: Path) -> Tokeniser:
    """The checkpoint's tokeniser at the context length of its text tower.

    Texts are padded to full length: SigLIP pools the last position and attends to padding. SigLIP was trained on lower
    case; CLIP's tokeniser lowers case itself.
    """
    try:
        tokeniser = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise MissingPackage(f"hf:{name}: its tokeniser needs another package: {error}") from error
    length, lower = root.config.text_config.max_position_embeddings, root.config.model_type == "siglip"

    def tokenise(texts: list[str]) -> Tensor:
        texts = [text.lower() for text in texts] if lower else texts
        return tokeniser(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids

    return tokenise
