"""Checkpoints as local paths, fetched once per node however many workers ask."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.protocol import FileInfo, Files
from schemas.errors import UnknownModel, UnsafeName


def node_cache() -> Path:
    """Where this node keeps fetched checkpoints: MICLIP_CACHE, else ~/.cache/miclip."""
    return Path(os.environ.get("MICLIP_CACHE") or Path.home() / ".cache" / "miclip")


def fetch_to_node(files: Files, location: str) -> Path:
    """The local path of `file:/...` or `s3://...`; what is remote is fetched whole, then shown by one rename.

    Raises:
        UnknownModel: nothing is there.
    """
    if location.startswith("file:"):
        path = Path(location.removeprefix("file:"))
        if not path.exists():
            raise UnknownModel(f"{location}: nothing at {path}; expected a folder with weights and config, or a file")
        return path
    found = files.list(location)
    if not found:
        raise UnknownModel(f"{location}: nothing there; expected a prefix with weights and config, or a weights file")
    key = hashlib.sha256(repr([(f.uri, f.size, f.stamp) for f in found]).encode()).hexdigest()[:20]
    target = node_cache() / "checkpoints" / key
    with _only_one(target):
        if not target.exists():
            _fetch(files, location, found, target)
    single = target / Path(location).name
    return single if len(found) == 1 and found[0].uri == location else target


def _fetch(files: Files, location: str, found: list[FileInfo], target: Path) -> None:
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        for info in found:
            inside = info.uri.removeprefix(location.rstrip("/")).lstrip("/") or Path(location).name
            path = (partial / inside).resolve()
            if not path.is_relative_to(partial.resolve()):
                raise UnsafeName(f"{info.uri} would be written outside the cache")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.read(info.uri))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Workers of one node wait for each other, so that a checkpoint travels once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
