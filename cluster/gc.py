"""What no kept run can reach is found and removed: the only module that removes results.

Why it is safe. A run writes what it may read or make into `holds.json`, then looks whether a sweep is going on, and only
then looks what is published (`cluster/hold.py`); so does work without a run. A sweep takes its lease and only then reads
all holds. So a sweep either sees what a run holds, or the run sees the sweep and waits if what it holds is doomed. What is
kept is found generously: any text in a plan that looks like the name of a stage is taken for one. A run that is dropped
goes first; a stage stops being published, then its shards stop being done, and its parts go last: whatever is cut short
can be made again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.alive import lost_after, read_sign
from cluster.catalog import load_drift
from cluster.hold import GC, load_holds, load_visit, names_in
from cluster.lease import PACE, Lease, Pace, split_key, take
from cluster.reach import Reach, Trash
from cluster.retention import Policy, RunFacts, choose, load_runs, newest_numbers
from cluster.runs import load_spec, load_tables
from cluster.stores.base import Store, prefetch
from cluster.stores.probe import WRITABLE
from schemas import layout

_SHORT_REF = re.compile(r"(?:sae|align):([0-9a-f]{4,})")


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
    """Of runs that are dropped, and of other work that is over."""
    young: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What no run at all names, with the newest run of each pipeline when that was first seen."""
    probes: tuple[str, ...] = ()
    """What somebody who tries out the store wrote since the last sweep, and may be at it yet."""

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
        UnknownRun: a pinned run, or the pipeline, is not there. LeaseHeld: another sweep is going on. LeaseLost: this one was
            thought dead.
    """
    with take(store, GC, pace) as lease:
        old = list(_old_records(store))
        found = look(store, policy, pace)
        _save_record(store, lease, found, found.doomed)
        unfinished = {trash.name for trash in found.stages if layout.published_key(trash.name) not in trash.keys}
        for items in _in_order(found.trash):
            _remove(store, items, lease, unfinished)
        _save_record(store, lease, found, set())  # whoever makes one of them from now on has made something new
        _remove(store, [("", key) for key in old], lease)
    return found


def _save_record(store: Store, lease: Lease, found: Sweep, doomed: Collection[str]) -> None:
    record = {"doomed": sorted(doomed), "unnamed": found.young, "probes": found.probes}
    store.replace(layout.sweep_key(lease.term), json.dumps(record).encode())


def _in_order(trash: Iterable[Trash]) -> list[list[tuple[str, str]]]:
    """Names and keys by rank: no run is there whose stages are not, no stage is published, and no shard done, without its parts."""
    ranks: list[list[tuple[str, str]]] = [[] for _ in range(6)]
    for item in trash:
        for key in item.keys:
            ranks[_rank(key)].append((item.name, key))
    return ranks


def _rank(key: str) -> int:
    if key.startswith("runs/"):  # without its spec it is no run, which nobody reads or keeps
        return 0 if key.endswith("/spec.yaml") else 5
    if key.startswith("stages/"):
        first = (key.endswith("/published.json"), "/shards/" in key, key.endswith("/plan.json"), True)
        return 1 + first.index(True)
    return 4 if key.startswith(("tables/", "listings/")) else 5


def _remove(store: Store, items: Sequence[tuple[str, str]], lease: Lease, unfinished: Collection[str] = ()) -> None:
    """unfinished: names of stages that were not published when we looked."""

    def remove(item: tuple[str, str]) -> None:
        name, key = item
        if name in unfinished and store.exists(layout.published_key(name)):
            return  # somebody who holds nothing, as an older version, has made it whole since
        lease.check()  # each time: what another sweep, or a run after it, may have made again is not ours any more
        store.delete(key)

    for _ in prefetch(remove, items):
        pass


# ---------------------------------------------------------------- looking, which removes nothing


def look(store: Store, policy: Policy, pace: Pace = PACE) -> Sweep:
    """What a sweep would keep and remove now.

    Raises:
        UnknownRun: a pinned run, or the pipeline, is not there.
    """
    events = store.list("events")  # before the runs: what has events when they are listed has a spec by then
    runs = load_runs(store)
    visits = dict(prefetch(lambda key: load_visit(store, key), store.list("visits")))
    kept = choose(runs, policy, store.uri)
    unsure = [run for run in runs if run.may_go_on and run.run not in kept]
    signs = {run.run: layout.alive_key(run.run) for run in unsure}
    signs |= {key: key for key, visit in visits.items() if not visit.ended}
    living = _living(store, signs, pace)
    kept |= {run.run for run in unsure if run.run in living or load_tables(store, run.run) is not None}
    lake = Reach(store)
    held = {run.run: names for run, names in prefetch(lambda run: _names_of(store, run, lake), runs)}
    reached = lake.reach(name for run in kept for name in held[run])
    named = lake.reach(name for run in held for name in held[run])
    visited = [load_visit(store, key) for key, visit in visits.items() if visit.ended or key in living]
    wanted = lake.reach(name for visit in visited for name in visit.names)
    record = _last_record(store)
    unnamed = lake.names - named - set(record["doomed"])
    seen = {name: first for name, first in record["unnamed"].items() if name not in wanted}  # whose time begins anew
    young = _young(runs, (unnamed | wanted) - reached, seen, policy)
    going = {name for run in runs if run.may_go_on and run.run in kept for name in held[run.run]}
    probes = tuple(key for key in store.list("probe") if key != WRITABLE)
    return Sweep(
        kept=tuple(run.run for run in runs if run.run in kept),
        dropped=tuple(run.run for run in runs if run.run not in kept),
        stages=tuple(lake.trash(name) for name in sorted(lake.names - reached - young.keys())),
        leftovers=tuple(lake.leftovers(reached - going)),
        records=(
            *_run_records(store, events, {run.run for run in runs}, kept),
            *_other_records([key for key in visits if key not in living], set(probes) & set(record["probes"])),
        ),
        young=young,
        probes=probes,
    )


def _living(store: Store, signs: Mapping[str, str], pace: Pace) -> set[str]:
    """Of what never said that it ended, by the key of its sign of life, that which gives one while we wait."""
    if not signs:
        return set()
    before = {name: read_sign(store, key) for name, key in signs.items()}
    begun = pace.clock()
    while pace.clock() - begun < lost_after(pace.patience):
        pace.sleep(pace.beat)
    return {name for name, key in signs.items() if read_sign(store, key) != before[name]}


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
    newest = newest_numbers(runs)
    finished = newest_numbers(run for run in runs if run.tables is not None)
    young = {}
    for name in unnamed:
        first = earlier.get(name, newest)
        since = sum(max(0, number - first.get(pipeline, 0)) for pipeline, number in finished.items())
        if name not in earlier or since < policy.keep_runs:
            young[name] = first
    return young


def _last_record(store: Store) -> dict[str, Any]:
    """What the last sweep was about to remove, and may not have come to; and what no run named then."""
    records = store.list("sweeps")
    nothing: dict[str, Any] = {"doomed": [], "unnamed": {}, "probes": []}
    return nothing | dict(json.loads(store.get(records[-1]))) if records else nothing


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
            yield Trash(run, f"run {run}", tuple(its), 0)


def _is_left(keys: Sequence[str]) -> bool:
    """Whether this is what remains of a run: what nobody named like one is somebody else's."""
    return all(re.fullmatch(r"(runs|events)/[^/]+-\d{5,}/[^/]+", key) for key in keys)


def _other_records(visits: Sequence[str], probes: Collection[str]) -> Iterator[Trash]:
    """Holds of work without a run that is over, and what trying out the store has left."""
    if visits:
        yield Trash("visits", "holds of work that is over", tuple(visits), 0)
    if probes:
        yield Trash("probe", "left by checks of the store", tuple(sorted(probes)), 0)


def _old_records(store: Store) -> Iterator[str]:
    """Keys of sweeps, and of terms of leases, that newer ones have followed; nobody needs to be told of them."""
    yield from store.list("sweeps")
    terms: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in store.list("leases"):
        if file := split_key(key):
            terms[file[0]][file[1]].append(key)
    for numbers in terms.values():
        for number in sorted(numbers)[:-1]:
            yield from numbers[number]
