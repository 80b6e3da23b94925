"""The card beside a member's weights: how it was made and what was measured on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from miclip_core.world.recipes import GeneratorRecipe, Recipe, VlmRecipe


def read_card(directory: Path) -> dict[str, Any]:
    """What the folder's card.json says: name, library, recipe, sha256 of the weights, and the figures measured on the saved weights."""
    card: dict[str, Any] = json.loads((directory / "card.json").read_text())
    return card


def weights_digest(directory: Path) -> str:
    """sha256 of the one safetensors file in the folder, which ties a card to the weights it was measured on."""
    (weights,) = directory.glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_card(
    directory: Path,
    recipe: Recipe | GeneratorRecipe | VlmRecipe,
    cpu_seconds: float,
    training: dict[str, float],
    measured: dict[str, Any],
) -> None:
    """Write card.json beside the saved weights; `patch_targets` says which members agree partly because they share targets."""
    card = {
        "name": recipe.name,
        "library": recipe.library,
        "patch_targets": recipe.patch_targets,
        "weights_sha256": weights_digest(directory),
        "cpu_seconds": round(cpu_seconds),
        "measured": measured,
        "training": training,
        "recipe": dataclasses.asdict(recipe),
    }
    (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")
