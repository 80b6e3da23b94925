"""Pooled activations of images: by hand, and sparse against dense."""

from __future__ import annotations

import pytest
import torch

from miclip_core.dissect.pool import Pooling, pool_codes, pool_rows
from miclip_core.sae.codes import Codes

ROWS_NW = torch.tensor([[1.0, -2.0, 0.0], [3.0, -4.0, 0.0], [0.0, -1.0, 5.0], [0.0, 0.0, 7.0]])  # two images of two


@pytest.mark.parametrize(
    "pooling, expected",
    [("mean", [[2.0, -3.0, 0.0], [0.0, -0.5, 6.0]]), ("max", [[3.0, -2.0, 0.0], [0.0, 0.0, 7.0]])],
)
def test_two_images_of_two_rows_by_hand(pooling: Pooling, expected: list[list[float]]) -> None:
    for found in (pool_rows(ROWS_NW, 2, pooling), pool_codes(Codes.from_dense(ROWS_NW), 2, pooling)):
        assert found.tolist() == expected


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("rows", [1, 4, 49])
def test_sparse_codes_pool_like_dense_ones(pooling: Pooling, rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    f_NU = torch.randn(6 * rows, 30, generator=draw) * (torch.rand(6 * rows, 30, generator=draw) < 0.6)
    for values in (f_NU, f_NU.relu(), -f_NU.relu(), f_NU.half()):
        torch.testing.assert_close(
            pool_codes(Codes.from_dense(values), rows, pooling), pool_rows(values, rows, pooling)
        )


def test_codes_of_no_latent_pool_to_zero() -> None:
    assert pool_codes(Codes.from_dense(torch.zeros(4, 3)), 2, "max").tolist() == [[0.0] * 3] * 2


def test_rows_that_make_no_whole_images_are_refused() -> None:
    for n in (3, 0):
        with pytest.raises(ValueError, match=f"4 rows make no whole images of {n}"):
            pool_rows(ROWS_NW, n, "mean")
        with pytest.raises(ValueError, match="no whole images"):
            pool_codes(Codes.from_dense(ROWS_NW), n, "max")
