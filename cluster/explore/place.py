"""Where pages are written: a folder or a prefix of a bucket, of files under slash-separated names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Protocol

from schemas.errors import KeyMissing, UsageError

if TYPE_CHECKING:
    from cluster.stores.s3 import S3Client

TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json", ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8",
}  # fmt: skip
"""Of files that a later renewal may change; parts never do."""


class Told(NamedTuple):
    """What a server says of a file besides its bytes."""

    content_type: str
    cache_control: str


def headers_of(name: str) -> Told:
    """What a browser is to be told of a file: its type, and whether it may be kept without asking again."""
    suffix = PurePosixPath(name).suffix
    if suffix in TYPES:
        return Told(TYPES[suffix], "no-cache")
    return Told("application/octet-stream", "max-age=31536000, immutable")


class Place(Protocol):
    """Files of pages. Every method raises a MiclipError that names the place if it cannot be used."""

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that it is, if it is one."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by name, hidden ones left out; nothing if the place is not there yet."""

    def read(self, name: str) -> bytes | None:
        """A file, or None if it is not there."""

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one step, so that a page that is open never reads half of it."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def make_place(to: str) -> Place:
    """The place at a folder or at `s3://bucket/prefix`; nothing is opened or written yet.

    Raises:
        UsageError: it is neither. BadSpec: no name of a bucket, or something that looks like credentials in it.
    """
    scheme, colon, _ = to.partition("://")
    if not colon:
        return Folder(Path(to))
    if scheme != "s3":
        raise UsageError(f"pages at {to}: expected a folder or s3://bucket/prefix")
    from cluster.stores.s3 import S3Client, split_s3  # s3fs takes half a second to import

    return Bucket(*split_s3(to), S3Client())


class Folder:
    """A folder of this machine. Every method raises UsageError if it, or a file of it, cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by name, hidden ones left out; nothing if the folder is not there.

        What somebody else removes meanwhile is skipped; a folder below that cannot be listed is not taken for an empty one.
        """
        found = {}
        with self._usable():
            for folder, below, files in os.walk(self.folder, onerror=_unless_gone):
                below[:] = [name for name in below if not name.startswith(".")]
                for path in (Path(folder, name) for name in files if not name.startswith(".")):
                    try:
                        found[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
                    except FileNotFoundError:
                        continue
        return found

    def read(self, name: str) -> bytes | None:
        """A file, or None if it is not there."""
        with self._usable():
            try:
                return (self.folder / name).read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one step."""
        path = self.folder / name
        half = path.with_name(f".{path.name}.{os.getpid()}")  # two may write one name at the same time
        with self._usable():
            path.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(data)
            half.replace(path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._usable():
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise UsageError(
                f"pages at {self.folder}: {where}{error.strerror or error}; name a folder that can be read and written"
            ) from None


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


class Bucket:
    """A prefix of a bucket, which a browser reads through whatever serves it; credentials and endpoint as for stores."""

    folder = None

    def __init__(self, bucket: str, prefix: str, client: S3Client) -> None:
        self._bucket, self._client = bucket, client
        self._prefix = f"{prefix}/" if prefix else ""

    def sizes(self) -> dict[str, int]:
        """Bytes of every object by name below the prefix, hidden ones left out."""
        found = self._client.list(self._bucket, self._prefix)
        names = ((one.key.removeprefix(self._prefix), one.size) for one in found if not one.key.endswith("/"))
        return {name: size for name, size in names if not any(part.startswith(".") for part in name.split("/"))}

    def read(self, name: str) -> bytes | None:
        """An object, or None if it is not there."""
        try:
            return self._client.get(self._bucket, self._prefix + name)
        except KeyMissing:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write or replace an object with its type; S3 does so in one step."""
        told = headers_of(name)
        headers = {"ContentType": told.content_type, "CacheControl": told.cache_control}
        self._client.put(self._bucket, self._prefix + name, data, create=False, headers=headers)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._client.remove(self._bucket, self._prefix + name)
