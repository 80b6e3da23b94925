"""Numbered resumable states of a long shard; the newest one that is there whole wins, and few are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from cluster.parquet import sha256
from cluster.stores.base import Store
from schemas import layout
from schemas.errors import DamagedPart, KeyMissing

KEPT = 2
"""States of one stage that stay: the newest, and one before it in case the newest is damaged."""


def newest_step(store: Store, stage: str) -> int | None:
    """The step of the newest state that some shard of a stage keeps, for people; None if there is none."""
    names = (key.rsplit("/", 1)[1] for key in store.list(layout.keep_prefix(stage)))
    return max((int(name) for name in names if name.isdigit()), default=None)


class StoreKeep:
    """The `Keep` port of `jobs/protocol.py`: pieces first, then one small list of them, so that half a state is none."""

    def __init__(self, store: Store, shard: int) -> None:
        self._store = store
        self._shard = shard
        self._used: set[str] = set()
        self.resumed = False
        """Whether some stage went on from a state of an earlier try."""

    def latest(self, stage: str) -> tuple[int, Mapping[str, bytes]] | None:
        """(step, pieces) of the newest state whose pieces are all there as they were saved, or None."""
        self._used.add(stage)
        for step in reversed(self._steps(stage)):
            try:
                state = _State(self._store, stage, self._shard, step)
            except (KeyMissing, ValueError):  # dropped by another driver, or torn
                continue
            if state.is_whole():
                self.resumed = True
                return step, state
        return None

    def save(self, stage: str, step: int, pieces: Iterable[tuple[str, bytes]]) -> None:
        """Store one state; one that an earlier try completed under this step stands."""
        self._used.add(stage)
        listed = layout.keep_key(stage, self._shard, step)
        if not self._store.exists(listed):
            written = [self._put(stage, step, name, data) for name, data in pieces]
            self._store.replace(listed, json.dumps(written).encode())
        for old in self._steps(stage)[:-KEPT]:
            self._drop(stage, old)

    def drop_all(self) -> None:
        """Forget every state of the stages that used this, once they are results."""
        for stage in sorted(self._used):
            for step in self._steps(stage):
                self._drop(stage, step)

    def _put(self, stage: str, step: int, name: str, data: bytes) -> list[object]:
        self._store.replace(layout.keep_key(stage, self._shard, step, name), data)
        return [name, len(data), sha256(data)]

    def _steps(self, stage: str) -> list[int]:
        names = (key.rsplit("/", 1)[1] for key in self._store.list(layout.keep_prefix(stage, self._shard)))
        return sorted(int(name) for name in names if name.isdigit())

    def _drop(self, stage: str, step: int) -> None:
        """The list first: what it names is no state any more, whatever happens in between."""
        listed = layout.keep_key(stage, self._shard, step)
        below = [key for key in self._store.list(layout.keep_prefix(stage, self._shard)) if key.startswith(listed)]
        for key in sorted(below, key=len):
            self._store.drop_state(key)


class _State(Mapping[str, bytes]):
    """The pieces of one state, read and checked when they are looked up."""

    def __init__(self, store: Store, stage: str, shard: int, step: int) -> None:
        self._store = store
        self._keys: dict[str, tuple[str, int, str]] = {}
        for name, size, digest in json.loads(store.get(layout.keep_key(stage, shard, step))):
            self._keys[name] = (layout.keep_key(stage, shard, step, name), size, digest)

    def is_whole(self) -> bool:
        """Whether every piece reads back; one at a time, because together they may be most of a machine's memory."""
        try:
            for name in self:
                self[name]
        except (KeyMissing, DamagedPart):
            return False
        return True

    def __getitem__(self, name: str) -> bytes:
        key, size, digest = self._keys[name]
        data = self._store.get(key)
        if sha256(data) != digest:
            raise DamagedPart(f"{key}: expected {size} bytes with sha256 {digest[:12]}..., found {len(data)} others")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
