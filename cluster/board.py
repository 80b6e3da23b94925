"""What is left to do and what may start now: the pure, clock-free state of a run's work."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from cluster.held_back import HeldBack, find_chains, join
from cluster.works import Outcome, Task, Work
from jobs.protocol import Estimate
from schemas.plans import Plan

MAX_ATTEMPTS = 3
"""A shard that loses its worker this often is set aside: it is the shard, not the worker."""
MAX_FAILED_SHARDS = 10
"""After so many application errors in one work the rest would fail alike; what is running still finishes."""


def _numbers(plan: Plan) -> list[range]:
    """The numbers of the shards of each round, which count through all rounds."""
    ends = list(accumulate((r.n_shards for r in plan.rounds), initial=0))
    return [range(start, stop) for start, stop in pairwise(ends)]


class Board:
    """The unfinished shards of all works; `ready` gives tasks, `record` takes outcomes, `wake` ends rests. Pure: no store, no clock.

    A plan that reads a stage of another plan here waits until that one is published. Siblings that are freed together are
    one work; those that must still wait become another, because a worker opens all that its work reads.
    """

    def __init__(
        self, works: Sequence[Work], done: Mapping[str, set[int]], estimates: Mapping[str, Estimate] | None = None
    ) -> None:
        """done: stage -> its finished shards. estimates: stage -> what is planned for it, by which works are ordered."""
        self.works: dict[str, Work] = {}
        self.held_back: dict[str, HeldBack] = {}
        self._estimates = estimates or {}
        self._chains = find_chains([plan for work in works for plan in work.plans], self._estimates)
        self.failed: dict[str, Outcome] = {}
        self.fatal: Outcome | None = None
        self.damaged: dict[str, str] = {}
        self._attempts: dict[str, int] = defaultdict(int)
        self._fails: dict[str, int] = defaultdict(int)
        self._stopped: set[str] = set()
        self._out: dict[str, Task] = {}
        self._resting: dict[str, Task] = {}
        self._ready: dict[str, OrderedDict[str, Task]] = {}
        self._work_of: dict[str, str] = {}
        self._opened: list[Work] = []
        for work in works:
            self._add(work)
        self._plans = {plan.digest: plan for work in self.works.values() for plan in work.plans}
        self._left: dict[str, list[set[int]]] = {
            d: [set(numbers) - done.get(d, set()) for numbers in _numbers(plan)] for d, plan in self._plans.items()
        }
        self._total = sum(plan.n_shards for plan in self._plans.values())
        self._unfinished = sum(len(r) for rounds in self._left.values() for r in rounds)
        self._inputs = {d: self._plans.keys() & set(plan.stage.inputs.values()) for d, plan in self._plans.items()}
        self._readers: dict[str, list[str]] = defaultdict(list)
        for reader, inputs in self._inputs.items():
            for read in inputs:
                self._readers[read].append(reader)
        self._open([plan for digest, plan in self._plans.items() if not self._inputs[digest]])

    def _add(self, work: Work) -> Work:
        self.works[work.key] = work
        self.held_back[work.key] = join(work.plans, self._estimates, self._chains)
        self._ready[work.key] = OrderedDict()
        self._work_of.update((plan.digest, work.key) for plan in work.plans)
        return work

    def _open(self, plans: Iterable[Plan]) -> None:
        """Queue plans that have waited; those of their siblings that must go on waiting become a work of their own."""
        freed = dict.fromkeys(plan.digest for plan in plans)
        for key in dict.fromkeys(self._work_of[stage] for stage in freed):
            work = self.works[key]
            now = tuple(plan for plan in work.plans if plan.digest in freed)
            if len(now) < len(work.plans):
                del self.works[key], self.held_back[key], self._ready[key]
                self._add(Work(tuple(plan for plan in work.plans if plan.digest not in freed), work.resources))
                work = self._add(Work(now, work.resources))
            self._opened.append(work)
            self._queue(work, now)

    def take_opened(self) -> list[Work]:
        """Works whose inputs are all there, each told once."""
        opened, self._opened = self._opened, []
        return opened

    def _queue(self, work: Work, plans: Iterable[Plan]) -> None:
        """Queue the open round of these siblings; shards they share become one task."""
        alike: dict[tuple[int, int, int, int], list[Plan]] = defaultdict(list)
        for plan in plans:
            number = next((n for n, left in enumerate(self._left[plan.digest]) if left), None)
            if number is not None:  # those that are cut alike have the same shards, which are made once
                this = plan.rounds[number]
                first = _numbers(plan)[number].start
                alike[number, first, this.rows, min(this.rows, this.shard_rows)].append(plan)
        tasks = [task for (number, *_), cut in alike.items() for task in self._tasks(work, cut, number)]
        for task in sorted(tasks, key=lambda task: task.shard.number):
            self._ready[work.key][task.id] = task

    def _tasks(self, work: Work, plans: Sequence[Plan], number: int) -> Iterator[Task]:
        """The shards of one round that some of these plans lack, each with those that do."""
        left = {plan.digest: self._left[plan.digest][number] for plan in plans}
        for shard in plans[0].shards(number):
            if stages := tuple(digest for digest, numbers in left.items() if shard.number in numbers):
                yield Task(work.key, shard, stages)

    def ready(self) -> Iterator[Task]:
        """Tasks that may start now, oldest first within each work."""
        for key in self.works:
            yield from self.waiting(key).values()

    def waiting(self, work: str) -> Mapping[str, Task]:
        """Tasks of one work that may start now, oldest first, by id."""
        return {} if self.fatal else self._ready[work]

    def rows_left(self, work: str) -> int:
        """Rows of the first round that some plan of a work still lacks, whether or not they may start now."""
        cuts = ((plan.rounds[0], self._left[plan.digest][0]) for plan in self.works[work].plans if plan.rounds)
        ranges = {(n * cut.shard_rows, min((n + 1) * cut.shard_rows, cut.rows)) for cut, left in cuts for n in left}
        return sum(stop - start for start, stop in ranges)

    def hand_out(self, task: Task) -> None:
        """Mark a task as given to a worker."""
        self._out[task.id] = self._ready[task.work].pop(task.id)

    def take_back(self, task: Task) -> None:
        """A task that was queued behind another on a dead worker: it never ran, so it costs no attempt."""
        self._requeue(self._out.pop(task.id))

    @property
    def resting(self) -> Mapping[str, Task]:
        """Tasks that failed and will be tried again, by id; whoever has a clock says when, by `wake`."""
        return {} if self.fatal else self._resting

    def wake(self, task: Task) -> None:
        """A task has rested: it may start now, before the others of its work."""
        self._requeue(self._resting.pop(task.id))

    def _requeue(self, task: Task) -> None:
        if task.work not in self._stopped:
            queue = self._ready[task.work]
            queue[task.id] = task
            queue.move_to_end(task.id, last=False)

    def record(self, outcome: Outcome) -> list[Plan]:
        """Take in what became of a task; returns the plans that have just become complete."""
        task = self._out.pop(outcome.task.id)
        if outcome.state == "done":
            return self._finish(task)
        if outcome.state == "fatal":
            self.fatal = outcome
        else:
            self._attempts[task.id] += 1
            if (outcome.state == "lost" or outcome.retry) and self._attempts[task.id] < MAX_ATTEMPTS:
                self._resting[task.id] = replace(task, attempt=self._attempts[task.id])
            elif outcome.state == "open_failed":
                self._fail(task, outcome, stop=True)
            elif others := tuple(stage for stage in task.stages if outcome.blamed and stage not in outcome.blamed):
                self._requeue(replace(task, stages=others))
                task = replace(task, stages=outcome.blamed)
                self._fail(task, replace(outcome, task=task), stop=False)
            else:
                self._fails[task.work] += 1
                self._fail(task, outcome, stop=self._fails[task.work] >= MAX_FAILED_SHARDS)
        return []

    def _fail(self, task: Task, outcome: Outcome, stop: bool) -> None:
        self.failed[task.id] = outcome
        if stop:
            self._stopped.add(task.work)
            self._ready[task.work].clear()

    def _finish(self, task: Task) -> list[Plan]:
        complete, advanced = [], []
        for stage in task.stages:
            left = self._left[stage]
            this_round = left[task.shard.round]
            self._unfinished -= task.shard.number in this_round
            this_round.discard(task.shard.number)
            if not any(left):
                complete.append(self._plans[stage])
            elif not this_round:
                advanced.append(self._plans[stage])
        if advanced and task.work not in self._stopped:
            self._queue(self.works[task.work], advanced)
        return complete

    def publish(self, plans: Sequence[Plan]) -> None:
        """These plans are complete, and others can read what they made: frees those that waited for nothing else."""
        freed = []
        for plan in plans:
            for reader in self._readers.pop(plan.digest, ()):
                self._inputs[reader].discard(plan.digest)
                if not self._inputs[reader]:
                    freed.append(self._plans[reader])
        self._open(freed)

    def missing_inputs(self, plan: Plan) -> set[str]:
        """Stages of this board that this plan reads and that are not published."""
        return self._inputs[plan.digest]

    def complete(self) -> list[Plan]:
        """Plans with no shard left."""
        return [self._plans[d] for d, left in self._left.items() if not any(left)]

    def incomplete(self) -> list[Plan]:
        """Plans with shards left."""
        return [self._plans[d] for d, left in self._left.items() if any(left)]

    @property
    def running(self) -> int:
        """Tasks handed out and not yet recorded."""
        return len(self._out)

    @property
    def finished(self) -> bool:
        """Nothing is running, and nothing may start now or later."""
        return not self._out and not self.resting and (self.fatal is not None or not any(self._ready.values()))

    def progress(self) -> dict[str, tuple[int, int]]:
        """Stage -> (shards finished, shards in all)."""
        totals = ((digest, plan.n_shards) for digest, plan in self._plans.items())
        return {digest: (total - sum(map(len, self._left[digest])), total) for digest, total in totals}

    def counts(self) -> tuple[int, int]:
        """(shards finished, shards in all), over every stage."""
        return self._total - self._unfinished, self._total
