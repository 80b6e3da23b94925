"""One SAE, of a stage or of another library's files, written as files of a library."""

from __future__ import annotations

from pathlib import Path

from miclip_core.sae.foreign import load_foreign, save_foreign
from miclip_core.sae.weights import load_sae
from schemas.sae import SaeConfig


def export_sae(source: str, found: bytes | Path, format: str, folder: Path) -> SaeConfig:
    """Write the SAE as a new folder, whole or not at all; returns what it is.

    source: `sae` with the published bytes, or a foreign format with a local path.

    Raises:
        BadRef, BadSae, UnsafeCheckpoint, UnsupportedSae: as `load_foreign` and `save_foreign`.
        UsageError: the folder is there already, or cannot be made.
    """
    sae = load_sae(found) if isinstance(found, bytes) else load_foreign(source, found)
    save_foreign(format, sae, folder)
    return sae.config
