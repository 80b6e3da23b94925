"""Checks of a store that `doctor` and the preflight of a run make, by really using it."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cluster.stores.base import Store
from schemas.errors import MiclipError, StoreDenied

RACERS = 16
WRITABLE = "probe/writable"
"""One object that every run writes anew, so that they do not become many."""
TRIES = 3
"""So often it is written where others, who may do so too, were faster."""
_WRITTEN = re.compile(rb"miclip can write here( [0-9a-f]{32})?\n")


class Check(NamedTuple):
    """One thing a store must do, whether it did, and what was seen."""

    check: str
    ok: bool
    detail: str


def check_writable(store: Store) -> None:
    """Make sure, with one small object, that this process may write to the store and read it back.

    Raises:
        StoreDenied, StoreMissing, StoreUnreachable, StoreFull: it may not; the message says why.
    """
    found = set()
    for _ in range(TRIES):
        body = b"miclip can write here %s\n" % uuid.uuid4().hex.encode()  # or what was there would do for a lost write
        store.replace(WRITABLE, body)
        held = store.get(WRITABLE)
        if held == body:
            return
        found.add(held)
    if len(found) == 1 or not all(map(_WRITTEN.fullmatch, found)):  # else others write it at the same time
        raise StoreDenied(
            f"{store.uri}: {WRITABLE} was written and holds other bytes now; this store cannot be trusted"
        )


def probe(store: Store) -> list[Check]:
    """Write a handful of small objects under `probe/` and say what the store can do; failed checks do not raise."""
    folder = f"probe/{uuid.uuid4().hex}"
    checks: list[tuple[str, Callable[[Store, str], tuple[bool, str]]]] = [
        ("write and read back", _read_back),
        ("range read", _range_read),
        ("list after write", _listed),
        ("create-only race", _race),
        ("latency", _latency),
    ]
    results = []
    for name, check in checks:
        try:
            results.append(Check(name, *check(store, folder)))
        except MiclipError as error:
            results.append(Check(name, False, str(error)))
            break  # what is denied or away now will be so for the next check too
    return results


def _read_back(store: Store, folder: str) -> tuple[bool, str]:
    body = bytes(range(256)) * 16
    store.create(f"{folder}/object", body)
    same = store.get(f"{folder}/object") == body and store.size(f"{folder}/object") == len(body)
    return same, f"{len(body)} bytes came back {'the same' if same else 'different'}"


def _range_read(store: Store, folder: str) -> tuple[bool, str]:
    got = store.get_range(f"{folder}/object", 250, 10)
    return got == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3]), f"10 bytes asked at 250, {len(got)} came"


def _listed(store: Store, folder: str) -> tuple[bool, str]:
    found = store.list(folder)
    return found == [f"{folder}/object"], f"1 object written, {len(found)} listed at once"


def _race(store: Store, folder: str) -> tuple[bool, str]:
    start = threading.Barrier(RACERS)

    def enter(number: int) -> bool:
        start.wait()
        return store.create(f"{folder}/race", b"racer %d" % number)

    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(enter, range(RACERS)))
    kept = store.get(f"{folder}/race")
    if sum(won) == 1 and kept == b"racer %d" % won.index(True):
        return True, f"{RACERS} created one key at once, exactly 1 won and its bytes stayed"
    return False, (
        f"{RACERS} created one key at once, {sum(won)} won: this store does not keep create-only writes, "
        "so never let two runs use it at the same time"
    )


def _latency(store: Store, folder: str) -> tuple[bool, str]:
    begun = time.perf_counter()
    for number in range(5):
        store.create(f"{folder}/small-{number}", b"x" * 1000)
    written = time.perf_counter()
    for number in range(5):
        store.get(f"{folder}/small-{number}")
    read = time.perf_counter()
    return True, f"{(written - begun) * 200:.1f} ms a write, {(read - written) * 200:.1f} ms a read of 1 kB"
