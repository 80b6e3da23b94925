"""Features of two SAEs are matched by numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from jobs import feature_matches
from jobs.feature_matches import match_codes, match_decoders


def test_decoder_rows_are_matched_by_cosine_whatever_their_length_and_order() -> None:
    first = np.array([[1, 0, 0], [0, 2, 0], [0.6, 0.8, 0], [0, 0, 0]])
    second = np.array([[0, 5, 0], [3, 0, 0], [0, 0, 1]])
    found = match_decoders(first, second)
    assert found.nearest[:3].tolist() == [1, 0, 0]
    assert found.similarity[:3].tolist() == pytest.approx([1, 1, 0.8]) and np.isnan(found.similarity[3])
    assert found.mutual.tolist() == [True, True, False, False]  # row 2 is near to one that has a nearer one
    assert found.same.tolist() == [True, True, False, False]


def test_a_mutual_match_that_is_not_near_is_not_the_same_feature() -> None:
    found = match_decoders(np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]))
    assert found.mutual.tolist() == [True] and found.same.tolist() == [False]


def test_decoders_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="widths 2 and 3"):
        match_decoders(np.ones((1, 2)), np.ones((1, 3)))


def test_codes_are_matched_by_correlation_over_images() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((5, 40)) * (rng.random((5, 40)) < 0.4)
    second = first[[3, 0, 4]] * np.array([[2.0], [0.5], [1.0]])
    second[2] += rng.random(40) * 0.1
    first[1] = 0.0  # never active
    found = match_codes(sparse.csr_matrix(first), sparse.csr_matrix(second))
    assert found.nearest[[0, 3, 4]].tolist() == [1, 0, 2]
    assert np.isnan(found.similarity[1]) and not found.mutual[1]
    for feature, other in ((0, 1), (3, 0), (4, 2)):
        assert found.similarity[feature] == pytest.approx(np.corrcoef(first[feature], second[other])[0, 1])


def test_matches_do_not_depend_on_how_features_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(23, 6)), rng.normal(size=(17, 6))
    whole = match_decoders(first, second)
    cosine = (first / np.linalg.norm(first, axis=1, keepdims=True)) @ (
        second / np.linalg.norm(second, axis=1, keepdims=True)
    ).T
    assert whole.nearest.tolist() == cosine.argmax(axis=1).tolist()
    assert whole.mutual.tolist() == [cosine[:, v].argmax() == u for u, v in enumerate(cosine.argmax(axis=1))]
    monkeypatch.setattr(feature_matches, "CELLS", 4 * len(second))
    cut = match_decoders(first, second)
    assert cut.mutual.tolist() == whole.mutual.tolist() and cut.nearest.tolist() == whole.nearest.tolist()
