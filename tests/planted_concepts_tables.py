"""The tables of docs from the files that `python -m tests.planted_concepts DIR` wrote; `python -m tests.planted_concepts_tables DIR`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miclip_core.evaluate.significance import (
    Comparison,
    bootstrap_interval,
    compare_correct,
    compare_scores,
    correct_by_holm,
    spread_over_seeds,
)
from miclip_core.world.planted import VALUES
from miclip_core.world.scene import PLANTED, SHAPES
from tests.planted_concepts import ALIGNERS, CATEGORY, CONCEPTS

Block = dict[str, Any]
KINDS = {"resid_post.-2@patch": 0, "stage.3@map": 0, "mlp_act.-2@patch": 1, "stage.4@map": 1}
UNITS = ("neurons", "neurons, wide", "features")
OURS = ("miclip in+out", "miclip in", "miclip out")
BLIND = (
    "clip_dissect cos_cubed",
    "clip_dissect cos",
    "clip_dissect soft_wpmi",
    "clip_dissect wpmi",
    "clip_dissect rank_reorder",
)
TOLD = ("act_values", "netdissect", "v_interp")
CONTROLS = ("shuffled", "random")
SHORT = {name: name.replace("clip_dissect ", "") for name in BLIND} | {name: f"{name}†" for name in TOLD}
MAIN = (*OURS, "clip_dissect cos_cubed", "clip_dissect soft_wpmi", *TOLD)
BOUNDS = ("truth", "random")
STEERED = (*OURS, "clip_dissect cos_cubed", "clip_dissect soft_wpmi", *TOLD, *BOUNDS)
ENOUGH = 6


class Named(NamedTuple):
    """Per unit the share of seeds that name it rightly, what it stands for and with which AUROC; and the accuracy of every seed."""

    values: np.ndarray
    truth: np.ndarray
    auroc: np.ndarray
    seeds: list[float]


class Model:
    """What was measured of one model: blocks of neurons, of wide neurons, and of the features of every SAE."""

    def __init__(self, path: Path) -> None:
        found = json.loads(path.read_text())
        self.name: str = found["model"]
        self.blocks: list[list[Block]] = [[], [], []]
        for block in found["blocks"]:
            self.blocks[2 if block["what"] == "features" else KINDS[block["site"]]].append(block)

    def runs(self, kind: int, clip: int, method: str) -> list[tuple[Block, dict[str, Any]]]:
        """Every block and seed that this method was measured with, in the order of seeds; none where there is no such CLIP."""
        clips = ALIGNERS[self.name]
        if clip >= len(clips):
            return []
        blocks = self.blocks[kind]
        return [(block, run) for block in blocks for run in block["clips"][clips[clip]] if run["method"] == method]

    def right(self, kind: int, clip: int, method: str) -> Named:
        """What a method says of the judged units."""
        runs = self.runs(kind, clip, method)
        seeds = [float(np.mean(run["right"])) for _, run in runs if run["right"]]
        if not runs:
            return Named(np.empty(0), np.empty(0, np.int64), np.empty(0), seeds)
        if kind < 2:  # the same neurons whatever the seed
            block = self.blocks[kind][0]
            return Named(
                np.mean([run["right"] for _, run in runs], 0),
                np.array(block["truth"], np.int64),
                np.array(block["auroc"]),
                seeds,
            )
        values, truth, auroc = (
            np.concatenate(some)
            for some in zip(*((run["right"], block["truth"], block["auroc"]) for block, run in runs), strict=True)
        )
        return Named(values.astype(float), truth.astype(np.int64), auroc, seeds)

    def precision(self, kind: int, clip: int, method: str) -> Iterator[tuple[str, float, float]]:
        """(concept, precision, ceiling) of every seed."""
        for _, run in self.runs(kind, clip, method):
            for concept, (value, ceiling) in run["located"].items():
                yield concept, value, ceiling

    def steered(self, kind: int, images: str, method: str, change: str, off: bool) -> np.ndarray:
        """Change of accuracy per class in points, [values]: of neurons the mean over seeds, of features every seed."""
        found = [
            values[change][int(off)]
            for block in self.blocks[kind]
            for name, values in block["steered"].get(images, {"methods": {}})["methods"].items()
            if name.partition("#")[0] == method
        ]
        if not found:
            return np.empty(0)
        values = np.mean(found, 0) if kind < 2 else np.concatenate(found)
        return values[~np.isnan(values)]


def share(values: np.ndarray, seeds: Sequence[float] = (), digits: int = 2) -> str:
    """A mean with its interval over units and, where there are several, its standard deviation over seeds."""
    if not len(values):
        return ""
    text = f"{values.mean():.{digits}f}"
    if len(values) >= ENOUGH:
        low, high = bootstrap_interval(values)
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    spread = spread_over_seeds(seeds)
    return text if spread is None else f"{text}, sd {spread:.{digits}f}"


def points(values: np.ndarray, off: np.ndarray) -> str:
    """A change in points with its interval over classes, and that of the other classes behind it."""
    if not len(values):
        return ""
    low, high = bootstrap_interval(values)
    return f"{values.mean():+.0f} ({low:+.0f} to {high:+.0f}); {off.mean():+.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def names(methods: Sequence[str]) -> list[str]:
    """Heads of columns."""
    return [SHORT.get(method, method) for method in methods]


# ---------------------------------------------------------------- tables


def descriptions(models: Sequence[Model], clip: int, methods: Sequence[str] = MAIN) -> str:
    """Accuracy of every model and kind of unit."""
    rows = []
    for model in models:
        for kind, what in enumerate(UNITS):
            if clip >= len(ALIGNERS[model.name]):
                continue
            blocks = model.blocks[kind]
            judged = [len(block["truth"]) for block in blocks]
            strict = [sum(auroc >= 0.95 for auroc in block["auroc"]) for block in blocks]
            counts = f"{'+'.join(map(str, judged))} of {blocks[0]['units']} ({'+'.join(map(str, strict))})"
            clip_name = ALIGNERS[model.name][clip].partition(":")[2]
            cells = []
            for method in methods:
                named = model.right(kind, clip, method)
                cells.append(share(named.values, named.seeds if method in OURS else ()))
            rows.append([f"`{model.name}`", clip_name, what, counts, *cells])
    return table(["model", "CLIP", "units", "judged (above .95)", *names(methods)], rows)


def categories(models: Sequence[Model]) -> str:
    """Accuracy by category over the units of all models, each with its first CLIP."""
    rows = []
    wanted = [category for category in PLANTED if category != "size"]
    for kind, what in enumerate(UNITS):
        for method in (*OURS, *BLIND, *TOLD, *CONTROLS):
            found = [model.right(kind, 0, method) for model in models]
            values, truth, auroc = (np.concatenate([one[i] for one in found]) for i in range(3))
            category = CATEGORY[truth]
            cells = [share(values[category == list(PLANTED).index(name)]) for name in wanted]
            precision = [one for model in models for one in model.precision(kind, 0, method)]
            got, best = (np.array([one[i] for one in precision]) for i in (1, 2))
            rows.append(
                [
                    what,
                    names([method])[0],
                    share(values),
                    share(values[auroc >= 0.95]),
                    *cells,
                    f"{share(got)} of {best.mean():.2f}",
                ]
            )
    return table(["units", "method", "all", "above .95", *wanted, "precision@5 of at most"], rows)


def concepts(models: Sequence[Model], kind: int = 2) -> str:
    """Precision@5 of every concept, over models and seeds that have a unit for it."""
    methods = (*MAIN, "random")
    found = {method: [one for model in models for one in model.precision(kind, 0, method)] for method in methods}
    rows = []
    for (category, _), name in zip(VALUES, CONCEPTS.names, strict=True):
        values = {method: [one[1] for one in found[method] if one[0] == name] for method in methods}
        ceiling = [one[2] for one in found["random"] if one[0] == name]
        if category != "size":
            cells = [f"{np.mean(values[method]):.2f}" if values[method] else "" for method in methods]
            rows.append([name, str(len(ceiling)), f"{np.mean(ceiling):.2f}" if ceiling else "", *cells])
    return table(["concept", "SAEs with a unit", "at most", *names(methods)], rows)


def interventions(models: Sequence[Model]) -> str:
    """Changes of accuracy, and behind them those where the units of another class were edited."""
    rows = []
    for model in models:
        for kind in (0, 2):
            for images, change in (("one", "x0"), ("two", "x2"), ("two", "x0")):
                cells = [
                    points(*(model.steered(kind, images, method, change, off) for off in (False, True)))
                    for method in STEERED
                ]
                if any(cells):
                    rows.append([f"`{model.name}`", UNITS[kind], f"{images}, {change}", *cells])
    return table(["model", "units", "objects, change", *names(STEERED)], rows)


def duels(models: Sequence[Model], ours: str = "miclip in+out") -> str:
    """MICLIP against every other method on the units of all models that it has a loss for, of the first seed."""
    found = []
    for kind, what in enumerate(UNITS):
        for method in (*BLIND, *TOLD):
            runs = [[model.runs(kind, 0, some)[:1] for some in (ours, method)] for model in models]
            both = [[pair[0][1]["right"] for pair in pairs] for pairs in runs if all(pairs)]
            a, b = (np.concatenate(some).astype(bool) for some in zip(*both, strict=True))
            found.append((what, names([method])[0], compare_correct(a, b)))
    p_values = correct_by_holm([one.p_value for _, _, one in found])
    rows = [
        [what, method, str(one.n_pairs), *verdict(one, p, 2)]
        for (what, method, one), p in zip(found, p_values, strict=True)
    ]
    return table(["units", "against", "units compared", "difference", "p, Holm", ""], rows)


def verdict(one: Comparison, p: float | None, digits: int) -> list[str]:
    """The difference with its interval, the corrected p value and what follows."""
    assert one.difference is not None and one.low is not None and one.high is not None and p is not None
    difference = f"{one.difference:+.{digits}f} ({one.low:+.{digits}f} to {one.high:+.{digits}f})"
    return [
        difference,
        f"{p:.2g}",
        "no difference" if p >= 0.05 else "MICLIP is better" if one.difference > 0 else "MICLIP is worse",
    ]


def steering(models: Sequence[Model], ours: str = "miclip in+out") -> str:
    """Changes over the classes of all models, and how far MICLIP moves the answer more than others; pairs are (model, class)."""
    found = []
    for kind in (0, 2):
        for images, change in (("one", "x0"), ("two", "x2"), ("two", "x0")):
            for method in STEERED:
                own, its, off = (
                    np.concatenate(
                        [
                            _by_class(model.steered(kind, images, change=change, method=some, off=aside))
                            for model in models
                        ]
                    )
                    for some, aside in ((ours, False), (method, False), (method, True))
                )
                sign = 1 if change == "x2" else -1
                found.append(
                    (f"{UNITS[kind]}, {images}, {change}", method, its, off, compare_scores(sign * own, sign * its))
                )
    p_values = iter(
        correct_by_holm([versus.p_value for _, method, _, _, versus in found if method not in (ours, *BOUNDS)])
    )
    rows = []
    for what, method, its, off, versus in found:
        compared = ["", "", ""] if method in (ours, *BOUNDS) else verdict(versus, next(p_values), 1)
        rows.append([what, names([method])[0], points(its, off), *compared])
    return table(
        [
            "units, objects, change",
            "method",
            "change (interval); off class",
            "MICLIP in+out moves it further by",
            "p, Holm",
            "",
        ],
        rows,
    )


def _by_class(values: np.ndarray) -> np.ndarray:
    """The mean over seeds of each class, from seeds one after another."""
    return values.reshape(-1, len(SHAPES)).mean(0) if len(values) else values


def main() -> None:
    """Print all tables of the models whose files are there."""
    paths = [Path(sys.argv[1]) / f"{name.partition(':')[2]}.json" for name in ALIGNERS]
    models = [Model(path) for path in paths if path.exists()]
    predict = [model for model in models if model.runs(0, 0, "miclip in+out")]
    for title, text in (
        ("Description accuracy", descriptions(models, 0)),
        (
            "Description accuracy with another CLIP",
            descriptions(models, 1, (*OURS, BLIND[0], "clip_dissect soft_wpmi")),
        ),
        ("By category, and precision@5", categories(predict)),
        ("MICLIP in+out against others", duels(predict)),
        ("Precision@5 of every concept, features", concepts(predict)),
        ("Precision@5 of every concept, wide neurons", concepts(predict, 1)),
        ("Interventions, all models", steering(predict)),
        ("Interventions", interventions(predict)),
    ):
        print(f"### {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
