"""Every key in the store, as pure functions; nobody else builds a path."""

from __future__ import annotations

import re

from schemas.errors import UnsafeName
from schemas.plans import Shard, StageSpec


def plan_key(digest: str) -> str:
    """The frozen plan of a stage."""
    return f"stages/{digest}/plan.json"


def done_key(digest: str, shard: int) -> str:
    """The marker that says a shard is finished and names what counts."""
    return f"stages/{digest}/shards/{shard:05d}.done.json"


def failed_key(digest: str, shard: int) -> str:
    """The marker that keeps a failed shard's traceback."""
    return f"stages/{digest}/shards/{shard:05d}.failed.json"


def shards_prefix(digest: str) -> str:
    """Where the markers of a stage are."""
    return f"stages/{digest}/shards/"


def keep_key(digest: str, shard: int, step: int, piece: str | None = None) -> str:
    """One numbered resumable state of a long shard: the list of its pieces, or one of them."""
    listed = f"stages/{digest}/keep/{shard:05d}/{step:012d}"
    if piece is None:
        return listed
    check_name(piece)
    return f"{listed}-{piece}"


def check_state(key: str) -> None:
    """Refuse a key that is not a resumable state: nothing else is ever dropped.

    Raises:
        UnsafeName: it is something else.
    """
    if not re.fullmatch(r"stages/[^/]+/keep/\d{5}/\d{12}(-[^/]+)?", key):
        raise UnsafeName(f"{key!r} is not a resumable state; only those may be dropped")


def keep_prefix(digest: str, shard: int | None = None) -> str:
    """Where the states of a long shard are, or those of all shards."""
    return f"stages/{digest}/keep/" if shard is None else f"stages/{digest}/keep/{shard:05d}/"


def artifact_key(digest: str, shard: int, name: str, attempt: int = 0) -> str:
    """One artifact of a shard; a later attempt has its own key because nothing is ever overwritten."""
    check_name(name)
    suffix = f".a{attempt}" if attempt else ""
    return f"{artifacts_prefix(digest)}{shard:05d}-{name}{suffix}"


def artifacts_prefix(digest: str) -> str:
    """Where the artifacts of a stage are."""
    return f"stages/{digest}/artifacts/"


def published_key(digest: str) -> str:
    """The pointer that publishes a stage."""
    return f"stages/{digest}/published.json"


def table_prefix(table: str, stage: StageSpec) -> str:
    """The folder whose plain glob `*.parquet` is one published stage of one table."""
    return f"tables/{table}/m={stage.slug}/s={stage.digest}/"


def part_key(table: str, stage: StageSpec, shard: Shard, n: int, attempt: int = 0) -> str:
    """One part; a later attempt after a damaged one has its own key."""
    suffix = f".a{attempt}" if attempt else ""
    return f"{table_prefix(table, stage)}part-{shard.number:05d}-{n}{suffix}.parquet"


def listing_key(sha256: str) -> str:
    """The frozen list of files of an image set, by content."""
    return f"listings/{sha256}.parquet"


def run_key(run_id: str, name: str) -> str:
    """One file of a run: spec.yaml, options.json, holds.json, state.json, cancel.json, tables.json, costs.json, changes.json or drift.json."""
    check_name(run_id)
    return f"runs/{run_id}/{name}"


def visit_key(visit: str) -> str:
    """What work without a run holds on to."""
    check_name(visit)
    return f"visits/{visit}.json"


def sweep_key(term: int) -> str:
    """What the sweep of one term of the lease of `gc` was about to remove."""
    return f"sweeps/{term:08d}.json"


def lease_prefix(name: str) -> str:
    """Where the terms of a lease are."""
    check_name(name)
    return f"leases/{name}/"


def lease_key(name: str, term: int, what: str) -> str:
    """One term of a lease: who `held` it, the holder's last `beat`, how many starts have `met` it, and that it has reached its `end`."""
    return f"{lease_prefix(name)}{term:08d}.{what}.json"


def events_prefix(run_id: str) -> str:
    """Where a run's events are: beside `runs/`, which is listed whenever somebody reads."""
    check_name(run_id)
    return f"events/{run_id}/"


def events_key(run_id: str, segment: int) -> str:
    """One numbered segment of a run's events, JSON lines."""
    return f"{events_prefix(run_id)}{segment:06d}.jsonl"


def alive_key(run_id: str) -> str:
    """The last sign of life of a run's driver."""
    return f"{events_prefix(run_id)}alive.json"


def check_name(name: str) -> None:
    """Refuse a name that would leave its folder.

    Raises:
        UnsafeName: empty, dotted, absolute, or with a separator or control character.
    """
    if not name or name.startswith(".") or any(c in name for c in "/\\\0") or not name.isprintable():
        raise UnsafeName(f"{name!r} cannot be part of a key: expected letters, digits, '.', '_' and '-'")
