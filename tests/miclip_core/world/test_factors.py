"""Images between the world's values: at the values they are the world's own, between them they mix as stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from miclip_core.world.evaluate import held_out
from miclip_core.world.factors import Factors, draw_factors
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import BACKGROUNDS, COLOURS, RADII, ROTATIONS, SHAPES, TEXTURES


def one_hot(values: tuple[str, ...], index: np.ndarray) -> np.ndarray:
    return np.eye(len(values))[index]


def plain(n: int = 1, **changes: object) -> Factors:
    """n solid red squares of radius 10 on white, centred at (30, 34)."""
    zeros = np.zeros(n, int)
    square = Factors(
        shape=one_hot(SHAPES, zeros + SHAPES.index("square")),
        colour=one_hot(tuple(COLOURS), zeros),
        texture=one_hot(TEXTURES, zeros),
        background=one_hot(BACKGROUNDS, zeros),
        x=zeros + 30.0,
        y=zeros + 34.0,
        radius=zeros + 10.0,
        turn=zeros + 0.0,
    )
    return replace(square, **changes)


def test_scenes_of_the_world_are_drawn_as_the_world_draws_them():
    scenes = held_out(120)
    still = {name: np.zeros_like(getattr(scenes, name)) for name in ("phase", "background_phase", "jitter")}
    scenes = replace(scenes, **still)
    first = {name: getattr(scenes, name)[:, 0] for name in ("shape", "colour", "texture", "size", "radius", "rotation")}
    factors = Factors(
        shape=one_hot(SHAPES, first["shape"]),
        colour=one_hot(tuple(COLOURS), first["colour"]),
        texture=one_hot(TEXTURES, first["texture"]),
        background=one_hot(BACKGROUNDS, scenes.background),
        x=scenes.x[:, 0].astype(float),
        y=scenes.y[:, 0].astype(float),
        radius=np.asarray(RADII, float)[first["size"], first["radius"]],
        turn=np.asarray(ROTATIONS, float)[first["rotation"]],
    )
    drawn, (wanted, _) = draw_factors(factors), render_scenes(scenes)
    assert drawn.dtype == np.float32 and drawn.shape == (120, 3, 64, 64)
    apart = abs(drawn - wanted.transpose(0, 3, 1, 2) / 255).max(1)
    # Antialiased edges are counted on another raster; all else is the same colour, to its rounding.
    assert (apart > 1 / 255).mean() < 0.02 and apart.max() < 0.25
    assert -10 * np.log10(np.square(apart).mean()) > 40


def test_a_square_covers_what_can_be_counted_by_hand():
    (image,) = draw_factors(plain())
    red, white = np.array([215, 40, 40]) / 255, np.array([245] * 3) / 255
    # The square's side is 2 * 0.78 * 10 = 15.6 pixels: rows 26.2 to 41.8.
    np.testing.assert_allclose(image[:, 27:41, 23:37], np.broadcast_to(red[:, None, None], (3, 14, 14)), atol=1e-6)
    np.testing.assert_allclose(image[:, :26], np.broadcast_to(white[:, None, None], (3, 26, 64)), atol=1e-6)
    covered = (image[1] - white[1]) / (red[1] - white[1])
    assert covered.sum() == pytest.approx(15.6**2, rel=0.04)  # an edge is placed to a third of a pixel


def test_half_a_colour_and_half_a_background_are_their_mean():
    both = plain(3)
    both.colour[2] = both.background[2] = 0
    both.colour[1], both.background[1] = np.eye(8)[5], np.eye(6)[2]
    both.colour[2, [0, 5]] = both.background[2, [0, 2]] = 0.5
    images = draw_factors(both)
    np.testing.assert_allclose(images[2], images[:2].mean(0), atol=1e-6)


def test_shares_of_two_shapes_are_shares_of_their_coverage():
    circle = np.eye(8)[SHAPES.index("circle")]
    shapes = np.stack([np.eye(8)[1], circle, 0.25 * np.eye(8)[1] + 0.75 * circle])
    images = draw_factors(plain(3, shape=shapes))
    np.testing.assert_allclose(images[2], 0.25 * images[0] + 0.75 * images[1], atol=1e-6)


def test_a_texture_moves_with_its_object():
    texture = one_hot(TEXTURES, np.array([3, 3]))
    images = draw_factors(plain(2, texture=texture, x=np.array([30.0, 33.0]), y=np.array([34.0, 29.0])))
    np.testing.assert_allclose(images[1, :, 15:43, 19:47], images[0, :, 20:48, 16:44], atol=1e-6)


def test_an_object_at_the_edge_is_drawn_whole():
    images = draw_factors(plain(2, x=np.array([30.0, 10.0]), y=np.array([34.0, 54.0])))
    np.testing.assert_allclose(images[1, :, 44:64, 0:20], images[0, :, 24:44, 20:40], atol=1e-6)
