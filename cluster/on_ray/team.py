"""One worker of the pool: an actor, or the n actors of a gang that start, work and end together."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from functools import cache
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.board import Outcome, Task
from cluster.on_ray.actor import HostActor
from cluster.scheduler import Slot, WorkerState
from jobs.protocol import Gang

Refs = list[Any]
Steps = Generator[Refs, list[Any], None]


class Died(Exception):
    """A team lost a member, or fell out of step, and was ended: what became of its task, and what only waited."""

    def __init__(self, outcome: Outcome | None, queued: list[Task], cause: str) -> None:
        super().__init__(cause)
        self.outcome = outcome
        self.queued = queued
        self.cause = cause


class Team:
    """Life of one worker. Tasks run in the order given; a gang's outcome is rank 0's, or the first failure."""

    def __init__(self, team_id: int, slot: Slot, store_uri: str) -> None:
        self.id = team_id
        self.slot = slot
        self._store_uri = store_uri
        self._actors: list[Any] = []
        self._group: PlacementGroup | None = None
        self._tasks: deque[tuple[Task, Refs]] = deque()
        self._opened: str | None = None
        self.started = False
        self._answers: dict[Any, Any] = {}
        self._steps: Steps | None = self._start()
        self._step_refs: Refs = next(self._steps)

    @property
    def state(self) -> WorkerState:
        """What the scheduler sees."""
        works = tuple(task.work for task, _ in self._tasks)
        return WorkerState(self.id, self.slot, works, self._opened, starting=self._steps is not None)

    @property
    def awaited(self) -> Refs:
        """The answers that this team needs next."""
        return [ref for ref in self._current if ref not in self._answers]

    @property
    def _current(self) -> Refs:
        if self._steps is not None:
            return self._step_refs
        return self._tasks[0][1] if self._tasks else []

    # -- start and end

    def _start(self) -> Steps:
        """The steps to a ready team; each waits for all of its answers."""
        if self.slot.gang == 1:
            self._actors = [_make_actor(self.slot, self._store_uri)]
            yield self._ask("hello")
            return
        self._group = placement_group([_bundle(self.slot)] * self.slot.gang, strategy="PACK")
        yield [self._group.ready()]
        self._actors = [_make_actor(self.slot, self._store_uri, self._group, rank) for rank in range(self.slot.gang)]
        yield self._ask("hello")
        (address,) = yield [self._actors[0].find_address.remote()]
        yield [a.join.remote(Gang(rank, self.slot.gang, address)) for rank, a in enumerate(self._actors)]

    def prove_alive(self) -> None:
        """An idle team must answer once before it is given more; nobody would notice otherwise that it is gone."""
        if self._steps is None and not self._tasks:
            self._steps = (refs for refs in [self._ask("hello")])
            self._step_refs = next(self._steps)

    def _ask(self, method: str) -> Refs:
        return [getattr(actor, method).remote() for actor in self._actors]

    def end(self) -> None:
        """Kill the processes and give their room back."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._group is not None:
            remove_placement_group(self._group)
        self._steps, self._actors, self._group = None, [], None
        self._tasks.clear()

    # -- work

    def submit(self, work: Any, task: Task) -> None:
        """Queue a task; `work` is a reference to its work."""
        self._tasks.append((task, [actor.run.remote(work, task) for actor in self._actors]))
        self._opened = task.work

    def advance(self, ready: Refs) -> Outcome | None:
        """Take answers that have arrived; returns the outcome of the running task when it is complete.

        Raises:
            Died: a process of this team is gone, or a gang fell out of step; the team has ended.
        """
        try:
            for ref in ready:
                self._answers[ref] = ray.get(ref)
                self._check_in_step(self._answers[ref])
        except ray.exceptions.RayTaskError as error:
            if self._tasks:
                raise self._die(str(error.cause), _unable(self._tasks[0][0], error)) from error
            raise self._die(describe(error)) from error
        except ray.exceptions.RayError as error:
            raise self._die(describe(error)) from error
        if self.awaited:
            return None
        answers = [self._answers[ref] for ref in self._current]
        self._answers = {}
        if self._steps is None:
            self._tasks.popleft()
            return answers[0]
        try:
            self._step_refs = self._steps.send(answers)
        except StopIteration:
            self._steps = None
            self.started = True
        return None

    def _check_in_step(self, answer: Any) -> None:
        """One failed member ends a gang, because the others may wait for it for ever."""
        if self.slot.gang > 1 and isinstance(answer, Outcome) and answer.state != "done":
            raise self._die(f"a member of the gang failed: {answer.message}", answer)

    def _die(self, cause: str, outcome: Outcome | None = None) -> Died:
        tasks = [task for task, _ in self._tasks]
        if tasks and outcome is None:
            outcome = Outcome(tasks[0], "lost", error="WorkerLost", message=cause)
        self.end()
        return Died(outcome, tasks[1:], cause)


def _unable(task: Task, error: ray.exceptions.RayTaskError) -> Outcome:
    """The worker could not even take the task, for example because it has another version of this package."""
    return Outcome(task, "failed", error=type(error.cause).__name__, message=str(error.cause), traceback=str(error))


def describe(error: BaseException) -> str:
    """Why a process ended, in one sentence for people."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    if "oom" in lowered or "out of memory" in lowered or "memory pressure" in lowered:
        return f"probably out of memory: Ray's memory monitor or the kernel ended the worker; use fewer workers ({text[:400]})"
    return f"the worker's process ended ({text[:400]})"


def _bundle(slot: Slot) -> dict[str, float]:
    needs = {"CPU": slot.cpus, "GPU": slot.gpus, "memory": slot.memory_gb * 1e9}
    return {name: amount for name, amount in needs.items() if amount}


@cache
def _actor_class() -> Any:
    return ray.remote(HostActor)


def _make_actor(slot: Slot, store_uri: str, group: PlacementGroup | None = None, rank: int = 0) -> Any:
    """An actor that Ray neither restarts nor retries: both are decided by the board."""
    options: dict[str, Any] = {
        "num_cpus": slot.cpus,
        "num_gpus": slot.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if slot.memory_gb:
        options["memory"] = int(slot.memory_gb * 1e9)
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    return _actor_class().options(**options).remote(store_uri, max(1, int(slot.cpus)))
