"""Scores of features whose texts agree, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.explain.agreement import Agreed, agreeing, score_by_agreement

COSINE = np.array([0.1, 0.5, 0.9, np.nan, 0.5])


def test_each_threshold_counts_the_features_from_it_on() -> None:
    score = np.array([1.0, 2.0, 6.0, 100.0, np.nan])
    found = score_by_agreement(COSINE, score, [0.0, 0.5, 0.6, 0.95])
    assert found == [Agreed(0.0, 3, 3.0), Agreed(0.5, 2, 4.0), Agreed(0.6, 1, 6.0), Agreed(0.95, 0, None)]


def test_a_feature_without_both_texts_agrees_nowhere() -> None:
    everyone = dict(agreeing(COSINE, [-1.0, 0.5]))
    assert everyone[-1.0].tolist() == [True, True, True, False, True]
    assert everyone[0.5].tolist() == [False, True, True, False, True]


def test_scores_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="one of each per feature"):
        score_by_agreement(COSINE, np.zeros(4), [0.0])
