"""Numbered resumable states of a long shard; the newest one that reads back whole wins."""

from __future__ import annotations

from cluster.parquet import sha256
from cluster.stores.base import Store
from schemas import layout

_HEADER = 65


class StoreKeep:
    """The `Keep` port of `jobs/protocol.py`: each state carries its own sha256, so a torn one is passed over."""

    def __init__(self, store: Store, stage: str, shard: int) -> None:
        self._store = store
        self._stage = stage
        self._shard = shard

    def latest(self) -> tuple[int, bytes] | None:
        """(step, state) of the newest valid state, or None."""
        for key in reversed(self._store.list(layout.keep_prefix(self._stage, self._shard))):
            data = self._store.get(key)
            state = data[_HEADER:]
            if data[: _HEADER - 1].decode(errors="replace") == sha256(state):
                return int(key.rsplit("/", 1)[1].split(".")[0]), state
        return None

    def save(self, step: int, state: bytes) -> None:
        """Store one state; a state saved before under this step by an earlier try stands."""
        data = sha256(state).encode() + b"\n" + state
        self._store.create(layout.keep_key(self._stage, self._shard, step), data)
