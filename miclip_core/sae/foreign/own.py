"""Our own format as a file of its own: `sae.safetensors`, the bytes that stages publish."""

from __future__ import annotations

from pathlib import Path

from miclip_core.sae.foreign.files import find
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae, save_sae

WEIGHTS = "sae.safetensors"


def load(path: Path) -> Sae:
    """Read such a file, or that of a folder. Raises: BadRef, BadSae."""
    return load_sae(find(path, WEIGHTS).read_bytes())


def save(sae: Sae, folder: Path) -> None:
    """Write such a file."""
    (folder / WEIGHTS).write_bytes(save_sae(sae))
