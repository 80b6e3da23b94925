"""The similarity of the released code, against a plain loop, and that it is no correlation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.rosetta.batch_mean import BatchMeanCosine, BatchScale, batch_mean_cosine
from miclip_core.rosetta.crossing import Crossing
from miclip_core.rosetta.grids import Grid
from miclip_core.rosetta.standardise import standardised
from tests.interpolated_maps import interpolated, make_maps, pearson


def plain(a: list[torch.Tensor], b: list[torch.Tensor], grid_a: Grid, grid_b: Grid, target: Grid) -> np.ndarray:
    """Batch by batch in numpy, on maps that are written out."""
    cosines = []
    sides = []
    for batches, grid in ((a, grid_a), (b, grid_b)):
        native = [x.flatten(0, 1).double().numpy() for x in batches]
        mean = np.mean([x.mean(0) for x in native], 0)
        sd = np.sqrt(np.mean([x.var(0, ddof=1) for x in native], 0)) + 1e-5
        sides.append([interpolated((x.double() - mean) / sd, grid, target) for x in batches])
    for x, y in zip(*sides):
        with np.errstate(invalid="ignore"):
            cosine = (x @ y.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)
        cosines.append(np.nan_to_num(cosine))
    return np.mean(cosines, 0)


@pytest.mark.parametrize("a, b, target", [((4, 4), (4, 4), (4, 4)), ((4, 4), (6, 8), (6, 8)), ((5, 4), (7, 7), (3, 9))])
def test_batches_are_standardised_compared_and_averaged(a: Grid, b: Grid, target: Grid) -> None:
    x, y = make_maps(20, a, 6, 1), make_maps(20, b, 7, 2)
    x[..., 3] = 0
    found = batch_mean_cosine(list(x.split(8)), list(y.split(8)), Crossing(a, b, target))
    np.testing.assert_allclose(found.numpy(), plain(list(x.split(8)), list(y.split(8)), a, b, target), atol=1e-6)
    assert (found[3] == 0).all()


def test_means_and_variances_of_batches_are_averaged() -> None:
    """Means 1 and 4, variances (n - 1) 2 and 18: all values at once have 29 / 3."""
    batches = BatchScale()
    for values in ([0.0, 2.0], [1.0, 7.0]):
        batches.add(torch.tensor(values)[None, :, None])
    assert batches.scale.centre.tolist() == [2.5]
    assert batches.scale.sd.tolist() == [10**0.5 + 1e-5]


def test_it_is_no_correlation_and_depends_on_how_images_are_cut() -> None:
    """Two units that agree in a batch where both are strong and are opposite in one where both are weak."""
    ripple = torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None].repeat(4, 1, 1)
    strength = torch.tensor([10.0, 10.0, 1.0, 1.0])[:, None, None]
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None]
    x, y, crossing = ripple * strength, ripple * strength * sign, Crossing((2, 2), (2, 2), (2, 2))
    assert pearson(x, (2, 2), y, (2, 2), (2, 2))[0, 0] == pytest.approx((100 - 1) / (100 + 1))
    assert float(batch_mean_cosine([x[:2], x[2:]], [y[:2], y[2:]], crossing)) == pytest.approx((1 - 1) / 2, abs=1e-6)
    assert float(batch_mean_cosine([x], [y], crossing)) == pytest.approx((100 - 1) / (100 + 1))


def test_workers_that_took_other_batches_join() -> None:
    x, y, crossing = make_maps(12, (3, 3), 4, 1), make_maps(12, (3, 3), 5, 2), Crossing((3, 3), (3, 3), (3, 3))
    scales = BatchScale(), BatchScale()
    for i in range(0, 12, 4):
        scales[0].add(x[i : i + 4])
        scales[1].add(y[i : i + 4])
    parts = [BatchMeanCosine(crossing, 4, 5) for _ in range(2)]
    for i in range(0, 12, 4):
        z = [standardised(maps[i : i + 4], scale.scale)[0] for maps, scale in zip((x, y), scales)]
        parts[i == 0].add(*z)
    parts[0].merge(parts[1])
    whole = batch_mean_cosine(list(x.split(4)), list(y.split(4)), crossing)
    np.testing.assert_allclose(parts[0].similarities().numpy(), whole.numpy(), atol=1e-6)


def test_no_batches_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no batch"):
        BatchScale().scale  # noqa: B018
    with pytest.raises(ValueError, match="no batch"):
        BatchMeanCosine(Crossing((3, 3), (3, 3), (3, 3)), 1, 1).similarities()
