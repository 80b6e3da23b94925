"""The card beside a member's weights: how it was made and what was measured on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from miclip_core.world.recipes import Recipe


def read_card(directory: Path) -> dict[str, Any]:
    """What the folder's card.json says: name, library, seed, recipe, and the figures measured on the saved weights."""
    card: dict[str, Any] = json.loads((directory / "card.json").read_text())
    return card


def write_card(
    directory: Path, recipe: Recipe, cpu_seconds: float, training: dict[str, float], measured: dict[str, Any]
) -> None:
    """Write card.json beside the weights; `patch_targets` says which members agree partly because they share targets."""
    card = {
        "name": recipe.name,
        "library": "open_clip" if recipe.family == "clip" else "transformers",
        "patch_targets": recipe.dense is not None,
        "cpu_seconds": round(cpu_seconds),
        "measured": measured,
        "training": training,
        "recipe": dataclasses.asdict(recipe),
    }
    (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")
