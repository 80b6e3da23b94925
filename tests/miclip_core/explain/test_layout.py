"""Layouts against scikit-learn's components; UMAP where it is installed, and what is said where it is not."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from sklearn.decomposition import PCA

from miclip_core.explain.layout import lay_out
from schemas.errors import MissingPackage

RNG = np.random.default_rng(0)
PLANTED = np.repeat(np.arange(3), 20)
ROWS = 3 * np.eye(3, 8)[PLANTED] + RNG.normal(0, 0.2, (60, 8))


def test_the_components_are_scikit_learns_up_to_sign() -> None:
    found, expected = lay_out(ROWS), PCA(2).fit_transform(ROWS)
    assert found.dtype == np.float32 and np.abs(found) == pytest.approx(np.abs(expected), abs=1e-5)
    assert np.array_equal(found, lay_out(ROWS, seed=7))


def test_the_sign_does_not_depend_on_who_is_there_first() -> None:
    """The largest coefficient is positive: here the fourth channel's, then the first's."""
    rows = np.array([[0.0, 0, 0, 5], [0, 0, 0, -5], [1, 0, 0, 0], [-1, 0, 0, 0]])
    assert lay_out(rows).round(6).tolist() == [[5, 0], [-5, 0], [0, 1], [0, -1]]


def test_of_each_component_the_largest_coefficient_is_positive() -> None:
    for rows in (ROWS, -ROWS, ROWS[:, ::-1]):
        model = PCA(2).fit(rows)
        largest = [axis[np.abs(axis).argmax()] for axis in model.components_]
        assert lay_out(rows) == pytest.approx(model.transform(rows) * np.sign(largest), abs=1e-5)


def test_few_points_and_few_channels_have_a_place_too() -> None:
    assert lay_out(np.zeros((0, 4))).shape == (0, 2)
    assert lay_out(np.ones((1, 4))).tolist() == [[0, 0]]
    assert lay_out(np.array([[1.0], [3.0]])).tolist() == [[-1, 0], [1, 0]]
    assert not lay_out(np.ones((5, 3))).any()


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        lay_out(np.array([[1.0, np.inf]]))


def test_without_umap_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingPackage, match=r"pip install 'miclip\[map\]', or take layout: pca"):
        lay_out(ROWS, "umap")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_keeps_clusters_together_and_repeats_itself() -> None:
    found = lay_out(ROWS, "umap")
    centres = np.stack([found[c == PLANTED].mean(0) for c in range(3)])
    nearest = np.linalg.norm(found[:, None] - centres, axis=2).argmin(1)
    assert found.dtype == np.float32 and np.array_equal(nearest, PLANTED)
    assert np.array_equal(found, lay_out(ROWS, "umap"))
    for few in (2, 4, 5, 6, 16):
        assert np.isfinite(lay_out(ROWS[:few], "umap")).all() and lay_out(ROWS[:few], "umap").shape == (few, 2)
