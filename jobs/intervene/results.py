"""The tables of one list of units: accuracy of each class with and without a change, and its mean over classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from jobs.described import about
from jobs.intervene.plan import changes_of, classes_of
from jobs.protocol import Part
from jobs.rows import make_batch
from miclip_core.evaluate.significance import Comparison, compare_scores
from miclip_core.intervene.sweep import Counts
from schemas.intervene import Change
from schemas.plans import Plan
from schemas.tables import TABLES

Row = dict[str, Any]


def make_parts(plan: Plan, counts: Counts, units_CK: Tensor) -> Iterator[Part]:
    """The rows of one stage, whose digest names its counts; classes without images are rows of zeros.

    units: of each class, int64 [C, K], -1 for none.
    """
    evaluations, summaries = [], []
    for change in changes_of(plan):
        own = _about_change(plan, change)
        evaluations += [{**own, **row} for row in _of_classes(plan, counts, change, units_CK)]
        summaries.append({**own, **_summary(plan, counts, change)})
    for table, rows in (("intervention_eval", evaluations), ("intervention_summary", summaries)):
        columns = {name: [row[name] for row in rows] for name in TABLES[table].schema.names}
        yield Part(plan.digest, table, make_batch(table, columns))


def _about_change(plan: Plan, change: Change) -> Row:
    params = plan.stage.params
    return {
        **about(plan.stage),
        "op": change.op,
        "beta": change.beta,
        "error_mode": params["error"],
        "positions": params["positions"],
    }


def _of_classes(plan: Plan, counts: Counts, change: Change, units_CK: Tensor) -> Iterator[Row]:
    columns = counts.columns(plan.digest, change)
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        c = row["class_id"]
        units = [unit for unit in units_CK[c].tolist() if unit >= 0]
        yield {**row, "class_name": classes_of(plan)[c], "units": units}


def _summary(plan: Plan, counts: Counts, change: Change) -> Row:
    sums = {name: int(counts.sums[name].sum()) for name in ("n", "clean", "ref")}
    on, off = (
        _over_classes(of_class.numpy())
        for of_class in (counts.change_C(plan.digest, change), counts.off_change_C(plan.digest, change))
    )
    return {
        "classes": on.n_pairs,
        "n": sums["n"],
        "acc_clean": sums["clean"] / sums["n"],
        "acc_ref": sums["ref"] / sums["n"],
        "dacc": on.difference,
        "dacc_low": on.low,
        "dacc_high": on.high,
        "p_value": on.p_value,
        "test": on.test,
        "n_pairs": on.n_pairs,
        "offclass_dacc": off.difference,
        "offclass_low": off.low,
        "offclass_high": off.high,
    }


def _over_classes(change_C: np.ndarray) -> Comparison:
    """The mean over classes, and whether it is 0; NaN stands for a class without images."""
    return compare_scores(change_C, np.zeros_like(change_C))
