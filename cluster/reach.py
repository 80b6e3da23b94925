"""What a store holds, stage by stage, and what can be reached from where: read from plans, generously."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cluster.catalog import stored_objects
from cluster.hold import names_in
from cluster.ledger import load_published
from cluster.stores.base import Store, prefetch
from jobs.kinds import READ_ACROSS
from schemas import layout
from schemas.errors import KeyMissing
from schemas.plans import Published, StageSpec, load_json

_FOLDER = re.compile(r"/s=([0-9a-f]{20})/")


class Trash(NamedTuple):
    """What is removed of one stage, listing or run: for people what it is, its keys, and their bytes."""

    name: str
    about: str
    keys: tuple[str, ...]
    bytes: int


class Reach:
    """The stages and listings of a store, their keys, and what they name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, list[str]] = defaultdict(list)
        for key in store.list("stages"):
            self._keys[key.split("/")[1]].append(key)
        for key in store.list("tables"):
            if found := _FOLDER.search(key):
                self._keys[found[1]].append(key)
        for key in store.list("listings"):
            self._keys[key.rsplit("/", 1)[1].removesuffix(".parquet")].append(key)
        self.names = {name for name in self._keys if names_in(name) == {name}}
        self._named: dict[str, set[str]] = {}

    def reach(self, roots: Iterable[str]) -> set[str]:
        """Those of the roots that are here, and everything that they name, and so on."""
        reached: set[str] = set()
        front = set(roots) & self.names
        while front:
            reached |= front
            unread = [name for name in front if name not in self._named]
            self._named.update(prefetch(self._read, unread))
            front = set().union(*(self._named[name] for name in front)) - reached
        return reached

    def _read(self, name: str) -> set[str]:
        """What the plan of a stage names, or what it has published if there is no plan."""
        for key in (layout.plan_key(name), layout.published_key(name)):
            if key in self._keys[name]:
                return names_in(self._store.get(key).decode()) & self.names
        return set()

    def trash(self, name: str) -> Trash:
        """Everything of a stage or listing."""
        keys = self._keys[name]
        published = self._published(name)
        if published is not None:
            size = sum(stored.bytes for stored in stored_objects(published))
        else:
            size = self._size(keys)
        return Trash(name, self._about(name, published), tuple(keys), size)

    def leftovers(self, names: Iterable[str]) -> Iterator[Trash]:
        """Of published stages: resumable states, parts that no pointer names, artifacts that only their own rounds read."""
        published = prefetch(self._published, sorted(names))
        for name, found in published:
            if found is None:
                continue
            needed = {stored.key for stored in stored_objects(found)}
            keys = [key for key in self._keys[name] if key not in needed and self._may_go(key, found.stage)]
            if keys:
                keys = sorted([*keys, *self._markers(name, keys)])
                yield Trash(name, self._about(name, found), tuple(keys), self._size(keys))

    def _markers(self, name: str, keys: Sequence[str]) -> list[str]:
        """Of the shards that lose something: were the stage made again, they would count as done and lack it."""
        found = (re.match(rf"{layout.artifacts_prefix(name)}(\d+)-", key) for key in keys)
        markers = {layout.done_key(name, int(match[1])) for match in found if match}
        return [key for key in self._keys[name] if key in markers]

    @staticmethod
    def _may_go(key: str, stage: StageSpec) -> bool:
        if key.startswith("tables/"):
            return True
        inside = key.split("/")[2]
        return inside == "keep" or (inside == "artifacts" and stage.kind not in READ_ACROSS)

    def _published(self, name: str) -> Published | None:
        return load_published(self._store, name) if layout.published_key(name) in self._keys[name] else None

    def _about(self, name: str, published: Published | None) -> str:
        if published is not None:
            return _title(published.stage)
        if layout.plan_key(name) in self._keys[name]:
            plan = json.loads(self._store.get(layout.plan_key(name)))
            return f"{_title(load_json(StageSpec, json.dumps(plan['stage'])))}, unfinished"
        return "list of files" if layout.listing_key(name) in self._keys[name] else "parts of no stage"

    def _size(self, keys: Sequence[str]) -> int:
        def size(key: str) -> int:
            try:
                return self._store.size(key)
            except KeyMissing:
                return 0

        return sum(bytes for _, bytes in prefetch(size, keys))


def _title(stage: StageSpec) -> str:
    return f"{stage.kind} {stage.subject} {stage.output} {stage.detail}".rstrip()
