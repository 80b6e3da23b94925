"""A store in a folder of a POSIX file system: temporary file, fsync, hard link."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.stores.base import check_key, check_prefix, get_budget, get_pause
from schemas.errors import KeyMissing, StoreDenied, StoreFull, StoreMissing, StoreUnreachable, UnsafeName
from schemas.layout import check_state

if TYPE_CHECKING:
    import pyarrow.fs

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}
_STUMBLES = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EREMOTEIO}  # for a moment
_TRIES = 20
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
Call = TypeVar("Call", bound=Callable[..., Any])


def _patient(call: Call) -> Call:
    """Repeat a call of a store while its file system stumbles, within the budget; everything else is said at once.

    Once a budget is spent every call has one attempt, until one succeeds.
    """

    @functools.wraps(call)
    def patiently(store: PosixStore, *arguments: Any) -> Any:
        begun = time.monotonic()
        for tried in itertools.count(1):
            try:
                answer = call(store, *arguments)
                store.given_up = False
                return answer
            except StoreUnreachable as error:
                if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in _STUMBLES):
                    raise
                pause = get_pause(tried)
                if store.given_up or time.monotonic() - begun + pause > get_budget():
                    store.given_up = True
                    raise
            store.retries += 1
            time.sleep(pause)

    return patiently  # type: ignore[return-value]


class PosixStore:
    """Objects are files below one root folder; see `cluster.stores.base.Store` for what the methods promise."""

    def __init__(self, root: str) -> None:
        self.retries = 0
        self.given_up = False
        self.uri = root
        self._root = os.path.realpath(root)

    def __repr__(self) -> str:
        return f"PosixStore({self.uri!r})"

    @_patient
    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _clear_errors(path, len(data)):
            if os.path.lexists(path):
                return False
            with self._written(path, data) as temporary:
                created = _link(temporary, path)
            _sync_folder(os.path.dirname(path))
            return created

    @_patient
    def replace(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _clear_errors(path, len(data)):
            with self._written(path, data) as temporary:
                os.replace(temporary, path)
            _sync_folder(os.path.dirname(path))

    def drop_state(self, key: str) -> None:
        check_state(key)
        self.delete(key)

    @_patient
    def delete(self, key: str) -> None:
        path = self._path(key)
        with _clear_errors(path, 0):
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._remove_empty(os.path.dirname(path))

    def _remove_empty(self, folder: str) -> None:
        """Remove a folder, and those above it, that nothing is left in: people look at them."""
        while folder != self._root:
            try:
                os.rmdir(folder)
            except OSError:  # it holds something; the kernel decides, so that nothing new is lost
                return
            folder = os.path.dirname(folder)

    @_patient
    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._reading(key, path), open(path, "rb") as file:
            return file.read()

    @_patient
    def get_range(self, key: str, start: int, length: int) -> bytes:
        path = self._path(key)
        with self._reading(key, path), open(path, "rb") as file:
            file.seek(start)
            return file.read(length)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except KeyMissing:
            return False
        return True

    @_patient
    def size(self, key: str) -> int:
        path = self._path(key)
        with self._reading(key, path):
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise IsADirectoryError
            return found.st_size

    @_patient
    def list(self, prefix: str) -> list[str]:
        prefix = check_prefix(prefix)
        top = self._path(prefix) if prefix else self._root
        with _clear_errors(top, 0):
            skip = len(self._root.rstrip("/")) + 1
            return sorted(path[skip:] for path in _files_below(top))

    def sizes(self, prefix: str) -> dict[str, int]:
        found = {}
        for key in self.list(prefix):
            with suppress(KeyMissing):  # it went since
                found[key] = self.size(key)
        return found

    def arrow_fs(self) -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), self._root

    def fsspec_fs(self) -> None:
        return None

    def url(self, key: str) -> str:
        return self._path(key)

    def _path(self, key: str) -> str:
        """The file of a key, after making sure that no symlink on the way leads out of the store."""
        path = os.path.join(self._root, check_key(key))
        if os.path.commonpath([self._root, os.path.realpath(path)]) != self._root:
            raise UnsafeName(f"key {key!r}: a symlink under {self.uri} leads out of the store; remove that link")
        return path

    @contextmanager
    def _reading(self, key: str, path: str) -> Iterator[None]:
        with _clear_errors(path, 0):
            try:
                yield
            except _ABSENT:
                raise KeyMissing(f"{self.uri} has no object {key!r}") from None

    @contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[str]:
        """A durable temporary file beside `path` holding `data`; gone afterwards, whatever happens."""
        folder = os.path.dirname(path)
        if os.path.exists(self._root) and not os.path.isdir(self._root):
            raise StoreMissing(f"store {self.uri} is not a folder; choose another place")
        temporary = os.path.join(folder, f".tmp-{uuid.uuid4().hex}")
        try:
            descriptor = _open_new(temporary)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _open_new(path: str) -> int:
    """Make a file that is not there, and its folder, which others may be removing because it is empty."""
    for left in reversed(range(_TRIES)):
        try:
            _make_folder(os.path.dirname(path))
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError("unreachable")


def _link(temporary: str, path: str) -> bool:
    """Give the finished file its name unless that is taken; whether we did."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return os.stat(temporary).st_nlink == 2  # over NFS the first answer may be lost and the link still ours
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StoreDenied(
                f"{path}: this file system makes no hard links ({error.strerror}), which create-only writing needs; "
                "put the store on another file system or on S3"
            ) from error
        raise
    return True


def _make_folder(folder: str) -> None:
    """Make a folder and its parents so that each new entry is durable."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # it has been removed since, with what was in it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_below(folder: str) -> Iterator[str]:
    """Every file below, hidden ones and links to elsewhere left out; folders behind links are not entered."""
    with suppress(*_ABSENT), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path


@contextmanager
def _clear_errors(path: str, needed: int) -> Iterator[None]:
    """Turn what the kernel says into an error that names the path and what to do; `needed` is in bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(
                f"{path}: {error.strerror}; {needed:,} bytes were needed and nothing was kept; free some space there"
            ) from error
        if error.errno in _DENIED:
            raise StoreDenied(f"{path}: {error.strerror}; the store must be a folder this user may use") from error
        if isinstance(error, FileNotFoundError):
            raise StoreMissing(f"{path}: the folder cannot be made or went away while writing") from error
        if isinstance(error, NotADirectoryError):
            raise UnsafeName(
                f"{path}: a part of this key is itself an object here, so nothing can lie below"
            ) from error
        raise StoreUnreachable(f"{path}: {error.strerror or error}; the file system failed") from error
