"""Files and folders that specs name: their identity wherever they are, and opening those that were planned with; loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jobs.protocol import Inputs
from schemas.errors import WeightsMissing


def hash_tree(path: Path) -> str:
    """sha256 over the names and contents of a file, or of every file below a folder: not over where it is."""
    hasher = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix() if file != path else ""
        with open(file, "rb") as content:
            hasher.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    return hasher.hexdigest()


def open_planned(inputs: Inputs, location: str, sha256: str) -> Path:
    """The local path of a file or folder whose `hash_tree` was this at planning. location: `s3://...` or a path, also after `file:`.

    Raises:
        WeightsMissing: its files are others now.
    """
    path = inputs.local_path(location if "://" in location else f"file:{location.removeprefix('file:')}")
    if (found := hash_tree(path)) != sha256:
        raise WeightsMissing(
            f"{location}: its files changed since the run was planned (expected sha256 {sha256[:12]}..., found "
            f"{found[:12]}...); run the spec again"
        )
    return path
