"""Who does what next: the pool's decisions as one pure function of what can be seen, without a clock."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cluster.board import Board
from cluster.held_back import NOTHING, HeldBack
from cluster.works import Need, Work

WINDOW = 2
"""Tasks a worker may hold at once: the second one hides the way there and back."""
QUEUE_AHEAD = 4
"""A second task is given only while so many wait per worker, so that the tail of a work goes to whoever is idle."""
_EPSILON = 1e-6


@dataclass(frozen=True, order=True)
class Slot:
    """A resource class: what one worker holds while it lives; in a gang each of its members holds as much."""

    cpus: float
    gpus: float = 0.0
    memory_gb: float = 0.0
    gang: int = 1

    @classmethod
    def of(cls, work: Need) -> Slot:
        """What a worker of this work holds; threads that decode share the CPUs that are stated."""
        needs = work.resources
        return cls(max(needs.cpus, float(needs.decode_threads)), needs.gpus, needs.memory_gb or 0.0, work.gang)


@dataclass(frozen=True)
class Node:
    """What a machine has, or has left; a GPU counts by the fraction that is free, because workers cannot span them."""

    cpus: float
    gpus: tuple[float, ...] = ()
    memory_gb: float = math.inf

    def room(self, slot: Slot) -> int:
        """How many workers (or gang members) of a slot fit."""
        by_gpu = math.inf if slot.gpus == 0 else sum(_shares(free, slot.gpus) for free in self.gpus)
        if slot.gpus > 1:
            by_gpu = sum(free > 1 - _EPSILON for free in self.gpus) // math.ceil(slot.gpus)
        by_memory = math.inf if slot.memory_gb == 0 else _shares(self.memory_gb, slot.memory_gb)
        return int(min(_shares(self.cpus, slot.cpus), by_gpu, by_memory))

    def without(self, slot: Slot, count: int) -> Node:
        """What is left beside `count` workers of a slot that fits as often."""
        gpus = list(self.gpus)
        for _ in range(count if slot.gpus else 0):
            whole = math.ceil(slot.gpus) if slot.gpus > 1 else 1
            need = 1.0 if slot.gpus > 1 else slot.gpus
            # the fullest GPU that still has room, so that whole ones stay whole
            fitting = sorted((free, i) for i, free in enumerate(gpus) if free > need - _EPSILON)
            for _, i in fitting[:whole]:
                gpus[i] -= need
        return Node(self.cpus - count * slot.cpus, tuple(gpus), self.memory_gb - count * slot.memory_gb)


def _shares(free: float, need: float) -> int:
    return int(free / need + _EPSILON) if math.isfinite(free) else 1 << 30


@dataclass(frozen=True)
class Demand:
    """One work's wish: `waiting` tasks that may start now, for at most `limit` workers (or gangs)."""

    work: str
    slot: Slot
    limit: int
    waiting: int
    held_back: HeldBack = NOTHING

    @classmethod
    def of(cls, work: Work, waiting: int, held_back: HeldBack = NOTHING) -> Demand:
        """`resources.workers` counts members, so a gang of n is n of them."""
        return cls(work.key, Slot.of(work), max(1, work.resources.workers // work.gang), waiting, held_back)


def get_demands(board: Board) -> list[Demand]:
    """The demands of all works that have something waiting, in board order."""
    waiting = ((work, len(board.waiting(key))) for key, work in board.works.items())
    return [Demand.of(work, n, board.held_back[work.key]) for work, n in waiting if n]


@dataclass(frozen=True)
class WorkerState:
    """A worker (or gang) as the pool sees it: works in flight (the first is running) and the work it has open."""

    id: int
    slot: Slot
    in_flight: tuple[str, ...] = ()
    opened: str | None = None
    starting: bool = False


@dataclass(frozen=True)
class View:
    """All that a decision may rest on."""

    demands: Sequence[Demand]
    workers: Sequence[WorkerState]
    nodes: tuple[Node, ...]
    most: Mapping[Slot, int] = field(default_factory=dict)
    """Slots of which only so many workers may live, because more of them ran out of memory."""


@dataclass(frozen=True)
class Start:
    """Start `count` workers of a slot."""

    slot: Slot
    count: int


@dataclass(frozen=True)
class Assign:
    """Give a worker the next waiting task of a work."""

    worker: int
    work: str


@dataclass(frozen=True)
class Stop:
    """End an idle worker, because another slot needs its room."""

    worker: int


Action = Start | Assign | Stop


def decide(view: View) -> list[Action]:
    """What to do now; O(workers + works), whatever the number of waiting tasks.

    An idle worker goes on with the work it has open, else it joins the work with the most FLOPs left per worker and
    behind it, or the most waiting tasks per worker where FLOPs are equal or not planned; then the first by name.
    Room is shared between slots by need; idle workers of a slot without need make room for another.
    """
    desk = _Desk(view)
    return [*desk.assign(), *desk.resize()]


class _Desk:
    """The view with the effects of the decisions taken so far."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._demands = {d.work: d for d in view.demands}
        self._waiting = {d.work: d.waiting for d in view.demands}
        self._users = Counter(w.in_flight[-1] for w in view.workers if w.in_flight)
        self._starting = Counter(w.slot for w in view.workers if w.starting)
        self._idle = [w for w in view.workers if not w.in_flight and not w.starting]

    # -- tasks to workers

    def assign(self) -> Iterator[Assign]:
        """First tasks for idle workers, then second ones where much is waiting."""
        current = {w.id: (w.in_flight[-1], len(w.in_flight)) for w in self._view.workers if w.in_flight}
        for worker, work in self._employ_idle():
            current[worker.id] = (work, 1)
            yield Assign(worker.id, work)
        self._idle = [w for w in self._idle if w.id not in current]
        for worker_id, (work, held) in current.items():
            if held < WINDOW and self._may_queue(work):
                self._waiting[work] -= 1
                yield Assign(worker_id, work)

    def _employ_idle(self) -> Iterator[tuple[WorkerState, str]]:
        """(worker, work) for every idle worker that some work can use."""
        free: list[WorkerState] = []
        for worker in self._idle:
            if worker.opened is not None and self._wants(worker.opened) > 0:
                self._take(worker.opened)
                yield worker, worker.opened
            else:
                free.append(worker)
        by_slot: dict[Slot, list[tuple[float, float, str]]] = defaultdict(list)
        for demand in self._view.demands:
            if self._wants(demand.work) > 0:
                by_slot[demand.slot].append(self._turn(demand.work))
        for heap in by_slot.values():
            heapq.heapify(heap)
        for worker in sorted(free, key=lambda w: w.opened is not None):
            heap = by_slot[worker.slot]
            if heap:
                *_, work = heapq.heappop(heap)
                self._take(work)
                if self._wants(work) > 0:
                    heapq.heappush(heap, self._turn(work))
                yield worker, work

    def _wants(self, work: str) -> int:
        """More workers that this work could use now."""
        demand = self._demands.get(work)
        return 0 if demand is None else min(demand.limit - self._users[work], self._waiting[work])

    def _turn(self, work: str) -> tuple[float, float, str]:
        """Sorts works by what one worker more would still hold back: its share of what waits, and all behind the work."""
        share = self._waiting[work] / (self._users[work] + 1)
        task, after = self._demands[work].held_back
        return -(share * task + after), -share, work

    def _take(self, work: str) -> None:
        self._waiting[work] -= 1
        self._users[work] += 1

    def _may_queue(self, work: str) -> bool:
        demand = self._demands.get(work)
        if demand is None or demand.slot.gang > 1:
            return False
        return self._waiting[work] >= QUEUE_AHEAD * (self._users[work] + self._starting[demand.slot])

    # -- workers to room

    def resize(self) -> Iterator[Start | Stop]:
        """Start what is needed and fits; where it does not fit, stop idle workers that nothing needs."""
        needs: Counter[Slot] = Counter()
        for demand in self._view.demands:
            needs[demand.slot] += max(0, self._wants(demand.work))
        needs.subtract(self._starting)
        held = Counter(w.slot for w in self._view.workers)
        allowed = {slot: min(n, self._view.most.get(slot, n + held[slot]) - held[slot]) for slot, n in needs.items()}
        wanted = {slot: n for slot, n in allowed.items() if n > 0}
        if not wanted:
            return
        started = _share_room(self._view.nodes, held, wanted)
        yield from (Start(slot, n) for slot, n in started.items())
        held.update(started)
        spare = [*self._idle, *self._pending()]  # whoever is idle after assigning is of no use to its own slot
        for slot, n in wanted.items():
            if started[slot] < n and spare:
                stopped = _make_room(self._view.nodes, held, slot, n - started[slot], spare)
                yield from (Stop(w.id) for w in stopped)
                held.subtract(Counter(w.slot for w in stopped))
                spare = [w for w in spare if w not in stopped]

    def _pending(self) -> list[WorkerState]:
        """Workers still starting in slots that no work waits for."""
        wanted = {d.slot for d in self._view.demands if d.waiting}
        return [w for w in self._view.workers if w.starting and w.slot not in wanted]


def _share_room(nodes: tuple[Node, ...], held: Counter[Slot], wanted: dict[Slot, int]) -> Counter[Slot]:
    """How many workers of each slot to start, one at a time: first to slots that have none, then by need per worker."""
    left = list(_pack(nodes, _frozen(held)))
    started: Counter[Slot] = Counter()

    def turn(slot: Slot) -> tuple[bool, float, Slot]:
        have = held[slot] + started[slot]
        return have > 0, -(wanted[slot] - started[slot]) / (have + 1), slot

    heap = [turn(slot) for slot in wanted]
    heapq.heapify(heap)
    while heap:
        *_, slot = heapq.heappop(heap)
        if _place(left, slot):
            started[slot] += 1
            if started[slot] < wanted[slot]:
                heapq.heappush(heap, turn(slot))
    return started


def _make_room(
    nodes: tuple[Node, ...], held: Counter[Slot], slot: Slot, count: int, spare: Sequence[WorkerState]
) -> list[WorkerState]:
    """The workers whose end lets `count` of `slot` in, or as many as can be; none if none of it would help."""
    helpful: list[WorkerState] = []
    trial: list[WorkerState] = []
    fits = 0
    for worker in sorted(spare, key=lambda w: (w.slot.gpus > 0) != (slot.gpus > 0)):
        trial.append(worker)
        left = list(_pack(nodes, _frozen(held - Counter(w.slot for w in trial))))
        now = 0
        while now < count and _place(left, slot):
            now += 1
        if now > fits:
            fits, helpful = now, list(trial)
        if fits == count:
            break
    return helpful


def count_fitting(nodes: tuple[Node, ...], slot: Slot) -> int:
    """How many workers (or gangs) of a slot an empty cluster holds at once."""
    return sum(node.room(slot) for node in nodes) // slot.gang


def _frozen(held: Counter[Slot]) -> tuple[tuple[Slot, int], ...]:
    return tuple(sorted((slot, n) for slot, n in held.items() if n > 0))


@lru_cache(maxsize=256)
def _pack(nodes: tuple[Node, ...], held: tuple[tuple[Slot, int], ...]) -> tuple[Node, ...]:
    """What nodes have left when these workers are laid on them first-fit, the most demanding slots first."""
    left = list(nodes)
    for slot, count in sorted(held, key=lambda item: (item[0].gpus, item[0].cpus), reverse=True):
        members = count * slot.gang
        for i, node in enumerate(left):
            fitting = min(members, node.room(slot))
            if fitting:
                left[i] = node.without(slot, fitting)
                members -= fitting
            if not members:
                break
    return tuple(left)


def _place(left: list[Node], slot: Slot) -> bool:
    """Lay one worker (or all members of a gang) on what is left; changes nothing if it does not fit."""
    tried = list(left)
    members = slot.gang
    for i, node in enumerate(tried):
        fitting = min(members, node.room(slot))
        if fitting:
            tried[i] = node.without(slot, fitting)
            members -= fitting
        if not members:
            left[:] = tried
            return True
    return False
