"""The tables of docs from the files that `python -m tests.planted_concepts DIR` wrote; `python -m tests.planted_concepts_tables DIR`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miclip_core.evaluate.significance import bootstrap_interval, compare_correct, correct_by_holm, spread_over_seeds
from miclip_core.world.planted import VALUES
from miclip_core.world.scene import PLANTED
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
ENOUGH = 6


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

    def right(self, kind: int, clip: int, method: str) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """Per unit the share of seeds that name it, what it stands for, and the accuracy of every seed."""
        runs = self.runs(kind, clip, method)
        seeds = [float(np.mean(run["right"])) for _, run in runs if run["right"]]
        if kind < 2:  # the same neurons whatever the seed
            values = np.mean([run["right"] for _, run in runs], 0) if runs else np.empty(0)
            return values, np.array(self.blocks[kind][0]["truth"] if runs else [], np.int64), seeds
        values = np.concatenate([run["right"] for _, run in runs] or [np.empty(0)]).astype(float)
        return values, np.concatenate([block["truth"] for block, _ in runs] or [np.empty(0)]).astype(np.int64), seeds

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
                values, _, seeds = model.right(kind, clip, method)
                cells.append(share(values, seeds if method in OURS else ()))
            rows.append([f"`{model.name}`", clip_name, what, counts, *cells])
    return table(["model", "CLIP", "units", "judged (above .95)", *names(methods)], rows)


def categories(models: Sequence[Model]) -> str:
    """Accuracy by category over the units of all models, each with its first CLIP."""
    rows = []
    wanted = [category for category in PLANTED if category != "size"]
    for kind, what in enumerate(UNITS):
        for method in (*OURS, *BLIND, *TOLD, *CONTROLS):
            found = [model.right(kind, 0, method) for model in models]
            values, truth = (np.concatenate([one[i] for one in found]) for i in (0, 1))
            category = CATEGORY[truth]
            cells = [share(values[category == list(PLANTED).index(name)]) for name in wanted]
            precision = [one for model in models for one in model.precision(kind, 0, method)]
            got, best = (np.array([one[i] for one in precision]) for i in (1, 2))
            rows.append([what, names([method])[0], share(values), *cells, f"{share(got)} of {best.mean():.2f}"])
    return table(["units", "method", "all", *wanted, "precision@5 of at most"], rows)


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
    methods = (
        "miclip in+out",
        "miclip in",
        "miclip out",
        "clip_dissect cos_cubed",
        "clip_dissect soft_wpmi",
        *TOLD,
        "truth",
        "random",
    )
    rows = []
    for model in models:
        for kind in (0, 2):
            for images, change in (("one", "x0"), ("two", "x2"), ("two", "x0")):
                cells = [
                    points(*(model.steered(kind, images, method, change, off) for off in (False, True)))
                    for method in methods
                ]
                if any(cells):
                    rows.append([f"`{model.name}`", UNITS[kind], f"{images}, {change}", *cells])
    return table(["model", "units", "objects, change", *names(methods)], rows)


def duels(models: Sequence[Model], ours: str = "miclip in+out") -> str:
    """MICLIP against every other method on the units of all models, of the first seed."""
    found, p_values = [], []
    for kind, what in enumerate(UNITS):
        for method in (*BLIND, *TOLD):
            a, b = (
                np.concatenate([run["right"] for model in models for _, run in model.runs(kind, 0, some)[:1]]).astype(
                    bool
                )
                for some in (ours, method)
            )
            versus = compare_correct(a, b)
            found.append((what, names([method])[0], versus))
            p_values.append(versus.p_value)
    rows = []
    for (what, method, one), p in zip(found, correct_by_holm(p_values), strict=True):
        assert one.difference is not None and one.low is not None and one.high is not None and p is not None
        verdict = "no difference" if p >= 0.05 else "MICLIP is better" if one.difference > 0 else "MICLIP is worse"
        difference = f"{one.difference:+.2f} ({one.low:+.2f} to {one.high:+.2f})"
        rows.append([what, method, str(one.n_pairs), difference, f"{p:.2g}", verdict])
    return table(["units", "against", "units compared", "difference", "p, Holm", ""], rows)


def main() -> None:
    """Print all tables of the models whose files are there."""
    paths = [Path(sys.argv[1]) / f"{name.partition(':')[2]}.json" for name in ALIGNERS]
    models = [Model(path) for path in paths if path.exists()]
    for title, text in (
        ("Description accuracy, own CLIP", descriptions(models, 0)),
        ("Description accuracy, another CLIP", descriptions(models, 1, (*OURS, *BLIND[:1], "clip_dissect soft_wpmi"))),
        ("By category, and precision@5", categories(models)),
        ("MICLIP in+out against others", duels(models)),
        ("Precision@5 of concepts, features", concepts(models)),
        ("Interventions", interventions(models)),
    ):
        print(f"### {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
