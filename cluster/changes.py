"""What is different from the run before: models and whatever else stages are about that are new, gone, changed, failed or recovered."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from cluster.amounts import first_line
from cluster.ledger import load_published
from cluster.runs import RunState, StageState, UnplannedCell, finished_runs, load_state, runs_before
from cluster.stores.base import Store
from schemas import layout
from schemas.base import Frozen
from schemas.errors import KeyMissing
from schemas.plans import StageSpec, load_json

Word = Literal["new", "gone", "changed", "failed", "still failing", "recovered"]
_REF = re.compile(r"\b(sae|align):[0-9a-f]{8}\b|\b[0-9a-f]{8}\b")
"""In the detail of a stage: digests, which differ whenever anything before it does."""
_DIGEST = re.compile(r"\b[0-9a-f]{8}([0-9a-f]{12})?\b")
"""In its settings: a whole digest, or the part of it that people read."""
_DIGITS = 8
"""Of a digest that a detail refers to."""

Part = StageState | UnplannedCell
Place = tuple[str, str, str]
"""(cell, subject, output): what stays the same from one run to the next."""
Alike = Mapping[str, Sequence[str]]
"""Detail of a stage, without digests -> the stages of one place with that detail, in the order of the plan."""


MADE_FROM = "what it is made from"
"""The reason of a stage that differs only because one before it does."""


class Change(Frozen):
    """What happened to one subject since the run before."""

    subject: str
    change: Word
    cells: tuple[str, ...]
    """Stages of the pipeline whose results differ, or which failed."""
    why: tuple[str, ...] = ()
    """Names of settings and inputs that differ, or the first words of errors."""


class Changes(Frozen):
    """`changes.json` of a run."""

    run: str
    before: str | None
    """The run that it was compared with; None if there is none."""
    unchanged: int
    """Subjects that are as they were."""
    subjects: tuple[Change, ...]


def stages_by_place(stages: Iterable[StageState]) -> dict[Place, dict[str, list[str]]]:
    """The digests of a run by what they are about; a detail that refers to another stage has the settings of that one."""
    stages = tuple(stages)
    settings = {stage.digest[:_DIGITS]: _REF.sub("", stage.detail).strip() for stage in stages}
    found: dict[Place, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for stage in stages:
        detail = _REF.sub(lambda ref: settings.get(ref[0][-_DIGITS:], ""), stage.detail).strip()
        found[stage.cell, stage.subject, stage.output][detail].append(stage.digest)
    return {place: dict(details) for place, details in found.items()}


def pair_alike(was: Alike, now: Alike) -> Iterator[tuple[str | None, str | None]]:
    """Stages of one place then and now: equal ones, those of one detail, and then, if as many are left, those of changed settings."""
    same = {digest for old in was.values() for digest in old} & {digest for new in now.values() for digest in new}
    yield from ((digest, digest) for digest in sorted(same))
    left: tuple[list[str], list[str]] = ([], [])
    for detail in {**was, **now}:
        old, new = ([digest for digest in some.get(detail, ()) if digest not in same] for some in (was, now))
        if len(old) == len(new):
            yield from zip(old, new)
        else:
            left[0].extend(old)
            left[1].extend(new)
    if len(left[0]) == len(left[1]):
        yield from zip(*left)
    else:
        yield from ((digest, None) for digest in left[0])
        yield from ((None, digest) for digest in left[1])


def run_before(store: Store, run: str) -> str | None:
    """The newest finished run of the same pipeline before this one, small trials left out."""
    return next((tables.run for tables in finished_runs(store, runs_before(store, run))), None)


def find_changes(store: Store, now: RunState, before: RunState | None) -> Changes:
    """Compare two runs subject by subject; a subject that failed is never called changed as well."""
    cells = {stage.cell: stage.subject for run in (before, now) if run for stage in run.stages}
    was, is_ = (_by_subject(run.parts if run else (), cells) for run in (before, now))
    changes = [_change(store, subject, was.get(subject, ()), is_.get(subject, ())) for subject in {**was, **is_}]
    found = [change for change in changes if change is not None]
    return Changes(
        run=now.run,
        before=before.run if before else None,
        unchanged=len(changes) - len(found),
        subjects=tuple(sorted(found, key=lambda change: (change.change, change.subject))),
    )


def _by_subject(parts: Iterable[Part], cells: Mapping[str, str]) -> dict[str, list[Part]]:
    """Stages and cells by what they are about; cells: what the stages of a cell are about, where one of the runs has some."""
    found: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        found[part.subject if isinstance(part, StageState) else cells.get(part.cell, part.subject)].append(part)
    return dict(found)


def _change(store: Store, subject: str, was: Sequence[Part], now: Sequence[Part]) -> Change | None:
    failed_before, failed = _failed(was), _failed(now)
    if failed:
        why = dict.fromkeys(first_line(part.error) or "not finished" for part in failed)
        word: Word = "still failing" if failed_before else "failed"
        return Change(subject=subject, change=word, cells=_cells(failed), why=tuple(why))
    if not now or not was:
        return Change(subject=subject, change="new" if now else "gone", cells=_cells(now or was))
    if failed_before:
        return Change(subject=subject, change="recovered", cells=_cells(failed_before))
    differ = [
        (cell, reasons) for cell, old, new in _differing(was, now) if (reasons := _why(store, old, new)) is not None
    ]
    if not differ:
        return None
    why = dict.fromkeys(reason for _, reasons in differ for reason in reasons)
    own = [reason for reason in why if reason != MADE_FROM]
    cells = tuple(dict.fromkeys(cell for cell, _ in differ))
    return Change(subject=subject, change="changed", cells=cells, why=tuple(own or why))


def _differing(was: Iterable[Part], now: Iterable[Part]) -> Iterator[tuple[str, str | None, str | None]]:
    """(cell, stage then, stage now) of all that are not the same; inspections aside, which also speak of times of files."""
    before, after = (
        stages_by_place(p for p in parts if isinstance(p, StageState) and p.kind != "inspect") for parts in (was, now)
    )
    for place in {**before, **after}:
        for old, new in pair_alike(before.get(place, {}), after.get(place, {})):
            if old != new:
                yield place[0], old, new


def _failed(parts: Iterable[Part]) -> list[Part]:
    return [part for part in parts if not (isinstance(part, StageState) and part.is_published)]


def _cells(stages: Iterable[Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stage.cell for stage in stages))


def _why(store: Store, old: str | None, new: str | None) -> list[str] | None:
    """Names of the settings and inputs in which two stages differ, as far as both are there; None if their content is the same."""
    if old is None or new is None:
        return ["the spec"]
    before, after = load_published(store, old), load_published(store, new)
    if before is None or after is None:
        return []
    return None if before.content == after.content else _differences(before.stage, after.stage)


def _differences(before: StageSpec, after: StageSpec) -> list[str]:
    found = ["the method"] if before.method != after.method else []
    found += _unequal(_without_digests(before.params), _without_digests(after.params))
    inputs = _unequal(before.inputs, after.inputs)
    found += ["weights"] if "model" in inputs else []
    found += ["images"] if "images" in inputs else []
    return found or [MADE_FROM]


def _without_digests(value: Any) -> Any:
    """A setting without the digests of the stages that it names, which differ whenever anything before these does."""
    if isinstance(value, str):
        return _DIGEST.sub("", value)
    if isinstance(value, Mapping):
        return {name: _without_digests(inside) for name, inside in value.items()}
    return [_without_digests(inside) for inside in value] if isinstance(value, Sequence) else value


def _unequal(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def save_changes(store: Store, changes: Changes) -> None:
    """Write `changes.json` of a run, once."""
    store.create(layout.run_key(changes.run, "changes.json"), changes.model_dump_json(indent=1).encode())


def load_changes(store: Store, run: str) -> Changes | None:
    """What changed with a run, or None if nobody has looked."""
    try:
        return load_json(Changes, store.get(layout.run_key(run, "changes.json")))
    except KeyMissing:
        return None


def changes_of(store: Store, run: str, against: str | None = None) -> Changes:
    """What a run changed against another one, or against the one before it.

    Raises:
        UnknownRun: one of them is not there.
    """
    before = against or run_before(store, run)
    return find_changes(store, load_state(store, run), load_state(store, before) if before else None)
