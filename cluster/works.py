"""What is to be done and what became of it: works, their tasks and outcomes, as values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from jobs.kinds import SEVERAL
from schemas.base import digest
from schemas.plans import Plan, Resources, Shard


class Need(Protocol):
    """What a place is asked to hold: a work, or a cell of which nothing is known yet but this."""

    @property
    def title(self) -> str: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def gang(self) -> int: ...


@dataclass(frozen=True)
class Work:
    """Sibling plans that one worker opens together, and what that worker needs."""

    plans: tuple[Plan, ...]
    resources: Resources

    @cached_property
    def key(self) -> str:
        """Names the work and how it is done; a host that has it open need not open again, even in a later run."""
        return digest(
            [[plan.digest for plan in self.plans], dict(self.plans[0].effort), self.resources.canonical_json()]
        )

    @property
    def kind(self) -> str:
        """The job kind of all its plans."""
        return self.plans[0].stage.kind

    @property
    def gang(self) -> int:
        """Workers that take each task together."""
        return self.plans[0].gang

    @property
    def title(self) -> str:
        """For people: kind and subject, and of what does several things with one subject which of them."""
        words = [self.kind, self.plans[0].stage.subject]
        if self.kind in SEVERAL:
            details = dict.fromkeys(plan.stage.detail for plan in self.plans if plan.stage.detail)
            words += [self.plans[0].stage.output, ", ".join(details)]
        return " ".join(words).rstrip()


@dataclass(frozen=True)
class Task:
    """One shard for those sibling stages that still lack it: what is handed to a worker."""

    work: str
    shard: Shard
    stages: tuple[str, ...]
    attempt: int = 0

    @property
    def id(self) -> str:
        """Unique among unfinished tasks of a run; siblings may reach a shard of a later round at different times."""
        return f"{self.stages[0]}/{self.shard.number:05d}"


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    done: markers written. failed: the worker raised (`retry` if another try may help). lost: the worker's process
    died while it ran. open_failed: the worker could not be opened, so no shard of this work can run. fatal: store or
    cluster is away, the run ends.
    """

    task: Task
    state: Literal["done", "failed", "lost", "open_failed", "fatal"]
    rows: int = 0
    items: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    traceback: str = ""
    retry: bool = False
    exit_code: int = 1
    notes: tuple[str, ...] = ()
    blamed: tuple[str, ...] = ()
    """Of a failure: the stages of the task that it concerns, or all if empty."""
    resumed: bool = False
    """Whether an earlier try did some of it, so that its seconds are not those of all items."""


def group_siblings(plans: Iterable[tuple[Plan, Resources]]) -> list[Work]:
    """Join plans that one worker can serve in one pass: same kind, worker key, effort, gang and first round."""
    groups: dict[str, list[Plan]] = defaultdict(list)
    resources: dict[str, Resources] = {}
    seen: set[str] = set()
    for plan, needs in plans:
        if plan.digest in seen:  # two cells may ask for one stage
            continue
        seen.add(plan.digest)
        first = plan.rounds[0].canonical_json() if plan.rounds else ""
        key = digest([plan.stage.kind, plan.worker, dict(plan.effort), plan.gang, first, needs.canonical_json()])
        groups[key].append(plan)
        resources[key] = needs
    return [Work(tuple(group), resources[key]) for key, group in groups.items()]
