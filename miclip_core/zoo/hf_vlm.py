"""Vision-language models of the transformers library: the vision tower as a model of its own, and who reads its tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.checkpoint import read_part
from miclip_core.zoo.hf_blueprint import LIBRARIES, Blueprint
from miclip_core.zoo.hf_files import (
    Get,
    image_processor,
    in_precision,
    load_library,
    load_tensors,
    optional,
    quiet,
    refuse_code,
    weight_files,
)
from miclip_core.zoo.locate import revision_of
from miclip_core.zoo.recipe import Built, Language, Recipe
from miclip_core.zoo.sitemap import Family
from miclip_core.zoo.stand_in import project
from miclip_core.zoo.text import TOKENISER_FILES
from schemas.errors import MissingPackage, UnknownModel, UnsafeCheckpoint, UnsupportedBlock, WeightsMissing
from schemas.models import LanguageFacts

ensure_torchvision()

import transformers  # noqa: E402 - needs a working torchvision
from transformers.initialization import no_init_weights  # noqa: E402

# Model type of the whole -> its class. All of them show one image as one grid of tokens.
WHOLES = {
    "llava": "LlavaForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
# Model type of the vision tower -> its class.
TOWERS = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "internvl_vision": "InternVLVisionModel",
}
_PREFIXES = ("model.vision_tower.", "vision_tower.")
_SAY_CODE = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_PROCESSOR_FILES = (
    *TOKENISER_FILES,
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def is_vlm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a language model with a vision tower, of a type that is known or not."""
    return config.get("model_type") in WHOLES or "vision_config" in config


def recipe(name: str, config_path: Path, config: Mapping[str, Any], get: Get) -> Recipe:
    """How to make the vision tower of a checkpoint, whose tensors alone are read, and the whole around it.

    Raises:
        UnsupportedBlock: a type of model or tower that is not known. RemoteCodeRefused: a processor's own Python.
        UnsafeCheckpoint: the weights are no safetensors.
    """
    _check_types(name, config)
    for file in _SAY_CODE:
        if (path := optional(get, file)) is not None:
            refuse_code(name, file, json.loads(path.read_text()))
    weights = weight_files(name, get)
    if any(path.suffix != ".safetensors" for path in weights):
        raise UnsafeCheckpoint(
            f"hf:{name}: {weights[0].name} is a pickle; of vision-language models safetensors alone are read, because "
            "they give the vision tower without the rest; save the model again with save_pretrained"
        )
    kind = getattr(transformers, WHOLES[config["model_type"]])
    with quiet():
        settings = kind.config_class.from_pretrained(config_path.parent, local_files_only=True)
    whole = Whole(name, kind, settings, weights, config_path.parent, image_processor(get))
    return Recipe(
        architecture=name,
        files=weights,
        revision=revision_of(config_path),
        libraries=LIBRARIES,
        build=whole.tower.build,
        fill=whole.fill_tower,
        settings={"config": config, "processor": whole.images},
        tokeniser=tuple(path for file in _PROCESSOR_FILES if (path := optional(get, file)) is not None),
        language=Language(whole.facts, whole.load, whole.processor),
    )


def _check_types(name: str, config: Mapping[str, Any]) -> None:
    """Two types must be known: that of the whole and that of its tower."""
    whole, tower = config.get("model_type"), (config.get("vision_config") or {}).get("model_type")
    if whole not in WHOLES:
        raise UnsupportedBlock(
            f"hf:{name}: vision-language models of type {whole!r} are not known; known are {', '.join(WHOLES)}, which show "
            "an image to the language model as one grid of tokens, not cut into tiles"
        )
    if tower is not None and tower not in TOWERS:
        raise UnsupportedBlock(
            f"hf:{name}: a {whole} with a vision tower of type {tower!r}; known are {', '.join(TOWERS)}"
        )


