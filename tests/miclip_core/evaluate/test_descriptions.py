"""Accuracy and similarity of descriptions on units that are checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from miclip_core.evaluate.cosines import directions, row_cosines
from miclip_core.evaluate.descriptions import Descriptions, compare_descriptions

PREDICTED = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0], [3.0, 4.0]])
TRUE = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 1.0], [4.0, 3.0]])


def four_units() -> Descriptions:
    """Right, orthogonal, silent, and at cosine 24/25."""
    return compare_descriptions(
        [7, 3, 9, 1],
        ["tabby", "missile", None, "hen"],
        ["tabby", "missile", "tray", "cock"],
        {"clip": (PREDICTED, TRUE)},
        ids=([0, 4, -1, 2], [0, 5, -1, 3]),
    )


def test_four_units_by_hand() -> None:
    found = four_units()
    assert found.correct.tolist() == [True, False, False, False]
    assert found.similarity["clip"] == pytest.approx([1, 0, np.nan, 0.96], nan_ok=True)


def test_two_concepts_of_one_name_are_told_apart_by_their_ids() -> None:
    """Units 3 and "missile": the names agree, the classes do not."""
    assert not four_units().correct[1]
    assert compare_descriptions([3], ["missile"], ["missile"], {}).correct.all()


def test_names_are_compared_after_strip_in_lower_case_and_silence_is_wrong() -> None:
    found = compare_descriptions([0, 1, 2], [" Red circle\n", None, "red"], ["red circle", "none", "red circle"], {})
    assert found.correct.tolist() == [True, False, False]


def test_a_concept_of_no_known_number_is_never_right() -> None:
    found = compare_descriptions([0], [None], ["a"], {}, ids=([-1], [-1]))
    assert not found.correct.any()


def test_rows_hold_what_the_figures_are_made_of() -> None:
    rows = list(four_units().rows())
    assert rows[0] == {"unit_id": 7, "pred": "tabby", "truth": "tabby", "correct": True, "clip_score": 1.0}
    assert rows[2] == {"unit_id": 9, "pred": None, "truth": "tray", "correct": False, "clip_score": None}


def test_true_names_score_one_everywhere() -> None:
    names = ["tench", "goldfish", "hen"]
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    found = compare_descriptions([0, 1, 2], names, names, {"clip": (rows, 2 * rows), "mpnet": (rows, rows)})
    assert found.correct.all()
    assert all(found.similarity[encoder] == pytest.approx([1, 1, 1]) for encoder in ("clip", "mpnet"))


def test_no_unit_is_nothing_to_compare_and_no_description_has_no_cosine() -> None:
    assert len(compare_descriptions([], [], [], {}).correct) == 0
    silent = compare_descriptions([0], [None], ["a"], {"clip": (torch.zeros(1, 2), torch.ones(1, 2))})
    assert np.isnan(silent.similarity["clip"]).all() and not silent.correct.any()


@pytest.mark.parametrize(
    ("ids", "rows"), [(([0], [0, 1]), PREDICTED[:2]), (None, PREDICTED), (([0, 1], [0]), PREDICTED[:2])]
)
def test_another_number_of_anything_is_refused(ids: tuple[list[int], list[int]] | None, rows: Tensor) -> None:
    with pytest.raises(ValueError, match="one of each per unit, found 2 units"):
        compare_descriptions([0, 1], ["a", "b"], ["a", "b"], {"clip": (rows, TRUE[:2])}, ids)


# ---------------------------------------------------------------- cosines


def test_rows_without_a_direction_have_no_cosine_and_long_ones_do() -> None:
    rows = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [3e4, 0.0], [1e-6, 0.0]])
    found = row_cosines(rows.half().float(), torch.ones(5, 2, dtype=torch.float64))
    assert found.dtype == torch.float32 and found[:3].isnan().all()
    assert found[3:].tolist() == pytest.approx([0.5**0.5] * 2)
    assert directions(rows)[3:].norm(dim=1).tolist() == pytest.approx([1, 1])


def test_half_precision_is_widened_before_it_is_squared() -> None:
    """300^2 is beyond float16."""
    rows = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert row_cosines(rows, rows).item() == pytest.approx(1)
