"""Units against the planted truth: scores that can be counted by hand, and nothing judged on what it was chosen on."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.world.evaluate import FOUR_OBJECTS, held_out
from miclip_core.world.planted import VALUES, judge, patch_truth, share_interval
from miclip_core.world.scene import PLANTED


def test_the_28_planted_values_are_counted():
    assert len(VALUES) == 28 and VALUES[0] == ("shape", "circle") and VALUES[-1] == ("background", "speckled")


@pytest.fixture(scope="module")
def truth():
    return patch_truth(held_out(150, FOUR_OBJECTS), 8)


def as_scores(truth: dict[str, np.ndarray]) -> np.ndarray:
    """A unit per planted value that fires exactly where it is shown."""
    columns = [truth[c] == n for c, values in PLANTED.items() for n in range(len(values))]
    return np.stack(columns, -1).astype(np.float32)


def test_units_that_are_the_truth_find_all_of_it_each_its_own(truth):
    judged = judge(as_scores(truth), truth, signed=False)
    assert (judged.auroc == 1).all() and judged.share(0.95) == 1
    assert judged.unit.tolist() == list(range(28))
    assert share_interval([judged], 0.95, draws=5) == (1, 1)


def test_noise_finds_nothing_although_the_best_of_many_units_is_chosen(truth):
    noise = np.random.default_rng(0).normal(size=(150, 64, 300)).astype(np.float32)
    judged = judge(noise, truth, signed=True)
    assert judged.share(0.9) == 0 and abs(judged.auroc.mean() - 0.5) < 0.05


def test_a_unit_that_is_low_where_a_value_is_shown_counts_only_if_signs_do(truth):
    low = -as_scores(truth)
    assert judge(low, truth, signed=True).share(0.95) == 1
    several = [category != "size" for category, _ in VALUES]  # of two sizes, not being the one is being the other
    assert (judge(low, truth, signed=True).sign[several] == -1).all()
    assert judge(low, truth, signed=False).share(0.95) < 0.2


def test_a_unit_is_judged_on_images_that_it_was_not_chosen_on(truth):
    scores = as_scores(truth)
    scores[50:] = 0  # it knows the first third by heart
    assert (judge(scores, truth, signed=False).auroc == 0.5).all()


def test_the_interval_covers_runs_that_differ(truth):
    good, bad = judge(as_scores(truth), truth, signed=False), judge(np.zeros((150, 64, 2)), truth, signed=False)
    assert share_interval([good, bad], 0.9, draws=40) == (0, 1)
