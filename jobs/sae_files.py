"""SAEs as files: the name under which stages publish weights, and the identity of files wherever they are; loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = "sae.safetensors"
"""The artifact of every stage whose output is `sae`, in our own format."""


def hash_tree(path: Path) -> str:
    """sha256 over the names and contents of a file, or of every file below a folder: not over where it is."""
    hasher = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix() if file != path else ""
        with open(file, "rb") as content:
            hasher.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    return hasher.hexdigest()
