"""Every measure of every method as values on the same things, and the rows of scores and tests that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.described import Units
from jobs.evaluate.compared import Changed
from jobs.evaluate.judge import Row, offered
from jobs.evaluate.truth import Said
from jobs.protocol import Inputs
from miclip_core.evaluate.descriptions import Descriptions
from miclip_core.evaluate.methods import Measured, Scale, compare_all, summarise
from miclip_core.evaluate.significance import correct_by_holm
from schemas.intervene import Change

COLUMNS = (
    "op", "beta", "error_mode", "class_name", "n", "correct_ref", "correct_edit", "offclass_n", "offclass_ref", "offclass_edit",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measure:
    """All variants of methods on some units by one measure.

    names: of each in turn, its method; ceilings: what a perfect one would have.
    """

    units: Units
    name: str
    scale: Scale
    methods: tuple[Measured, ...]
    names: tuple[str, ...]
    ceilings: tuple[float, ...]


def description_measures(judged: Sequence[tuple[Said, Descriptions]]) -> Iterator[Measure]:
    """Accuracy, similarity of texts and precision of the methods on one kind of units."""
    if not judged:
        return
    units = judged[0][0].units
    right = [np.where(offered(said), np.asarray(found.correct, np.float64), np.nan) for said, found in judged]
    yield _measure(units, "accuracy", judged, right, "right_or_wrong")
    for encoder in judged[0][1].similarity:
        cosines = [found.similarity[encoder].astype(np.float64) for _, found in judged]
        yield _measure(units, f"{encoder}_score", judged, cosines)
    concepts = sorted({concept for said, _ in judged for concept in said.precision})
    values = [
        np.array([said.precision[c].value if c in said.precision else np.nan for c in concepts]) for said, _ in judged
    ]
    ceilings = [_mean([precision.ceiling for precision in said.precision.values()]) for said, _ in judged]
    yield _measure(units, "precision", judged, values, ceilings=ceilings)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 1.0


def _measure(
    units: Units,
    name: str,
    judged: Sequence[tuple[Said, Descriptions]],
    values: Sequence[np.ndarray],
    scale: Scale = "score",
    ceilings: Sequence[float] = (),
) -> Measure:
    methods = [
        Measured(said.method.variant, said.method.seed, values_N)
        for (said, _), values_N in zip(judged, values, strict=True)
    ]
    names = tuple(said.method.method for said, _ in judged)
    return Measure(units, name, scale, tuple(methods), names, tuple(ceilings) or (1.0,) * len(methods))


def change_measures(inputs: Inputs, changed: Iterable[Changed]) -> Iterator[Measure]:
    """Change of accuracy on the images of each class, and on those of others, under every change: percentage points."""
    found: dict[tuple[Units, str], list[tuple[Changed, dict[str, float]]]] = {}
    for stage in changed:
        for name, by_class in _read_changes(inputs, stage.stage).items():
            found.setdefault((stage.units, name), []).append((stage, by_class))
    for (units, name), stages in found.items():
        classes = sorted({label for _, by_class in stages for label in by_class})
        methods = tuple(
            Measured(stage.variant, stage.seed, np.array([by_class.get(label, np.nan) for label in classes]))
            for stage, by_class in stages
        )
        names = tuple(stage.method for stage, _ in stages)
        yield Measure(units, name, "score", methods, names, (1.0,) * len(methods))


def _read_changes(inputs: Inputs, stage: str) -> dict[str, dict[str, float]]:
    """Measure -> class -> percentage points; classes without images are left out."""
    rows = [row for batch in inputs.table(stage, "intervention_eval", COLUMNS) for row in batch.to_pylist()]
    found: dict[str, dict[str, float]] = {}
    for row in sorted(rows, key=lambda row: (row["op"], row["beta"], row["error_mode"], row["class_name"])):
        change = f"{Change(op=row['op'], beta=row['beta'])} {row['error_mode']}"
        on, off = found.setdefault(f"dacc {change}", {}), found.setdefault(f"offclass_dacc {change}", {})
        if row["n"]:
            on[row["class_name"]] = 100 * (row["correct_edit"] - row["correct_ref"]) / row["n"]
        if row["offclass_n"]:
            off[row["class_name"]] = 100 * (row["offclass_edit"] - row["offclass_ref"]) / row["offclass_n"]
    return {name: by_class for name, by_class in found.items() if by_class}


# ---------------------------------------------------------------- rows


def score_rows(measures: Iterable[Measure], seed: int) -> Iterator[Row]:
    """The rows of `method_scores`. seed: of the bootstrap."""
    for measure in measures:
        for name, method, ceiling in zip(measure.names, measure.methods, measure.ceilings, strict=True):
            score = summarise(method, seed)
            yield {
                **measure.units._asdict(),
                "method": name,
                "variant": method.variant,
                "seed": method.seed,
                "measure": measure.name,
                "n": score.n,
                "value": score.value,
                "low": score.low,
                "high": score.high,
                "ceiling": ceiling if ceiling < 1 else None,
            }


def comparison_rows(measures: Iterable[Measure], seed: int) -> list[Row]:
    """The rows of `method_tests`, corrected over all of them. seed: of the bootstrap."""
    rows: list[dict[str, Any]] = []
    for measure in measures:
        for versus in compare_all(measure.methods, measure.scale, seed):
            found = versus.comparison
            rows.append(
                {
                    **measure.units._asdict(),
                    "measure": measure.name,
                    "variant": versus.variant,
                    "against": versus.against,
                    "seeds": versus.seeds,
                    "sd_seed": versus.sd_seed,
                    "n_pairs": found.n_pairs,
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "test": found.test,
                    "p_value": found.p_value,
                }
            )
    corrected = correct_by_holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]
