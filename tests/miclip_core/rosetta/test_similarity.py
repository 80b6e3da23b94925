"""Similarity of maps by hand, and its gradient."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate

from miclip_core.rosetta.similarity import resized, similarity

# two positions, two pairs
A = torch.tensor([[[1.0, 0.0], [2.0, -1.0]]])
B = torch.tensor([[[3.0, 5.0], [-1.0, 5.0]]])


def test_by_the_data_set_it_is_the_mean_product_over_positions() -> None:
    assert similarity(A, B, "global_var").tolist() == [[(3 - 2) / 2, -5 / 2]]


def test_by_the_image_it_is_the_cosine_of_the_two_maps() -> None:
    (found,) = similarity(A, B, "image_cosine").tolist()
    assert math.isclose(found[0], 1 / math.sqrt(5 * 10), rel_tol=1e-6)
    assert math.isclose(found[1], -5 / math.sqrt(1 * 50), rel_tol=1e-6)


def test_only_the_cosine_is_blind_to_how_strong_a_map_is() -> None:
    torch.testing.assert_close(similarity(A, 7 * B, "image_cosine"), similarity(A, B, "image_cosine"))
    torch.testing.assert_close(similarity(A, 7 * B, "global_var"), 7 * similarity(A, B, "global_var"))


def test_repeating_positions_changes_neither() -> None:
    for kind in ("global_var", "image_cosine"):
        finer = similarity(A.repeat(1, 4, 1), B.repeat(1, 4, 1), kind)  # type: ignore[arg-type]
        torch.testing.assert_close(finer, similarity(A, B, kind))  # type: ignore[arg-type]


def test_a_map_without_length_is_like_nothing_and_has_a_finite_gradient() -> None:
    flat = torch.zeros_like(A).requires_grad_(True)
    found = similarity(flat, B, "image_cosine")
    found.sum().backward()
    assert found.tolist() == [[0.0, 0.0]] and torch.isfinite(flat.grad).all()  # type: ignore[arg-type]


def test_rows_are_resized_as_the_framework_resizes_maps() -> None:
    maps = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = maps.flatten(2).transpose(1, 2)
    for target in ((6, 8), (2, 4), (3, 7)):
        expected = interpolate(maps, size=target, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resized(rows, (3, 4), target), expected.flatten(2).transpose(1, 2))
    assert resized(rows, (3, 4), (3, 4)) is rows
