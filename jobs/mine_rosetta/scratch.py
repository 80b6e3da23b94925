"""Maps that a node keeps on its disk while pairs of models are compared: files that may go or be damaged at any time."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 64
"""Rows of the index in one file."""
_SUFFIX, _PARTIAL = ".maps", ".partial"
_MAGIC = b"miclip1\n"
_FOOT = 8 + len(_MAGIC)
"""At the end of a file: the length of what is said of its numbers, and the magic."""
_LOST_AFTER = 3600.0
"""Seconds after which a file that nobody goes on writing is taken for lost."""


class BadImage(NamedTuple):
    """An image that gave no maps: its row of `bad_inputs`."""

    image_index: int
    image_id: str
    uri: str
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Raw:
    """What the sites of one member gave for some rows of an index, ordered by image_index.

    images: (image_index, image_id) of the B that can be used. values: float32 [B, M], per grid positions x channels,
    row-major. problems: the images that cannot be used.
    """

    images: tuple[tuple[int, str], ...]
    values: Tensor
    problems: tuple[BadImage, ...] = ()


class Scratch:
    """Blocks of BLOCK_ROWS rows of an index by (key, block number), in files that appear whole by one rename.

    Whatever cannot be read back, or cannot be written, is as if it had never been there. Together the files stay below
    `limit` bytes: those not used for longest go first, but never one of a key that is being read or written here.
    """

    def __init__(self, limit: float, root: Path | None = None) -> None:
        self._limit = limit
        self._root = root if root is not None else scratch_folder()
        self._since = _start_of_machine()
        self._in_use: set[str] = set()

    def room_for(self, key: str, needed: int) -> bool:
        """Whether so many bytes more can be kept for a key; drops what others have not used for longest."""
        self._in_use.add(self._folder(key))
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path(key, 0).parent.mkdir(exist_ok=True)
            if self._root.stat().st_uid != os.getuid():
                return False
            return self._make_room(needed)
        except OSError:
            return False

    def has(self, key: str, block: int, numbers: int) -> bool:
        """Whether a block of images with so many numbers each is there and whole."""
        with self._opened(key, block, numbers) as found:
            return found is not None

    def read(self, key: str, block: int, numbers: int, within: tuple[int, int]) -> Raw | None:
        """The rows [start, stop) of a block, or None if it is not there."""
        start, stop = within
        with self._opened(key, block, numbers) as found:
            if found is None:
                return None
            file, said = found
            inside = [i for i, (index, _) in enumerate(said["images"]) if start <= index < stop]
            values = torch.empty(len(inside), numbers)
            if inside and not _fill(values, file, 4 * numbers * inside[0]):
                return None
            images = tuple((int(index), str(name)) for index, name in (said["images"][i] for i in inside))
            problems = tuple(BadImage(*bad) for bad in said["problems"] if start <= bad[0] < stop)
            return Raw(images, values, problems)

    @contextmanager
    def writing(self, key: str, block: int) -> Iterator[BlockFile]:
        """A block to be written; it is there when this ends without an error, and not before."""
        path = self._path(key, block)
        partial = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}{_PARTIAL}")
        try:
            with ExitStack() as stack:
                file = None
                with suppress(OSError):
                    # nothing is left to be written when it is closed, which a full disk would refuse
                    file = stack.enter_context(open(partial, "wb", buffering=0))
                block_file = BlockFile(file)
                yield block_file
                if block_file.finish() and self.room_for(key, 0):
                    with suppress(OSError):
                        partial.rename(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, key: str, block: int, numbers: int) -> Iterator[tuple[IO[bytes], dict[str, Any]] | None]:
        self._in_use.add(self._folder(key))
        path = self._path(key, block)
        with ExitStack() as stack:
            file, said = None, None
            with suppress(OSError):
                file = stack.enter_context(open(path, "rb"))
                said = _read_foot(file, numbers)
                os.utime(path)
            yield None if file is None or said is None else (file, said)

    def _path(self, key: str, block: int) -> Path:
        return self._root / self._folder(key) / f"{block:08d}{_SUFFIX}"

    def _folder(self, key: str) -> str:
        """What was in memory when a machine stopped may lack on its disk, so each start of it has folders of its own."""
        return f"{key}-{self._since}"

    def _make_room(self, needed: int) -> bool:
        files = []
        for path in self._root.glob("*/*"):
            with suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        held, now = sum(size for _, size, _ in files), time.time()
        for used, size, path in sorted(files):
            lost = path.suffix == _PARTIAL and now - used > _LOST_AFTER
            others = path.suffix == _SUFFIX and path.parent.name not in self._in_use
            if lost or (others and held + needed > self._limit):
                with suppress(OSError):
                    path.unlink()
                    held -= size
        return held + needed <= self._limit


class BlockFile:
    """A block on its way to the disk; trouble with the disk is told by `finish` alone."""

    def __init__(self, file: IO[bytes] | None) -> None:
        """file: None if it could not even be opened."""
        self._file = file
        self._is_whole = file is not None
        self._images: list[tuple[int, str]] = []
        self._problems: list[BadImage] = []

    def add(self, images: Sequence[tuple[int, str]], values_BM: Tensor) -> None:
        """The next images."""
        self._images += images
        self._write(values_BM.cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)

    def set_aside(self, problems: Sequence[BadImage]) -> None:
        """Images that gave nothing."""
        self._problems += problems

    def finish(self) -> bool:
        """Say behind the numbers what they are; whether all could be written."""
        said = json.dumps({"images": self._images, "problems": self._problems}).encode()
        self._write(said + len(said).to_bytes(8, "little") + _MAGIC)
        return self._is_whole

    def _write(self, data: bytes | memoryview) -> None:
        if self._file is None or not self._is_whole:
            return
        left = memoryview(data)
        try:
            while len(left):
                left = left[self._file.write(left) :]  # less than was asked for, where a disk is nearly full
        except OSError:
            self._is_whole = False


def scratch_folder() -> Path:
    """Where this node keeps maps: below MICLIP_CACHE, else in a temporary folder of this user."""
    root = os.environ.get("MICLIP_CACHE")
    return Path(root) / "miclip-maps" if root else Path(tempfile.gettempdir()) / f"miclip-maps-{os.getuid()}"


def _start_of_machine() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return "now"


def _fill(values: Tensor, file: IO[bytes], start: int) -> bool:
    """Whether all of `values` could be read from there on."""
    with suppress(OSError):
        file.seek(start)
        return bool(file.readinto(values.numpy()) == 4 * values.numel())  # type: ignore[attr-defined]
    return False


def _read_foot(file: IO[bytes], numbers: int) -> dict[str, Any] | None:
    """What is said of the numbers of a file; None if it is not one of ours, not whole, or of other numbers."""
    size = os.fstat(file.fileno()).st_size
    try:
        file.seek(max(0, size - _FOOT))
        foot = file.read(_FOOT)
        length = int.from_bytes(foot[:8], "little")
        if foot[8:] != _MAGIC or length > size - _FOOT:
            return None
        file.seek(size - _FOOT - length)
        said: dict[str, Any] = json.loads(file.read(length))
        return said if size == 4 * numbers * len(said["images"]) + length + _FOOT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
