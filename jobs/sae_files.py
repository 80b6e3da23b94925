"""The names of SAEs that stages made: of the file with the weights, and in tables; loads no torch."""

from __future__ import annotations

WEIGHTS = "sae.safetensors"
"""The artifact of every stage whose output is `sae`, in our own format."""


def sae_ref(stage: str | None) -> str | None:
    """`sae:STAGE`, as column `sae` has it; None where there is no SAE."""
    return None if stage is None else f"sae:{stage}"