@dataclass(frozen=True, eq=False)
class Whole:
    """One checkpoint of a vision-language model.

    kind: the library's class. folder: of its files. images: the content of the image processor's file.
    """

    name: str
    kind: Any
    config: Any
    weights: tuple[Path, ...]
    folder: Path
    images: dict[str, Any]

    @property
    def tower(self) -> Blueprint:
        """How the vision tower alone is built."""
        config = self.config.vision_config
        kind = getattr(transformers, TOWERS[config.model_type])
        return Blueprint(self.name, kind, config, self.images, sees_as=self.config.model_type)

    def fill_tower(self, built: Built) -> None:
        """Load the tower's tensors, all of them or none.

        Raises:
            WeightsMissing: tensors that are missing, left over or of another shape.
        """
        tensors: dict[str, Tensor] = {}
        for file in self.weights:
            tensors |= read_part(file, _PREFIXES)
        if not tensors:
            raise WeightsMissing(f"hf:{self.name}: no tensor of the checkpoint is called vision_tower.*")
        blueprint = self.tower
        loaded = load_tensors(blueprint.kind, blueprint.config, tensors, f"hf:{self.name}")
        built.root.load_state_dict(loaded.state_dict(), assign=True)

    def load(self, dtype: torch.dtype) -> tuple[Any, Built]:
        """The whole model with all weights in eval mode, its parameters without gradients, and the tower in it.

        Raises:
            WeightsMissing: see `fill_tower`.
        """
        module = load_library(self.kind, self.config, self.weights, f"hf:{self.name}", dtype)
        if (self.folder / "generation_config.json").is_file():  # which tokens end a text
            module.generation_config = transformers.GenerationConfig.from_pretrained(self.folder, local_files_only=True)
        module.eval().requires_grad_(False)
        return module, self.tower.describe(module.model.vision_tower)

    def processor(self) -> Any:
        """What turns a conversation with images into tokens.

        Raises:
            UnknownModel: the checkpoint has none. MissingPackage: it needs another package.
        """
        try:
            with quiet():
                return transformers.AutoProcessor.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False
                )
        except ImportError as error:
            raise MissingPackage(f"hf:{self.name}: its processor needs another package: {error}") from error
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnknownModel(f"hf:{self.name}: no processor that transformers knows: {reason}") from error

    def facts(self, tower: Family) -> LanguageFacts:
        """What reads which tokens of the tower, found by asking the library on the meta device.

        Raises:
            UnsupportedBlock: the language model reads several blocks at once, or the tokens before the first.
        """
        with quiet(), no_init_weights(), torch.device("meta"):
            module = self.kind(in_precision(self.config, torch.float32))
            module.tie_weights()  # else one matrix for words in and words out would count twice
        positions = tower.n_prefix + tower.grid[0] * tower.grid[1]
        tokens_RTD = torch.empty(1, positions, tower.width, device="meta")
        features_RTD, place = project(module, tokens_RTD, tower.n_blocks)
        block, site = _read(self.name, place, tower)
        total, own = (sum(p.numel() for p in part.parameters()) for part in (module, module.model.vision_tower))
        return LanguageFacts(
            model_type=self.config.model_type,
            reads_block=block,
            reads=site,
            image_tokens=features_RTD.shape[1],
            width=features_RTD.shape[2],
            layers=self.config.get_text_config().num_hidden_layers,
            params=total - own,
        )


def _read(name: str, place: int | None, tower: Family) -> tuple[int, str]:
    """The last block that matters, and the site whose tokens the projection gets."""
    if place == -1:
        raise UnsupportedBlock(
            f"hf:{name}: its language model reads the tokens before the first block; there is none to see"
        )
    if place is not None:
        return place, f"resid_post.{place}"
    final, last = tower.sites.get("lnf_out"), tower.n_blocks - 1
    normed = final is not None and final.layout == "tokens"  # CLIP norms its class token alone, beside what it returns
    return last, "lnf_out" if normed else f"resid_post.{last}"
