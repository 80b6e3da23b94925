"""What a store is: the protocol, the rule for keys, and the way from a uri to a store."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from jobs.ahead import in_order
from schemas.errors import BadSpec, KeyMissing, UnsafeName, UsageError

if TYPE_CHECKING:
    import pyarrow.fs

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
BUDGET_S = 60.0  # how long one request may go without a usable answer; MICLIP_STORE_BUDGET_S overrides
MAX_PART_BYTES = 200  # a file name may have 255; the rest is room for the names of temporary files
MAX_KEY_BYTES = 800  # S3 allows 1024 for prefix and key together
HANDFUL = 64  # questions that a thread takes at once
Item = TypeVar("Item")
Value = TypeVar("Value")


class Store(Protocol):
    """Create-only objects under slash-separated keys; only `miclip gc` removes anything but resumable states.

    Every method raises UnsafeName for a bad key, StoreDenied, StoreMissing or StoreUnreachable when the store
    itself is the trouble. All methods may be called from several threads, after a fork, and on an unpickled copy.
    """

    uri: str
    """`/abs/path` or `s3://bucket/prefix`."""

    @property
    def retries(self) -> int:
        """How many requests of this store object had to be sent again, in this process."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that does not exist yet; atomic, and durable when it returns.

        True: this call made it. False: the key exists and was left alone; after a lost answer that object may be
        this very call's, so a caller who gets False reads it back and compares.

        Raises:
            StoreFull: no space, or a size limit; nothing is left behind.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write an object whether or not it exists, atomically; the last writer wins. Raises StoreFull."""

    def drop_state(self, key: str) -> None:
        """Remove one resumable state, if it is there. Raises UnsafeName for any other key: results are not removed so."""

    def delete(self, key: str) -> None:
        """Remove any object, if it is there; for `cluster/gc.py`, which knows that nobody reads it, and `drop_state`."""

    def get(self, key: str) -> bytes:
        """All bytes of an object. Raises KeyMissing."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`get(key)[start : start + length]`, reading no more than that. Raises KeyMissing."""

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""

    def size(self, key: str) -> int:
        """Bytes of an object. Raises KeyMissing."""

    def list(self, prefix: str) -> list[str]:
        """All keys below the folder `prefix` ("" for all), sorted; unfinished writes are never among them."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object that `list(prefix)` names, by key and in that order; on S3 for the price of the listing."""

    def arrow_fs(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The filesystem through which pyarrow reads this store, and the path of the store in it."""

    def fsspec_fs(self) -> Any | None:
        """What DuckDB's `register_filesystem` needs to read `url(key)`; None when it reads such paths by itself."""

    def url(self, key: str) -> str:
        """How a SQL engine names this object."""


def make_store(uri: str, endpoint: str | None = None) -> Store:
    """The store at an absolute or relative folder, or at `s3://bucket[/prefix]`; nothing is opened or written yet.

    endpoint: URL of an S3 service other than AWS; without it AWS_ENDPOINT_URL decides. Credentials come from the
    environment or the machine's role, never from the uri.

    Raises:
        BadSpec: the uri is neither.
    """
    if uri.startswith("s3://"):
        from cluster.stores.s3 import S3Store  # s3fs takes half a second to import

        return S3Store(uri, endpoint)
    scheme, colon, rest = uri.partition("://")
    if colon and scheme != "file":
        raise BadSpec(f"store: scheme {scheme!r} is unknown; expected a folder or s3://bucket/prefix")
    folder = rest if colon else uri
    if not folder or "\0" in folder:
        raise BadSpec(f"store: {folder!r} is not a folder; expected a path or s3://bucket/prefix")
    from cluster.stores.posix import PosixStore

    return PosixStore(os.path.abspath(Path(folder).expanduser()))


def get_budget() -> float:
    """Seconds for which one request is tried again before its store counts as away.

    Raises:
        UsageError: MICLIP_STORE_BUDGET_S is no number above 0.
    """
    text = os.environ.get("MICLIP_STORE_BUDGET_S", str(BUDGET_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"MICLIP_STORE_BUDGET_S is {text!r}; expected seconds above 0, for example {BUDGET_S:g}")
    return seconds


def get_pause(tried: int) -> float:
    """Seconds to wait after so many attempts: growing, so that a store recovers, and random, so that nobody marches."""
    return min(5.0, 0.1 * 2 ** min(tried, 10)) * random.uniform(0.5, 1.0)


def check_key(key: str) -> str:
    """The key itself if it is safe: relative, `/` between its parts, no part empty, hidden, `..` or over-long.

    Raises:
        UnsafeName: anything else; nothing was written.
    """
    problem = _key_problem(key)
    if problem:
        raise UnsafeName(f"key {key!r}: {problem}; expected parts like tables/x/part-00000-0.parquet")
    return key


def check_prefix(prefix: str) -> str:
    """A folder of keys without its trailing slash; "" is the whole store. Raises UnsafeName like `check_key`."""
    prefix = prefix.removesuffix("/")
    return check_key(prefix) if prefix else ""


def _key_problem(key: str) -> str:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        return "it is not valid unicode"
    if _CONTROL.search(key):
        return "it has a control character"
    if "\\" in key:
        return "it has a backslash"
    parts = key.split("/")
    if "" in parts:
        return "it is absolute, empty or has an empty part"
    if hidden := [part for part in parts if part.startswith(".")]:
        return f"part {hidden[0]!r} starts with a dot"
    if len(encoded) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"it is longer than {MAX_KEY_BYTES} bytes, or a part longer than {MAX_PART_BYTES}"
    return ""


def create_unique(store: Store, key: str, data: bytes) -> bool:
    """Create an object whose bytes nobody else writes; True also where this very call made it and only the answer was lost.

    Raises:
        StoreFull: as `Store.create`.
    """
    if store.create(key, data):
        return True
    try:
        return store.get(key) == data
    except KeyMissing:
        return False


def prefetch(read: Callable[[Item], Value], items: Iterable[Item], width: int = 16) -> Iterator[tuple[Item, Value]]:
    """(item, read(item)) in the order of `items`, with at most `width` reads ahead of the consumer, in threads."""
    return in_order(lambda item: (item, read(item)), items, threads=width, ahead=width)


def ask_many(ask: Callable[[Item], Value], items: Iterable[Item], width: int = 16) -> Iterator[tuple[Item, Value]]:
    """(item, ask(item)) in the order of `items`, where each answer is small: `width` threads take them by handfuls.

    Handing one question to a thread takes longer than a local store needs to answer it.
    """
    items = list(items)
    size = max(1, min(HANDFUL, len(items) // (4 * width)))
    handfuls = [items[i : i + size] for i in range(0, len(items), size)]
    for asked, answers in prefetch(lambda handful: [ask(item) for item in handful], handfuls, width):
        yield from zip(asked, answers)


def get_many(store: Store, keys: Iterable[str], width: int = 16) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) in the order of `keys`; at most `width` objects are in flight or waiting. Raises like `get`."""
    return prefetch(store.get, keys, width)
