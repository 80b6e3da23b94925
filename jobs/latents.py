"""The latents of an SAE as a stage of features describes them, and which of them are explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.protocol import Inputs
from schemas.errors import BadUnits


@dataclass(frozen=True)
class Feature:
    """One latent: p90 of its active codes, None if it has none, and the length of its decoder row."""

    number: int
    is_active: bool
    p90: float | None
    decoder_norm: float


def read_features(inputs: Inputs, stage: str) -> list[Feature]:
    """All latents of an SAE, by number."""
    columns = ("feature", "images_active", "p90", "decoder_norm")
    rows = [row for batch in inputs.table(stage, "sae_features", columns) for row in batch.to_pylist()]
    found = (Feature(row["feature"], row["images_active"] > 0, row["p90"], row["decoder_norm"]) for row in rows)
    return sorted(found, key=lambda feature: feature.number)


def choose(features: Sequence[Feature], wanted: Sequence[int], most: int | None) -> list[Feature]:
    """Those that are wanted, dead ones too, else all that are active; the first `most` of them.

    Raises:
        BadUnits: one is wanted that there is not.
    """
    if beyond := [number for number in wanted if number >= len(features)]:
        raise BadUnits(f"features: {beyond[0]}, but this SAE has {len(features)}: 0 to {len(features) - 1}")
    found = [features[number] for number in wanted] if wanted else [one for one in features if one.is_active]
    return found[:most]


def choose_validation(features: Sequence[Feature], most: int) -> list[Feature]:
    """Those on which alphas are compared: the first `most` active ones, and never more than half of these, so that some are
    left to score texts on; one if there is but one."""
    active = choose(features, (), None)
    return active[: max(1, min(most, len(active) // 2))]
