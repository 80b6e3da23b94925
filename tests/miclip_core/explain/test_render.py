"""Rendered images against loops over pixels, PIL, and colours as matplotlib prints them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from miclip_core.explain.render import heat_image, hides_nothing, mask_image, resize_nearest, viridis

RNG = np.random.default_rng(0)
PIXELS = torch.from_numpy(RNG.integers(1, 256, (3, 24, 18), dtype=np.uint8))


def test_a_mask_leaves_the_pixels_of_active_patches_and_blackens_the_rest() -> None:
    map_IJ = torch.tensor([[0.0, 1e-6, -2.0], [3.0, 0.0, 0.5]])
    expected = np.zeros((3, 24, 18), np.uint8)
    for i in range(24):
        for j in range(18):
            if map_IJ[i // 12, j // 6] > 0:
                expected[:, i, j] = PIXELS[:, i, j]
    masked = mask_image(PIXELS, map_IJ)
    assert np.array_equal(masked, expected) and not hides_nothing(map_IJ)


@pytest.mark.parametrize(("value", "is_left"), [(0.1, True), (0.0, False)])
def test_a_feature_active_everywhere_leaves_the_image_and_one_active_nowhere_black(value: float, is_left: bool) -> None:
    map_IJ = torch.full((5, 7), value)
    assert torch.equal(mask_image(PIXELS, map_IJ), PIXELS * is_left)
    assert hides_nothing(map_IJ) is is_left


def test_many_images_at_once_are_rendered_as_one_by_one() -> None:
    pixels = torch.from_numpy(RNG.integers(0, 256, (4, 3, 16, 16), dtype=np.uint8))
    maps = torch.from_numpy(RNG.normal(size=(4, 3, 5)))
    masked, heated = mask_image(pixels, maps), heat_image(pixels, maps)
    for b in range(4):
        assert torch.equal(masked[b], mask_image(pixels[b], maps[b]))
        assert torch.equal(heated[b], heat_image(pixels[b], maps[b]))


@pytest.mark.parametrize("size", [(7, 7), (24, 18), (3, 2), (5, 31)])
def test_nearest_is_the_cell_that_the_corner_of_a_pixel_lies_in(size: tuple[int, int]) -> None:
    map_IJ = torch.arange(35.0).view(5, 7)
    found = resize_nearest(map_IJ, size)
    expected = [[map_IJ[i * 5 // size[0], j * 7 // size[1]] for j in range(size[1])] for i in range(size[0])]
    assert found.tolist() == [[float(cell) for cell in row] for row in expected]


def test_the_colours_are_those_that_matplotlib_prints() -> None:
    printed = {0: "#440154", 1: "#440256", 64: "#3b528b", 100: "#2a768e", 127: "#21908d", 128: "#21918c"}
    printed |= {191: "#5cc863", 200: "#70cf57", 254: "#fbe723", 255: "#fde725"}
    found = viridis(torch.tensor([[place / 255 for place in printed]]))[:, 0].T * 255
    for colour, name in zip(found, printed.values(), strict=True):
        assert np.abs(colour.numpy() - list(bytes.fromhex(name[1:]))).max() <= 1.5, (
            name
        )  # one level, and those that they print are rounded


def test_a_heatmap_is_the_stretched_image_with_the_colours_of_the_stretched_map_over_it() -> None:
    """Of a map in the size of the image, so that nothing is interpolated."""
    pixels = (PIXELS // 2 + 20).numpy()
    map_IJ = RNG.normal(size=(24, 18))
    heat = (map_IJ - map_IJ.min()) / (map_IJ.max() - map_IJ.min())
    image = (pixels - pixels.min()) / float(pixels.max() - pixels.min())
    colours = viridis(torch.from_numpy(heat)).numpy()
    expected = 255 * (0.65 * image + 0.35 * colours)
    found = heat_image(torch.from_numpy(pixels), torch.from_numpy(map_IJ))
    assert found.dtype == torch.uint8 and np.abs(found.numpy() - expected).max() <= 0.501


def test_a_heatmap_is_smooth_yellow_where_the_feature_is_strongest_and_violet_where_it_is_not() -> None:
    map_IJ = torch.zeros(4, 4)
    map_IJ[1, 2] = 5
    found = heat_image(torch.zeros(3, 32, 32, dtype=torch.uint8), map_IJ).numpy().astype(int)
    strongest = np.unravel_index(found[1].argmax(), (32, 32))
    assert 8 <= strongest[0] < 16 and 16 <= strongest[1] < 24
    assert np.abs(found[:, strongest[0], strongest[1]] - 0.35 * np.array([0xFD, 0xE7, 0x25])).max() <= 1
    # far from it bicubic interpolation of zeros is zero, which the negative lobes around the peak put above the lowest
    assert found[0, 31, 0] < 30 and found[2, 31, 0] > found[1, 31, 0]
    assert np.abs(np.diff(found[1], axis=1)).max() < 30


def test_bicubic_interpolation_agrees_with_pil_on_a_slope() -> None:
    """PIL takes another constant, so that only what is linear inside is the same."""
    slope = np.add.outer(np.arange(6.0), 2 * np.arange(8.0)).astype(np.float32)
    mine = heat_image(torch.zeros(3, 48, 64, dtype=torch.uint8), torch.from_numpy(slope)).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(slope).resize((64, 48), Image.Resampling.BICUBIC))
    theirs = np.clip((theirs - theirs.min()) / (theirs.max() - theirs.min()), 0, 1)
    expected = 0.35 * 255 * viridis(torch.from_numpy(theirs)).numpy()
    assert np.abs(mine - expected)[:, 16:-16, 16:-16].max() < 2


def test_what_has_no_spread_is_neither_stretched_nor_divided_by_zero() -> None:
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    found = heat_image(white, torch.full((2, 2), 3.0))
    violet = 0.65 * 255 + 0.35 * np.array([0x44, 0x01, 0x54])
    assert np.abs(found.numpy().reshape(3, -1) - violet[:, None]).max() <= 0.501


@pytest.mark.parametrize(
    ("pixels", "map_IJ"),
    [
        (torch.zeros(3, 8, 8), torch.zeros(2, 2)),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(2, 2)),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 2)),
    ],
)
def test_what_is_no_image_with_a_map_is_refused(pixels: torch.Tensor, map_IJ: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        mask_image(pixels, map_IJ)
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        heat_image(pixels, map_IJ)
