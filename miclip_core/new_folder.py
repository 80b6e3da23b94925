"""Writes a folder whole or not at all, and never over something that is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UsageError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes its name by one rename if nothing is raised; else nothing is left.

    Raises:
        UsageError: the folder is there already, its parent is not, or nothing may be written there.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is there already; nothing was written: name a new folder")
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent} is no folder; create it first")
    try:
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; choose a folder that you may write to") from error
    try:
        yield partial
        partial.chmod(0o755)  # as any new folder; a temporary one is its owner's alone
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
