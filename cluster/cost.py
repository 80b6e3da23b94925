"""What work will cost: hours of GPUs and CPUs, and money, from what past runs in the store took; nothing is assumed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.cost_log import COSTS, OPEN, Measure, Rate, RunCosts
from cluster.stores.base import Store, get_many
from jobs.protocol import Estimate, flops_of
from schemas.plans import Plan, Resources, load_json

RUNS = 10
"""Of each pipeline so many of its newest runs that did anything count; older ones saw other code and machines."""
_COSTS = re.compile(rf"runs/([^/]+)-(\d{{5,}})/{re.escape(COSTS)}")


class Found(NamedTuple):
    """Seconds per unit of work, how many shards that rests on, and whether they were of the very subject that is asked for."""

    seconds: float
    shards: int
    same_subject: bool


class Rates:
    """What past runs took, by kind, round, device and measure."""

    def __init__(self, rates: Iterable[Rate]) -> None:
        self._rates: dict[tuple[str, str, bool, Measure], dict[str, list[Rate]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for rate in rates:
            self._rates[rate.kind, rate.round, rate.on_gpu, rate.per][rate.subject].append(rate)

    def find(self, kind: str, round: str, subject: str, on_gpu: bool, per: Measure) -> Found | None:
        """The median over past shards of this subject, else the median of what other subjects took; None if there are none.

        A FLOP is a FLOP; a row is a file of one source of images and a thousand images of another, so rows are only taken
        from subjects of the same source.
        """
        subjects = self._rates.get((kind, round, on_gpu, per), {})
        if subject in subjects:
            return Found(*_weighted_median(subjects[subject]), True)
        alike = [s for s in subjects if per != "row" or s.partition(":")[0] == subject.partition(":")[0]]
        if not alike:
            return None
        others = sorted(_weighted_median(subjects[s]) for s in alike)
        return Found(others[len(others) // 2][0], sum(shards for _, shards in others), False)


def _weighted_median(rates: Sequence[Rate]) -> tuple[float, int]:
    """(seconds of the run that the middle shard is of, shards of all runs)."""
    shards, before = sum(rate.shards for rate in rates), 0
    for rate in sorted(rates, key=lambda rate: rate.seconds):
        before += rate.shards
        if 2 * before >= shards:
            return rate.seconds, shards
    raise ValueError("no rate")


def load_rates(store: Store) -> Rates:
    """What the newest runs of every pipeline took."""
    runs: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for key in store.list("runs"):
        if match := _COSTS.fullmatch(key):
            runs[match[1]].append((int(match[2]), key))
    keys = [key for found in runs.values() for _, key in sorted(found)[-RUNS:]]
    costs: list[RunCosts] = [load_json(RunCosts, data) for _, data in get_many(store, keys)]
    return Rates(rate for found in costs for rate in found.rates)


class Round(NamedTuple):
    """One round of a work, and what is left of it."""

    name: str
    rows: int
    rows_left: int
    shards_left: int


@dataclass(frozen=True)
class Job:
    """Stages that one worker does together, or one alone. flops: of all its rounds, whatever is left of them."""

    kind: str
    subject: str
    flops: int
    rounds: tuple[Round, ...]
    resources: Resources
    gang: int = 1

    @property
    def workers(self) -> int:
        """Workers (or gangs) that are opened."""
        return min(max(1, self.resources.workers // self.gang), max((r.shards_left for r in self.rounds), default=0))

    @property
    def flops_left(self) -> float:
        """As much of the FLOPs as is left of the longest round."""
        longest = max(self.rounds, key=lambda r: r.rows, default=None)
        return self.flops * longest.rows_left / longest.rows if longest and longest.rows else 0.0


@dataclass(frozen=True)
class Terms:
    """What is given beside the past. gpu, cpu: money per hour of one, in whatever currency. tflops: TFLOP/s of one device
    (a GPU, or a worker without), by which FLOPs are counted instead of by past runs."""

    gpu: float | None = None
    cpu: float | None = None
    tflops: float | None = None


@dataclass(frozen=True)
class Cost:
    """Hours that devices are held by busy workers, of GPUs and of the CPUs of workers without a GPU; never those that they wait.

    rests_on: kind -> the fewest past shards that a number for it rests on; 0 if it was counted by stated TFLOP/s.
    borrowed: kinds with a subject of which no past run tells, so that others stand for it. unknown: kinds of which no
    past run tells; their hours and money are not in the sums. unpriced: kinds whose money is not, for want of a price.
    """

    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    money: float = 0.0
    rests_on: Mapping[str, int] = field(default_factory=dict)
    borrowed: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    unpriced: frozenset[str] = frozenset()

    def __add__(self, other: Cost) -> Cost:
        rests_on = dict(self.rests_on)
        for kind, shards in other.rests_on.items():
            rests_on[kind] = min(shards, rests_on.get(kind, shards))
        return Cost(
            self.gpu_hours + other.gpu_hours,
            self.cpu_hours + other.cpu_hours,
            self.money + other.money,
            rests_on,
            self.borrowed | other.borrowed,
            self.unknown | other.unknown,
            self.unpriced | other.unpriced,
        )


class Part(NamedTuple):
    """One planned stage. forward: what stages that one worker does together have in common. done: its finished shards."""

    forward: str
    plan: Plan
    resources: Resources
    estimate: Estimate
    done: int

    def rounds(self) -> Iterator[Round]:
        """Its rounds; one begins when the one before it is done."""
        done = self.done
        for r in self.plan.rounds:
            left = max(0, r.n_shards - done)
            done = max(0, done - r.n_shards)
            yield Round(r.name, r.rows, min(r.rows, left * r.shard_rows), left)


def cost_of(parts: Iterable[Part], rates: Rates, terms: Terms) -> Cost:
    """What is left of these stages costs so much; what one worker does for several of them counts once."""
    groups: dict[str, dict[str, Part]] = defaultdict(dict)
    for part in parts:
        if any(r.shards_left for r in part.rounds()):
            groups[part.forward][part.plan.digest] = part
    return sum((estimate_cost(_together(list(group.values())), rates, terms) for group in groups.values()), Cost())


def _together(parts: Sequence[Part]) -> Job:
    """The job of siblings: a round of several of them is one round, as long as the longest of them."""
    rounds: dict[str, Round] = {}
    for part in parts:
        for r in part.rounds():
            other = rounds.get(r.name, r)
            rounds[r.name] = Round(
                r.name,
                max(r.rows, other.rows),
                max(r.rows_left, other.rows_left),
                max(r.shards_left, other.shards_left),
            )
    plan = parts[0].plan
    flops = flops_of([part.estimate for part in parts])
    return Job(plan.stage.kind, plan.stage.subject, flops, tuple(rounds.values()), parts[0].resources, plan.gang)


def estimate_cost(job: Job, rates: Rates, terms: Terms) -> Cost:
    """What is left of a job costs so much."""
    if not any(round.shards_left for round in job.rounds):
        return Cost()
    if terms.tflops is not None and job.flops:
        needs = job.resources
        devices = (needs.gpus or 1) * job.gang
        return _cost(job, job.flops_left / (terms.tflops * 1e12 * devices), terms, {job.kind: 0})
    on_gpu = job.resources.gpus > 0
    seconds, found = 0.0, []
    for round in job.rounds:
        if round.shards_left:
            rate = rates.find(job.kind, round.name, job.subject, on_gpu, "FLOP" if job.flops else "row")
            if rate is None:
                return Cost(unknown=frozenset([job.kind]))
            amount = job.flops * round.rows_left / round.rows if job.flops else round.rows_left
            seconds += rate.seconds * amount
            found.append(rate)
    if opening := rates.find(job.kind, OPEN, job.subject, on_gpu, "worker"):
        seconds += opening.seconds * job.workers
    borrowed = not all(rate.same_subject for rate in found)
    return _cost(job, seconds, terms, {job.kind: min(rate.shards for rate in found)}, borrowed)


def _cost(job: Job, seconds: float, terms: Terms, rests_on: dict[str, int], borrowed: bool = False) -> Cost:
    """Of a worker (or gang) that is busy for so long."""
    needs, hours = job.resources, seconds * job.gang / 3600
    gpu_hours = hours * needs.gpus
    cpu_hours = 0.0 if needs.gpus else hours * max(needs.cpus, needs.decode_threads)
    price = terms.gpu if needs.gpus else terms.cpu
    money = price * (gpu_hours or cpu_hours) if price is not None else None
    if needs.price is not None:
        money = needs.price * hours
    this = frozenset([job.kind])
    return Cost(
        gpu_hours,
        cpu_hours,
        money or 0.0,
        rests_on,
        borrowed=this if borrowed else frozenset(),
        unpriced=this if money is None else frozenset(),
    )
