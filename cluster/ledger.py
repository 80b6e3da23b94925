"""The store's side of the books: frozen plans, done and failed markers, published pointers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cluster.parquet import sha256
from cluster.stores.base import Store, ask_many, prefetch
from cluster.works import Outcome
from schemas import layout
from schemas.errors import DamagedPart, KeyMissing
from schemas.plans import DoneMarker, FailedMarker, Plan, Published, Resources, StoredArtifact, StoredPart, load_json


def freeze_plan(store: Store, plan: Plan) -> Plan:
    """Store the plan if it is the first for its stage; the first one's rounds hold for everybody.

    Only the cut into shards is frozen, because done markers speak of it. Where the images are now and how many fit into
    a batch is this run's own: a folder that moved, or a batch that was too large, must not hold a stage up for ever.
    """
    created = store.create(layout.plan_key(plan.digest), plan.canonical_json().encode())
    return plan if created else stored_plan(store, plan)


def stored_plan(store: Store, plan: Plan) -> Plan:
    """The plan with the rounds that are frozen in the store, if there are any yet."""
    try:
        return plan.model_copy(update={"rounds": load_plan(store, plan.digest).rounds})
    except KeyMissing:
        return plan


def freeze_plans(store: Store, plans: Sequence[tuple[Plan, Resources]]) -> list[tuple[Plan, Resources]]:
    """`freeze_plan` for many, each with what its workers need."""
    return [(plan, needs) for (_, needs), plan in ask_many(lambda item: freeze_plan(store, item[0]), plans)]


def find_published(store: Store, digests: Iterable[str]) -> set[str]:
    """Those of the stages that are published."""
    found = ask_many(lambda digest: store.exists(layout.published_key(digest)), digests)
    return {digest for digest, there in found if there}


def find_done(store: Store, digests: Iterable[str]) -> dict[str, set[int]]:
    """Stage -> numbers of its shards that have a done marker."""
    return dict(ask_many(lambda digest: done_shards(store, digest), digests))


def load_plan(store: Store, digest: str) -> Plan:
    """The stored plan of a stage."""
    return load_json(Plan, store.get(layout.plan_key(digest)))


def done_shards(store: Store, digest: str) -> set[int]:
    """Numbers of the shards that have a done marker."""
    return _numbers(store.list(layout.shards_prefix(digest)), ".done.json")


def _numbers(markers: Iterable[str], ending: str) -> set[int]:
    names = (key.rsplit("/", 1)[1] for key in markers)
    return {int(name.removesuffix(ending)) for name in names if name.endswith(ending)}


def load_done(store: Store, digest: str, shard: int) -> DoneMarker:
    """The done marker of one shard."""
    return load_json(DoneMarker, store.get(layout.done_key(digest, shard)))


def load_artifact(store: Store, digest: str, shard: int, name: str) -> bytes:
    """An artifact of a finished shard.

    Raises:
        KeyMissing: the shard made no artifact of that name. DamagedPart: its bytes are not those the marker names.
    """
    for stored in load_done(store, digest, shard).artifacts:
        if stored.name == name:
            return get_checked(store, stored, _way_out(store, digest, shard))
    raise KeyMissing(f"stage {digest}, shard {shard}: no artifact {name!r}")


def record_failure(store: Store, outcome: Outcome) -> None:
    """Keep the traceback of a failed task beside the markers of each of its stages."""
    task = outcome.task
    marker = FailedMarker(
        shard=task.shard.number,
        round=task.shard.round,
        error=outcome.error,
        message=outcome.message,
        traceback=outcome.traceback,
        attempts=task.attempt + 1,
    )
    for stage in task.stages:
        store.replace(layout.failed_key(stage, task.shard.number), marker.canonical_json().encode())


def load_failures(store: Store, digest: str) -> list[FailedMarker]:
    """Failed markers of shards that no later try has finished."""
    return load_marks(store, digest)[1]


def load_marks(store: Store, digest: str) -> tuple[int, list[FailedMarker]]:
    """(how many shards are done, markers of those that failed and are not done since), with one listing."""
    keys = store.list(layout.shards_prefix(digest))
    done = _numbers(keys, ".done.json")
    failed = sorted(_numbers(keys, ".failed.json") - done)
    return len(done), [load_json(FailedMarker, store.get(layout.failed_key(digest, number))) for number in failed]


def load_published(store: Store, digest: str) -> Published | None:
    """What a stage has published, or None."""
    try:
        return load_json(Published, store.get(layout.published_key(digest)))
    except KeyMissing:
        return None


def publish(store: Store, plan: Plan, tables: Iterable[str], artifacts: Iterable[str] = ()) -> Published:
    """Make a complete stage's parts a table, by one create-only pointer; a stage published before is returned as it is.

    artifacts: names of those that it publishes; the others were for its own rounds.

    Raises:
        DamagedPart: a part that a marker names is gone or has another size.
    """
    shards = [shard.number for shard in plan.all_shards()]
    markers = [marker for _, marker in prefetch(lambda number: load_done(store, plan.digest, number), shards)]
    parts = [part for marker in markers for part in marker.parts]
    wanted = set(artifacts)
    named = tuple(a for marker in markers for a in marker.artifacts if a.name in wanted)
    stored: list[tuple[int, StoredPart | StoredArtifact]] = []
    for marker in markers:
        stored += [(marker.shard, part) for part in marker.parts]
        stored += [(marker.shard, artifact) for artifact in marker.artifacts]
    for _ in prefetch(lambda item: _check_size(store, plan, *item), stored):
        pass
    by_table = {t: tuple(p for p in parts if p.table == t) for t in tables}
    published = Published(stage=plan.stage, tables=by_table, artifacts=named, content=_content(parts, named))
    if store.create(layout.published_key(plan.digest), published.canonical_json().encode()):
        return published
    earlier = load_published(store, plan.digest)
    assert earlier is not None
    return earlier


def _content(parts: Iterable[StoredPart], artifacts: Iterable[StoredArtifact]) -> str:
    """What downstream digests take: the artifact named `content` if there is one, else all stored bytes."""
    from schemas.base import digest

    for artifact in artifacts:
        if artifact.name == "content":
            return artifact.sha256
    return digest([[p.table, p.sha256] for p in parts] + [[a.name, a.sha256] for a in artifacts])


def _check_size(store: Store, plan: Plan, shard: int, stored: StoredPart | StoredArtifact) -> None:
    try:
        size = store.size(stored.key)
    except KeyMissing:
        size = -1
    if size != stored.bytes:
        found = "nothing" if size < 0 else f"{size} bytes"
        raise DamagedPart(
            f"stage {plan.digest} ({plan.stage.kind} {plan.stage.subject}): {stored.key} should hold {stored.bytes} "
            f"bytes, found {found}; the stage was not published. {_way_out(store, plan.digest, shard)}"
        )


def _way_out(store: Store, digest: str, shard: int) -> str:
    """For a stage that is not published yet: without its marker a shard is done again."""
    return f"Restore the object, or remove {store.url(layout.done_key(digest, shard))} and run the spec again"


def get_checked(
    store: Store, stored: StoredPart | StoredArtifact, way_out: str = "Restore the object, or use a new store"
) -> bytes:
    """The bytes a marker names; `way_out` is what a person can do if they are not there.

    Raises:
        DamagedPart: they are gone or differ.
    """
    try:
        data = store.get(stored.key)
    except KeyMissing:
        raise DamagedPart(f"{stored.key} is named by a marker but is gone. {way_out}") from None
    if sha256(data) != stored.sha256:
        raise DamagedPart(
            f"{stored.key}: expected {stored.bytes} bytes with sha256 {stored.sha256[:12]}..., found {len(data)} bytes "
            f"with {sha256(data)[:12]}.... {way_out}"
        )
    return data
