"""What tells one state of a model's files from another; loads no torch, so that planning can ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def weights_sha256(files: Sequence[Path]) -> str:
    """sha256 of a checkpoint's bytes; of the names and digests of its files where there are several."""
    digests = {path.name: _file_sha256(path) for path in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def identity_sha256(weights: str, settings: Mapping[str, Any], tokeniser: Sequence[Path]) -> str:
    """sha256 over all that decides what a model gives: the digest of its weights, its configuration, its tokeniser."""
    files = {path.name: _file_sha256(path) for path in tokeniser}
    identity = {"weights": weights, "settings": settings, "tokeniser": files}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
