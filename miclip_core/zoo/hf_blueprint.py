"""One model of the transformers library, from its class and configuration to modules with geometry, text tower and weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.hf_files import in_precision, load_library, quiet
from miclip_core.zoo.hf_geometry import geometry_of
from miclip_core.zoo.hf_vit import input_size, tower_of
from miclip_core.zoo.recipe import Built
from miclip_core.zoo.text import TextTower, Tokeniser
from schemas.errors import MissingPackage
from schemas.models import Geometry

ensure_torchvision()

import transformers  # noqa: E402 - needs a working torchvision
from transformers.initialization import no_init_weights  # noqa: E402

LIBRARIES = ("torch", "transformers")
# Models without a fixed image size: convolutional, or with position embeddings that they resize themselves.
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "resnet")


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What is needed to build one model.

    kind: the library's class. processor: the content of preprocessor_config.json. arguments: more of the constructor's.
    tokeniser: the folder of its files, None for models that read no text or have no vocabulary. sees_as: the model type
    whose preprocessing is meant where the processor's file is silent, the configuration's own if empty.
    """

    name: str
    kind: Any
    config: Any
    processor: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    tokeniser: Path | None = None
    sees_as: str = ""

    def build(self) -> Built:
        """The library's model in fp32 and eval mode, with its geometry, text tower and class names."""
        with quiet(), no_init_weights():  # whatever builds this fills it next
            root = self.kind(in_precision(self.config, torch.float32), **self.arguments).float().eval()
        return self.describe(root)

    def describe(self, root: Any) -> Built:
        """The same of a model that is built already."""
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
        return geometry_of(self.sees_as or model_type, self.processor, own_hw, fixed=model_type not in _ANY_SIZE)

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
