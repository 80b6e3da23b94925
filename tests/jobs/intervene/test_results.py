"""The figures of both tables, computed on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jobs.intervene.results import make_parts
from miclip_core.intervene.sweep import Counts
from schemas.intervene import Change
from schemas.plans import Plan
from tests.jobs.intervene.test_plan import CONCEPTS, plans_of, units

CHANGE = Change(beta=0.0)
NAMES = list(CONCEPTS)


def make(names: list[str], sums: dict[str, list[int]], **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of both tables for counts by class; what is left out is as the reference."""
    (plan,) = plans_of(units(), changes=[{"beta": 0.0}], classes={"names": names, "templates": "plain"}, **fields)
    counts = Counts.zero((plan.digest,), (CHANGE,), len(names))
    for name, values in {"edit": sums["ref"], "off_edit": sums.get("off_ref", [0] * len(names)), **sums}.items():
        counts.sums[name].view(-1).copy_(torch.tensor(values))
    return of_tables(plan, counts)


def of_tables(plan: Plan, counts: Counts) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    classes = len(counts.sums["n"])
    units_CK = torch.tensor([[7, 3], *[[5, -1]] * (classes - 2), [-1, -1]])
    evaluations, summary = (part.batch.to_pylist() for part in make_parts(plan, counts, units_CK))
    return evaluations, summary[0]


def test_six_classes_of_which_all_get_worse() -> None:
    """Changes -50, -25, -75, -100, -20 and -10 points: of 2^6 signs only two are as one-sided, p = 2/64."""
    n, ref, edit = [4, 4, 4, 2, 5, 10], [4, 3, 3, 2, 4, 8], [2, 2, 0, 0, 3, 7]
    rows, summary = make(NAMES, {"n": n, "clean": ref, "ref": ref, "edit": edit})
    assert [(row["class_name"], row["n"], row["correct_edit"]) for row in rows] == list(
        zip(NAMES, n, edit, strict=True)
    )
    assert [row["units"] for row in rows] == [[7, 3], [5], [5], [5], [5], []]
    assert (summary["classes"], summary["n_pairs"], summary["n"]) == (6, 6, 29)
    assert summary["acc_clean"] == summary["acc_ref"] == pytest.approx(24 / 29)
    assert summary["dacc"] == pytest.approx(-280 / 6)
    assert (summary["test"], summary["p_value"]) == ("wilcoxon_exact", 2 / 64)
    assert -100 < summary["dacc_low"] < summary["dacc"] < summary["dacc_high"] < -10
    assert summary["offclass_dacc"] is None and summary["offclass_low"] is None


def test_dropped_errors_are_measured_against_reconstructions_and_the_model_stands_beside() -> None:
    """Clean 10 of 10, reconstructed 6 of 10, changed 5: -10 points and not -50."""
    _, summary = make(NAMES, {"n": [10] * 6, "clean": [10] * 6, "ref": [6] * 6, "edit": [5] * 6})
    assert (summary["acc_clean"], summary["acc_ref"]) == (1, 0.6)
    assert summary["dacc"] == summary["dacc_low"] == summary["dacc_high"] == pytest.approx(-10)


def test_classes_without_images_count_neither_in_the_mean_nor_in_the_test() -> None:
    """(25 - 50) / 2; the third class has only images of others: 4 of 5 stay right. Two classes are too few to test."""
    sums = {"n": [8, 2, 0], "clean": [4, 1, 0], "ref": [4, 1, 0], "edit": [6, 0, 0]}
    rows, summary = make(NAMES[:3], sums | {"off_n": [0, 0, 5], "off_ref": [0, 0, 5], "off_edit": [0, 0, 4]})
    assert (summary["dacc"], summary["classes"], summary["n_pairs"]) == (-12.5, 2, 2)
    assert summary["p_value"] is summary["test"] is summary["dacc_low"] is summary["dacc_high"] is None
    assert summary["offclass_dacc"] == -20
    assert (rows[2]["n"], rows[2]["offclass_n"], rows[2]["offclass_ref"], rows[2]["offclass_edit"]) == (0, 5, 5, 4)


def test_rows_say_whose_units_were_changed_and_how() -> None:
    (plan,) = plans_of(units("miclip in+out", sae="5ae", seed=3), changes=[{"beta": 0.0}], error="drop")
    counts = Counts.zero((plan.digest,), (CHANGE,), 2)
    counts.sums["n"] += 1
    rows, summary = of_tables(plan, counts)
    for row in (*rows, summary):
        assert (row["stage"], row["variant"], row["seed"]) == (plan.digest, "miclip in+out", 3)
        assert (row["site"], row["sae"], row["unit_kind"]) == ("resid_post.7@patch", "sae:5ae", "features")
        assert (row["op"], row["beta"], row["error_mode"], row["positions"]) == ("scale", 0, "drop", "patch")
