"""Whether texts have the name of the concept that their feature tells best, and how often a blind guess would hit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jobs.columns import as_ranges, read_index
from jobs.explained import read_rows
from jobs.protocol import Part
from jobs.score_explanations.task import Task, explain_stages, explanation, make_parts
from miclip_core.explain.naming import names_words
from miclip_core.world.reading import names_value
from miclip_core.world.scene import CONCEPTS

COLUMNS = ("feature", "level", "concept", "auroc")


class Best(NamedTuple):
    """The concept that a feature tells best, and how well."""

    category: str
    value: str
    auroc: float


class Vocabulary(NamedTuple):
    """All values of each category of concepts, and whether a text names one: (text, category, value) -> bool."""

    values: dict[str, tuple[str, ...]]
    names: Callable[[str, str, str], bool]


def results(task: Task) -> Iterator[Part]:
    """Rows of explanation_naming, for features that tell a concept well enough."""
    vocabulary: Vocabulary = task.hold("vocabulary", lambda: _vocabulary(task))
    if not vocabulary.values:
        task.notes.append(
            f"no feature tells any concept of level {task.params['level']}, so naming is of none: the images of the "
            "sae_features stage have no labels, or it was made without selectivity for them"
        )
    features = {plan.digest: task.features(plan) for plan in task.plans}
    bests = _read_bests(task, sorted(set().union(*features.values())))
    for plan in task.plans:
        texts = task.texts(explain_stages(plan)[0], features[plan.digest])
        named = [(text, bests[text.feature]) for text in texts if text.feature in bests]
        rows = [{**explanation(plan, text), **_row(task, vocabulary, text.text, best)} for text, best in named]
        yield from make_parts(plan, "explanation_naming", rows)


def _row(task: Task, vocabulary: Vocabulary, text: str, best: Best) -> dict[str, object]:
    values = vocabulary.values[best.category]
    named = [value for value in values if vocabulary.names(text, best.category, value)]
    return {
        "concept": f"{best.category}={best.value}",
        "auroc": best.auroc,
        "level": task.params["level"],
        "named": best.value in named,
        "share_named": len(named) / len(values),
    }


def _read_bests(task: Task, features: Sequence[int]) -> dict[int, Best]:
    """By feature, for those that tell a concept well enough; of equal ones the first by name."""
    found: dict[int, Best] = {}
    stage, level = task.features_stage, task.params["level"]
    rows = read_rows(task.inputs, stage, "sae_selectivity", COLUMNS, as_ranges(features)) if features else ()
    for row in rows:
        if row["level"] == level and row["auroc"] >= task.params["least_auroc"]:
            category, _, value = row["concept"].partition("=")
            best = Best(category, value, row["auroc"])
            other = found.setdefault(row["feature"], best)
            found[row["feature"]] = min(other, best, key=lambda one: (-one.auroc, one.category, one.value))
    return found


def _vocabulary(task: Task) -> Vocabulary:
    """Of the demo world all of its values; of other images those that some feature was measured for."""
    batches = task.inputs.table(task.features_stage, "sae_selectivity", ("level", "concept"))
    rows = (row for batch in batches for row in batch.to_pylist() if row["level"] == task.params["level"])
    found: dict[str, set[str]] = {}
    for row in rows:
        category, _, value = row["concept"].partition("=")
        found.setdefault(category, set()).add(value)
    uris = read_index(task.inputs, task.index, "uri", [(0, 1)])
    if str(uris.get(0, "")).startswith("world:"):
        return Vocabulary({name: tuple(CONCEPTS.get(name, ())) or tuple(found[name]) for name in found}, names_value)
    return Vocabulary(
        {name: tuple(sorted(values)) for name, values in found.items()}, lambda text, _, value: names_words(text, value)
    )
