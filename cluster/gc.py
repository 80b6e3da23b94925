"""What no kept run can reach is found and removed: the only module that removes results.

Why it is safe. A run writes what it may read or make into `holds.json`, then looks whether a sweep is going on, and only
then looks what is published (`cluster/hold.py`). A sweep takes its lease and only then reads all holds. So a sweep either
sees what a run holds, or the run sees the sweep and waits if what it holds is doomed. What is kept is found generously:
any text in a plan that looks like the name of a stage is taken for one. A run that is dropped goes first; a stage stops
being published, then its shards stop being done, and its parts go last: whatever is cut short can be made again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.catalog import load_drift
from cluster.hold import GC, load_holds, names_in
from cluster.lease import PACE, Lease, Pace, take
from cluster.reach import Reach, Trash
from cluster.runs import RunState, RunTables, find_state, list_runs, load_spec, load_tables, split_run
from cluster.stores.base import Store, prefetch
from schemas import layout
from schemas.errors import KeyMissing, UnknownRun

KEEP_RUNS = 7
_SHORT_REF = re.compile(r"(?:sae|align):([0-9a-f]{4,})")


class Policy(NamedTuple):
    """Which runs are kept: of each pipeline (or of one alone) the newest that stand for different tables, and pinned ones."""

    keep_runs: int = KEEP_RUNS
    pipeline: str | None = None
    pinned: frozenset[str] = frozenset()


class RunFacts(NamedTuple):
    """One run as its files say."""

    run: str
    state: RunState | None
    tables: RunTables | None

    @property
    def pipeline(self) -> str:
        return split_run(self.run)[0]

    @property
    def number(self) -> int:
        return split_run(self.run)[1]

    @property
    def may_go_on(self) -> bool:
        """Whether its driver has not said that it has ended."""
        return self.tables is None and (self.state is None or self.state.status == "RUNNING")


@dataclass(frozen=True)
class Sweep:
    """What a sweep keeps and removes."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    stages: tuple[Trash, ...]
    """Stages and listings that no kept run reaches."""
    leftovers: tuple[Trash, ...]
    """What published stages that stay do not need any more."""
    records: tuple[Trash, ...]
    """Of runs that are dropped, and of sweeps and leases that are over."""
    young: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What no run at all names, with the newest run of each pipeline when that was first seen."""

    @property
    def doomed(self) -> set[str]:
        """Names of the stages and listings that are removed."""
        return {trash.name for trash in self.stages}

    @property
    def trash(self) -> tuple[Trash, ...]:
        """Everything that is removed."""
        return (*self.stages, *self.leftovers, *self.records)

    @property
    def bytes(self) -> int:
        """Of everything that is removed, as far as it is known."""
        return sum(trash.bytes for trash in self.trash)


def sweep(store: Store, policy: Policy, pace: Pace = PACE) -> Sweep:
    """Find what no kept run reaches and remove it; killed at any moment, the same call goes on from there.

    Raises:
        UnknownRun: a pinned run is not there. LeaseHeld: another sweep is going on. LeaseLost: this one was thought dead.
    """
    with take(store, GC, pace) as lease:
        found = look(store, policy, pace)
        record = {"doomed": sorted(found.doomed), "unnamed": found.young}
        store.replace(layout.sweep_key(lease.term), json.dumps(record).encode())
        for keys in _in_order(found.trash):
            _remove(store, keys, lease)
    return found


def _in_order(trash: Iterable[Trash]) -> list[list[str]]:
    """All keys by rank: no run is there whose stages are not, no stage is published, and no shard done, without its parts."""
    ranks: list[list[str]] = [[] for _ in range(6)]
    for item in trash:
        for key in item.keys:
            ranks[_rank(key)].append(key)
    return ranks


def _rank(key: str) -> int:
    if key.startswith(
        "runs/"
    ):  # without its spec it is no run, which nobody reads or keeps, and its number is never given again
        return 0 if key.endswith("/spec.yaml") else 5
    if key.startswith("stages/"):
        return (
            1 if key.endswith("/published.json") else 2 if "/shards/" in key else 3 if key.endswith("/plan.json") else 4
        )
    return 4 if key.startswith(("tables/", "listings/")) else 5


def _remove(store: Store, keys: Sequence[str], lease: Lease) -> None:
    def remove(key: str) -> None:
        lease.check()  # each time: what another sweep, or a run after it, may have made again is not ours any more
        store.delete(key)

    for _ in prefetch(remove, keys):
        pass


# ---------------------------------------------------------------- looking, which removes nothing


def look(store: Store, policy: Policy, pace: Pace = PACE) -> Sweep:
    """What a sweep would keep and remove now.

    Raises:
        UnknownRun: a pinned run is not there.
    """
    events = store.list("events")  # before the runs: what has events when they are listed has a spec by then
    runs = _load_runs(store)
    if unknown := policy.pinned - {run.run for run in runs}:
        raise UnknownRun(f"run {min(unknown)!r} is to be kept and is not in {store.uri}")
    kept = _choose(runs, policy)
    kept |= {run.run for run in _alive(store, [r for r in runs if r.may_go_on and r.run not in kept], pace)}
    lake = Reach(store)
    held = {run.run: names for run, names in prefetch(lambda run: _names_of(store, run, lake), runs)}
    reached = lake.reach(name for run in kept for name in held[run])
    named = lake.reach(name for run in held for name in held[run])
    unnamed = lake.names - named
    record = _last_record(store)
    young = _young(runs, unnamed - set(record["doomed"]), record["unnamed"], policy)
    going = {name for run in runs if run.may_go_on and run.run in kept for name in held[run.run]}
    dropped = [run.run for run in runs if run.run not in kept]
    return Sweep(
        kept=tuple(run.run for run in runs if run.run in kept),
        dropped=tuple(dropped),
        stages=tuple(lake.trash(name) for name in sorted(lake.names - reached - young.keys())),
        leftovers=tuple(lake.leftovers(reached - going)),
        records=(*_run_records(store, events, {run.run for run in runs}, kept), *_own_records(store)),
        young=young,
    )


def _load_runs(store: Store) -> list[RunFacts]:
    def load(run: str) -> RunFacts:
        return RunFacts(run, find_state(store, run), load_tables(store, run))

    return [facts for _, facts in prefetch(load, list_runs(store))]


def _choose(runs: Sequence[RunFacts], policy: Policy) -> set[str]:
    """Every run from the oldest of the newest different ones on, the newest without a failure, and those that are pinned."""
    by_pipeline: dict[str, list[RunFacts]] = defaultdict(list)
    for run in runs:
        by_pipeline[run.pipeline].append(run)
    kept = set(policy.pinned)
    for pipeline, its in by_pipeline.items():
        if policy.pipeline not in (None, pipeline):
            kept |= {run.run for run in its}
            continue
        newest_first = sorted(its, key=lambda run: -run.number)
        oldest = _oldest_kept(newest_first, policy.keep_runs)
        kept |= {run.run for run in its if run.number >= oldest}
        whole = (r for r in newest_first if r.tables is not None and not r.tables.limited and not r.tables.failed)
        kept |= {run.run for run in list(whole)[:1]}
    return kept


def _oldest_kept(newest_first: Sequence[RunFacts], keep: int) -> int:
    """The number of the run with which there are enough different ones; small trials never count."""
    different: set[frozenset[str]] = set()
    for run in newest_first:
        if run.tables is not None and not run.tables.limited:
            different.add(frozenset(run.tables.digests))
            if len(different) >= keep:
                return run.number
    return 0


def _alive(store: Store, unsure: Sequence[RunFacts], pace: Pace) -> list[RunFacts]:
    """Of runs that never said that they ended, those whose driver gives a sign of life while we wait."""
    if not unsure:
        return []
    before = {run.run: _sign(store, run.run) for run in unsure}
    begun = pace.clock()
    while pace.clock() - begun < pace.patience:
        pace.sleep(pace.beat)
    return [run for run in unsure if _sign(store, run.run) != before[run.run] or _has_ended_since(store, run)]


def _sign(store: Store, run: str) -> bytes:
    try:
        return store.get(layout.alive_key(run))
    except KeyMissing:
        return b""


def _has_ended_since(store: Store, run: RunFacts) -> bool:
    return load_tables(store, run.run) is not None


def _names_of(store: Store, run: RunFacts, lake: Reach) -> set[str]:
    """Everything that a run names: what it stands for, what it was about, what it held, how it differs from the one before, and what its spec asks for."""
    names = load_holds(store, run.run)
    names |= set(run.tables.digests) if run.tables else set()
    names |= {stage.digest for stage in run.state.stages} if run.state else set()
    drift = load_drift(store, run.run)
    names |= {drift.stage.digest} if drift else set()
    spec = load_spec(store, run.run)
    starts = tuple(_SHORT_REF.findall(spec))
    return names | names_in(spec) | {name for name in lake.names if starts and name.startswith(starts)}


def _young(
    runs: Sequence[RunFacts], unnamed: Collection[str], earlier: Mapping[str, dict[str, int]], policy: Policy
) -> dict[str, dict[str, int]]:
    """What no run names, as facts that were made beforehand: it stays until enough runs have finished that do not want it."""
    newest: dict[str, int] = {}
    for run in runs:
        newest[run.pipeline] = max(newest.get(run.pipeline, 0), run.number)
    young = {}
    for name in unnamed:
        first = earlier.get(name, newest)
        since = [run for run in runs if run.tables is not None and run.number > first.get(run.pipeline, 0)]
        if name not in earlier or len(since) < policy.keep_runs:
            young[name] = first
    return young


def _last_record(store: Store) -> dict[str, Any]:
    """What the last sweep was about to remove, and may not have come to; and what no run named then."""
    records = store.list("sweeps")
    return dict(json.loads(store.get(records[-1]))) if records else {"doomed": [], "unnamed": {}}


def _run_records(
    store: Store, events: Sequence[str], looked_at: Collection[str], kept: Collection[str]
) -> Iterator[Trash]:
    """The files of runs that are dropped, and what is left of those that were; a run that began since we looked is neither."""
    keys: dict[str, list[str]] = defaultdict(list)
    for key in (*store.list("runs"), *events):
        keys[key.split("/")[1]].append(key)
    specs = {run for run, its in keys.items() if f"runs/{run}/spec.yaml" in its}
    for run, its in sorted(keys.items()):
        dropped = run in looked_at if run in specs else _is_left(its)
        if dropped and run not in kept:
            yield Trash(run, "run", tuple(its), 0)


def _is_left(keys: Sequence[str]) -> bool:
    """Whether this is what remains of a run: what nobody named like one is somebody else's."""
    return all(re.fullmatch(r"(runs|events)/[^/]+-\d{5,}/[^/]+", key) for key in keys)


def _own_records(store: Store) -> Iterator[Trash]:
    """Sweeps and terms of leases that newer ones have followed."""
    if old := store.list("sweeps")[:-1]:
        yield Trash("sweeps", "records of earlier sweeps", tuple(old), 0)
    terms: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in store.list("leases"):
        _, name, file = key.split("/")
        terms[name][int(file.split(".")[0])].append(key)
    for name, numbers in sorted(terms.items()):
        if old := [key for number in sorted(numbers)[:-1] for key in numbers[number]]:
            yield Trash(name, "earlier terms of a lease", tuple(old), 0)
