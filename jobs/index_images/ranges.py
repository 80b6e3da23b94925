"""A remote or local file as a seekable Python file that reads only the ranges that are asked for."""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from jobs.protocol import FileInfo, Files

BUFFER = 4 << 20  # bytes per request when reading on


class _Ranges(io.RawIOBase):
    def __init__(self, files: Files, file: FileInfo) -> None:
        self._files, self._file, self._at = files, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        length = min(len(target), self._file.size - self._at)
        if length <= 0:
            return 0
        data = self._files.read_range(self._file.uri, self._at, length)
        target[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_ranges(files: Files, file: FileInfo) -> BinaryIO:
    """A buffered reader over `read_range`; memory stays at BUFFER bytes and what the caller keeps."""
    return cast(BinaryIO, io.BufferedReader(_Ranges(files, file), BUFFER))
