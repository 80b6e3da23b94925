"""The zoo's untrained models from the libraries that will load them, each seen as one encoder with dense features."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from miclip_core.world.recipes import MEAN, STD, Recipe
from miclip_core.world.scene import COLOURS, IMAGE_SIZE, SHAPES
from miclip_core.world.tokens import save_tokenizer
from miclip_core.zoo import openclip

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def make_model(recipe: Recipe) -> Any:
    """The recipe's model with weights drawn from its seed, position embeddings set to half a 2-D sine-cosine code.

    With random positions the dense warm-up hardly learns where a patch is in this many steps.
    """
    torch.manual_seed(recipe.seed)
    if recipe.family == "clip":
        model: Any = openclip.build_from_config(recipe.architecture)
        if "patch_size" in recipe.architecture["vision_cfg"]:
            _set_positions(model.visual.positional_embedding, IMAGE_SIZE // recipe.patch)
        return model
    if recipe.family == "vit":
        size: dict[str, Any] = {"image_size": IMAGE_SIZE, "patch_size": recipe.patch}
        hidden = recipe.architecture["hidden_size"]
        config = transformers.ViTConfig(**recipe.architecture, intermediate_size=4 * hidden, **size)
        vit = transformers.ViTModel(config, add_pooling_layer=False)
        _set_positions(vit.embeddings.position_embeddings[0], IMAGE_SIZE // recipe.patch)
        return vit
    names = dict(enumerate(CLASSES))
    ids = {name: number for number, name in names.items()}
    resnet = transformers.ResNetConfig(**recipe.architecture, id2label=names, label2id=ids)
    return transformers.ResNetForImageClassification(resnet)


def _set_positions(embedding: Tensor, side: int, scale: float = 0.5) -> None:
    """Fill rows 1.. of a (1 + side*side, D) embedding with a 2-D sine-cosine code; row 0, the class token's, with 0."""
    quarter = embedding.shape[1] // 4
    rates = 10_000.0 ** (-torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (x, y)]
    code = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    with torch.no_grad():
        embedding.zero_()
        embedding[1:, : code.shape[1]] = scale * code


@dataclass(frozen=True)
class DenseView:
    """What the patch heads read from a model: features (B, P, D), with the image embedding where it is asked for.

    For a CLIP ViT that is the residual stream before the last block, normalised without learned scale: supervised
    there, single directions of the penultimate layer carry single concepts. For a ResNet it is the last feature map.
    """

    model: Any
    recipe: Recipe

    @property
    def width(self) -> int:
        if self.recipe.family == "vit":
            return int(self.recipe.architecture["hidden_size"])
        width = int(self.recipe.architecture["vision_cfg"]["width"])
        return width if self._is_vit else 32 * width

    @property
    def _is_vit(self) -> bool:
        return self.recipe.family == "vit" or "patch_size" in self.recipe.architecture["vision_cfg"]

    def patches(self, pixels: Tensor) -> Tensor:
        """Dense features alone; what comes after them is not computed."""
        return self._read(pixels, only=True)[0]

    def patches_and_embedding(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Dense features and the image embedding (B, E), before its normalisation."""
        patches, embedding = self._read(pixels, only=False)
        assert embedding is not None
        return patches, embedding

    def _read(self, pixels: Tensor, only: bool) -> tuple[Tensor, Tensor | None]:
        if self.recipe.family == "vit":
            return self.model(pixel_values=pixels).last_hidden_state[:, 1:], None
        if not self._is_vit:
            found = self.model.visual.forward_intermediates(pixels, indices=[4], intermediates_only=only)
            return found["image_intermediates"][0].flatten(2).transpose(1, 2), found.get("image_features")
        block = self.recipe.architecture["vision_cfg"]["layers"] - 2
        found = self.model.visual.forward_intermediates(
            pixels, indices=[block], stop_early=only, intermediates_only=only, output_fmt="NLC"
        )
        residual = found["image_intermediates"][0]
        return nn.functional.layer_norm(residual, residual.shape[-1:]), found.get("image_features")


def save_model(model: Any, recipe: Recipe, directory: Path) -> None:
    """Write fp16 weights and configuration in the format that the model's library loads from a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    preprocessing = {"mean": [MEAN] * 3, "std": [STD] * 3}
    if recipe.family == "clip":
        config = {
            "model_cfg": recipe.architecture,
            "preprocess_cfg": {**preprocessing, "interpolation": "bicubic", "resize_mode": "squash"},
        }
        (directory / openclip.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {
            name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        }
        save_file(weights, directory / "open_clip_model.safetensors", metadata={"format": "pt"})
        save_tokenizer(directory)
        return
    copy.deepcopy(model).half().save_pretrained(directory)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def load_model(directory: Path) -> Any:
    """The library's own model from such a directory, in fp32 and evaluation mode."""
    if (directory / openclip.CONFIG).exists():
        recipe = openclip.from_path(directory.name, directory)
        built = recipe.build()
        recipe.fill(built)
        return built.root.eval()
    kind = json.loads((directory / "config.json").read_text())["architectures"][0]
    # A ViTModel is saved without its pooler, which the library would otherwise fill with random weights.
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    return getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32, **options).eval()
