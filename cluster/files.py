"""The user's own files, which are read and never written: listing and reading local paths and `s3://` uris."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.protocol import FileInfo
from schemas.errors import BadRef, KeyMissing, StoreDenied, StoreUnreachable, UnsafeName

if TYPE_CHECKING:
    from cluster.stores.s3 import S3Client

_MAGIC = re.compile(r"[*?\[]")


class Files:
    """Reads files by uri; may be used from several threads, after a fork, and unpickled in another process."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._client: S3Client | None = None

    def __reduce__(self) -> tuple[type[Files], tuple[str | None]]:
        return Files, (self._endpoint,)

    def read(self, uri: str) -> bytes:
        """All bytes of a file. Raises KeyMissing."""
        if uri.startswith("s3://"):
            return self._s3.get(*_bucket_and_key(uri))
        with _local(uri), open(uri, "rb") as file:
            return file.read()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """`read(uri)[start : start + length]`. Raises KeyMissing."""
        if uri.startswith("s3://"):
            return self._s3.get_range(*_bucket_and_key(uri), start, length)
        with _local(uri), open(uri, "rb") as file:
            file.seek(start)
            return file.read(length)

    @property
    def _s3(self) -> S3Client:
        if self._client is None:
            from cluster.stores.s3 import S3Client  # s3fs takes half a second to import

            self._client = S3Client(self._endpoint)
        return self._client

    def _list_s3(self, uri: str) -> list[FileInfo]:
        bucket, key = _bucket_and_key(uri)
        found = self._s3.list(bucket, f"{key}/" if key else "")
        if not found and key:
            try:
                found = [self._s3.head(bucket, key)]
            except KeyMissing:
                return []
        below = len(key)
        return [
            FileInfo(f"s3://{bucket}/{item.key}", item.size, item.etag)
            for item in found
            if not item.key.endswith("/") and "/." not in f"/{item.key[below:].lstrip('/')}"
        ]

    def list(self, location: str) -> list[FileInfo]:
        """The files below a folder or prefix, or matching a glob, sorted by uri; hidden ones are left out.

        location: an absolute path or `s3://bucket/key`, of one file, a folder, or a pattern in which `*` and `?` stay
        within a name, `[..]` is a set and `**/` is any number of folders. Links to files and folders are followed,
        each real folder once, so that loops end. The stamp is the mtime in ns, or the etag.

        Raises:
            KeyMissing: a local path, or the target of a link, that does not exist. BadRef: not an absolute path.
        """
        base, pattern = _split_glob(location)
        found = self._list_s3(base) if base.startswith("s3://") else _list_local(base)
        if pattern is not None:
            found = [file for file in found if pattern.fullmatch(file.uri)]
        return sorted(found)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    from cluster.stores.s3 import split_s3

    return split_s3(uri)


def _split_glob(where: str) -> tuple[str, re.Pattern[str] | None]:
    """The folder before the first wildcard, and the pattern for whole uris; no pattern when there is no wildcard."""
    is_s3 = where.startswith("s3://")
    if not is_s3 and not os.path.isabs(where):
        raise BadRef(f"files {where!r}: expected an absolute path or s3://bucket/prefix")
    magic = _MAGIC.search(where)
    if magic is None or (not is_s3 and os.path.lexists(where)):
        return where.rstrip("/") or "/", None
    base = where[: magic.start()].rpartition("/")[0]
    return base or "/", re.compile(_regex(where), re.DOTALL)


def _regex(pattern: str) -> str:
    """A glob as a regular expression over whole paths."""
    tokens = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if len(token) > 1 and token.startswith("["):
            inside = token[1:-1].replace("\\", r"\\")
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        else:
            out.append(tokens.get(token) or re.escape(token))
    return "".join(out)


def _list_local(base: str) -> list[FileInfo]:
    with _local(base):
        if not os.path.isdir(base):
            return [_found(base)]
        return list(_walk(base, set()))


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[FileInfo]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        elif entry.is_file() or entry.is_symlink():
            yield _found(entry.path)


def _found(path: str) -> FileInfo:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UnsafeName(f"file {path!r}: its name is not valid UTF-8, so no table can hold it; rename it") from None
    with _local(path):
        status = os.stat(path)
    return FileInfo(path, status.st_size, str(status.st_mtime_ns))


@contextmanager
def _local(path: str) -> Iterator[None]:
    """Turn what the kernel says about a user's file into an error that names it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise KeyMissing(f"{path} is not a file or folder, or a link to nothing") from error
    except PermissionError as error:
        raise StoreDenied(f"{path}: {error.strerror}; this user may not read it") from error
    except OSError as error:
        raise StoreUnreachable(f"{path}: {error.strerror or error}; the file system failed") from error
