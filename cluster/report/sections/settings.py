"""What stages were asked, with all that they read: which are seeds of one thing, and what tells the others apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from cluster.report.data import ReportData
from cluster.report.sections.variants import APART, place
from schemas.base import canonical_json

Path = tuple[str, ...]
Asked = frozenset[tuple[Path, str]]
"""Where a setting stands, through all that is read, and its value as JSON; equal for stages that differ in their seed alone."""
Row = Mapping[str, Any]
DIGITS = 8
"""Of a digest that has to tell stages apart."""


class Settings:
    """The settings of all stages of a report."""

    def __init__(self, data: ReportData) -> None:
        self._stages = {digest: published.stage for digest, published in data.stages.items()}
        self._known: dict[str, dict[Path, Any]] = {}
        self._names: dict[str, str] = {}
        for run in data.runs:
            for stage in run.state.stages:
                self._names.setdefault(stage.digest, stage.cell.partition("/")[0])

    def of(self, stage: str, without: Collection[str] = ()) -> Asked:
        """All settings of a stage but its seed; `without`: names of its own params and inputs that do not count."""
        return frozenset((path, canonical_json(v)) for path, v in self._flat(stage).items() if path[0] not in without)

    def _flat(self, stage: str) -> dict[Path, Any]:
        """Each setting by where it stands: (`tau`,) of the stage itself, (`units`, `tau`) of the one it reads as units."""
        if stage not in self._known:
            of = self._stages.get(stage)
            found = {} if of is None else {("version",): of.method, **dict(_values((), of.params))}
            for name, digest in of.inputs.items() if of else ():
                if digest in self._stages:
                    found |= {(name, *path): value for path, value in self._flat(digest).items()}
                found[name, "of"] = self._stages[digest].subject if digest in self._stages else digest
            self._known[stage] = found
        return self._known[stage]

    def series(self, rows: Iterable[Row], without: Collection[str] = ()) -> dict[str, list[Any]]:
        """Rows by method, in their usual order: under one name only those that differ in their seed.

        A variant that was asked for in several ways is there once for each, under a name that says how they differ.
        """
        found: dict[str, dict[Asked, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            found[row["variant"]][self.of(row["stage"], without)].append(row)
        named = {}
        for variant in sorted(found, key=place):
            groups = [found[variant][asked] for asked in sorted(found[variant], key=sorted)]
            for words, group in zip(self.tell([group[0]["stage"] for group in groups], without), groups, strict=True):
                named[variant + (APART + words if words else "")] = group
        return named

    def tell(self, stages: Sequence[str], without: Collection[str] = ()) -> list[str]:
        """What tells each of several stages from the others: settings, else their name in the spec or their digest."""
        if len(stages) < 2:
            return [""] * len(stages)
        words = self._differences(stages, without)
        for more in (lambda stage: self._names.get(stage, ""), lambda stage: stage[:DIGITS]):
            if all(words) and len(set(words)) == len(words):
                break
            times = Counter(words)
            words = [
                ", ".join(filter(None, (w, more(s)))) if times[w] > 1 or not w else w for s, w in zip(stages, words)
            ]
        return words

    def _differences(self, stages: Sequence[str], without: Collection[str]) -> list[str]:
        flat = [self._flat(stage) for stage in stages]
        paths = sorted(
            {path for of in flat for path in of if path[0] not in without}, key=lambda path: (len(path), path)
        )
        said: list[list[str]] = [[] for _ in stages]
        for path in paths:
            words = [_say(path, of[path]) if path in of else "" for of in flat]
            if len(set(words)) > 1:
                for own, word in zip(said, words, strict=True):
                    if word and word not in own:
                        own.append(word)
        return [", ".join(own[:3]) for own in said]


def _values(at: Path, params: Mapping[str, Any]) -> Iterable[tuple[Path, Any]]:
    """Every setting with its place; seeds are left out."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _values((*at, name), value)
        elif name != "seed":
            yield (*at, name), value


def _say(path: Path, value: Any) -> str:
    """`tau 5`, `8 classes`; nothing of digests and the like, which say nothing to people."""
    name = (path[-2] if path[-1] == "of" else path[-1]).replace("_", " ")
    if value is None or (isinstance(value, str) and len(value) >= 20 and set(value) <= set("0123456789abcdef")):
        return ""
    if isinstance(value, (list, tuple)):
        return f"{name} {value[0]}" if len(value) == 1 else f"{len(value)} {name}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
