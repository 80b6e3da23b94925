"""One worker of the pool: an actor, or the n actors of a gang that start, work and end together."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import replace
from functools import cache
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.on_ray.actor import HostActor
from cluster.scheduler import Slot, WorkerState
from cluster.works import Outcome, Task
from jobs.protocol import Gang

Refs = list[Any]
Steps = Generator[Refs, list[Any], None]


class Died(Exception):
    """A team lost a member, or fell out of step, and was ended: what became of its task, and what only waited."""

    def __init__(self, outcome: Outcome | None, queued: list[Task], cause: str, out_of_memory: bool) -> None:
        super().__init__(cause)
        self.outcome = outcome
        self.queued = queued
        self.cause = cause
        self.out_of_memory = out_of_memory


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
        self._steps: Steps | None = None
        self._step_refs: Refs = []
        self._begin(self._start())

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
            self._begin(self._greet())

    def _begin(self, steps: Steps) -> None:
        self._steps, self._step_refs = steps, next(steps)

    def _greet(self) -> Steps:
        yield self._ask("hello")

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
                self._check_usable(self._answers[ref])
        except ray.exceptions.RayTaskError as error:
            raise self._die(str(error.cause), outcome=self._unable(error)) from error
        except ray.exceptions.RayError as error:
            raise self._die(describe(error), is_out_of_memory(error)) from error
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

    def _check_usable(self, answer: Any) -> None:
        """End a team whose device is gone, and a gang with one failed member, for whom the others may wait for ever."""
        if not isinstance(answer, Outcome) or answer.state == "done":
            return
        if has_lost_device(answer):
            raise self._die(f"the device failed: {answer.message}", outcome=replace(answer, state="lost"))
        if self.slot.gang > 1:
            raise self._die(f"a member of the gang failed: {answer.message}", outcome=answer)

    def _die(self, cause: str, out_of_memory: bool = False, outcome: Outcome | None = None) -> Died:
        tasks = [task for task, _ in self._tasks]
        if tasks and outcome is None:
            outcome = Outcome(tasks[0], "lost", error="WorkerLost", message=cause)
        self.end()
        return Died(outcome, tasks[1:], cause, out_of_memory)

    def _unable(self, error: ray.exceptions.RayTaskError) -> Outcome | None:
        """The worker could not even take its task, for example because it has another version of this package."""
        if not self._tasks:
            return None
        name, message = type(error.cause).__name__, str(error.cause)
        return Outcome(self._tasks[0][0], "failed", error=name, message=message, traceback=str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended the process."""
    return isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error)


def has_lost_device(outcome: Outcome) -> bool:
    """Whether an accelerator failed under a worker: its context is gone, and no later call of that process can succeed."""
    named = outcome.error == "AcceleratorError"  # of torch since 2.8, a RuntimeError before and in some libraries
    return named or (outcome.error == "RuntimeError" and "CUDA error" in outcome.message)


def describe(error: BaseException) -> str:
    """Why a process ended, in one sentence for people."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    if getattr(error, "actor_init_failed", False):
        return lines[-1]  # a traceback ends with its error
    said = " ".join(lines)
    if is_out_of_memory(error):
        return f"the worker was probably out of memory, it is tried again with fewer workers: {said[:300]}"
    if "node has died" in said:
        return "the machine that the worker was on has died"
    return f"the worker's process ended: {said[:300]}"


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
