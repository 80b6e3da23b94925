"""What a latent asks for: weights, sizes and places that a scene of the world could have, or lies between two."""

from __future__ import annotations

import numpy as np
import torch

from miclip_core.world.latent import CHOICES, LENGTH, Choosing, meaning_of, truth_rows
from miclip_core.world.scene import SHAPES, World, attributes


def latents(n: int, **columns: torch.Tensor) -> torch.Tensor:
    """n latents of zeros but for the named places: 26 size, 27 x, 28 y, 29 turn."""
    found = torch.zeros(n, LENGTH, dtype=torch.float64)
    for name, values in columns.items():
        found[:, {"size": 26, "x": 27, "y": 28, "turn": 29}[name]] = values
    return found


def test_weights_sum_to_one_and_favour_the_highest_score():
    z = torch.randn(500, LENGTH, generator=torch.Generator().manual_seed(0))
    asked = meaning_of(z)
    start = 0
    for category, n in CHOICES.items():
        weights = getattr(asked, category)
        assert weights.shape == (500, n)
        torch.testing.assert_close(weights.sum(1), torch.ones(500))
        assert torch.equal(weights.argmax(1), z[:, start : start + n].argmax(1))
        start += n
    assert len(SHAPES) == asked.shape.shape[1]
    assert (asked.shape.max(1).values > 0.9).float().mean() > 0.5


def test_values_that_are_not_shown_keep_a_gradient():
    scores = torch.tensor([[2.0, 0.0, -2.0]], dtype=torch.float64, requires_grad=True)
    weights = Choosing(sharpness=14, share=0.1).weights(scores)
    gentle = np.exp([4.0, 0.0, -4.0]) / np.exp([4.0, 0.0, -4.0]).sum()
    np.testing.assert_allclose(weights.detach()[0], 0.9 * np.array([1, 0, 0]) + 0.1 * gentle, atol=1e-10)
    (gradient,) = torch.autograd.grad(weights[0, 1], scores)
    # d w_1 / d s_1 of the gentle softmax is 2 p (1 - p), of the sharp one nothing.
    np.testing.assert_allclose(gradient[0, 1], 0.1 * 2 * gentle[1] * (1 - gentle[1]), rtol=1e-6)
    sharp = Choosing(sharpness=14, share=0.0).weights(scores)
    assert torch.autograd.grad(sharp[0, 1], scores)[0].abs().max() < 1e-10


def test_size_place_and_turn_are_monotone_in_their_number():
    ramp = torch.linspace(-3, 3, 601, dtype=torch.float64)
    large = torch.full_like(ramp, 1.0)
    for asked in (latents(601, x=ramp, size=-large), latents(601, x=ramp, size=large)):
        assert (meaning_of(asked).x.diff() >= -1e-9).all()
    assert (meaning_of(latents(601, y=ramp)).y.diff() >= -1e-9).all()
    assert (meaning_of(latents(601, size=ramp)).radius.diff() >= 0).all()
    turn = meaning_of(latents(601, turn=ramp)).turn
    assert (turn.diff() > 0).all() and turn.abs().max() < 16


def test_the_middle_is_half_of_everything():
    asked = meaning_of(latents(1))
    assert [float(part) for part in (asked.x, asked.y, asked.radius, asked.turn)] == [32, 32, 10.5, 0]
    assert torch.allclose(asked.shape, torch.full_like(asked.shape, 1 / 8))


def test_an_object_lies_inside_the_image():
    z = 2 * torch.randn(5000, LENGTH, generator=torch.Generator().manual_seed(1)).double()
    asked = meaning_of(z)
    for centre in (asked.x, asked.y):
        assert (centre - asked.radius).min() >= -1e-6 and (centre + asked.radius).max() <= 64 + 1e-6


def test_centres_linger_where_scenes_have_theirs():
    scenes = attributes(World(objects=(0, 1)), range(3000))
    known = {size: np.unique(scenes.x[scenes.size[:, 0] == size, 0]) for size in (0, 1)}
    z = torch.randn(4000, LENGTH, generator=torch.Generator().manual_seed(2))
    asked = meaning_of(z).factors()
    for size, radius in ((0, 8), (1, 13)):
        some = abs(asked.radius - radius) < 0.1
        away = abs(asked.x[some, None] - known[size]).min(1)
        assert some.sum() > 1000 and (away < 0.5).mean() > 0.6


def test_the_truth_names_what_is_shown_and_nothing_between():
    z = latents(
        3, size=torch.tensor([2.0, -2.0, 0.0]), x=torch.tensor([2.0, -2.0, 0.0]), y=torch.tensor([2.0, 2.0, 2.0])
    )
    first = {"shape": 4, "colour": 8 + 5, "texture": 16 + 1, "background": 20 + 2}
    for row in (0, 1):
        z[row, list(first.values())] = 3.0
    z[1, 8 + 6] = 3.0  # as purple as blue
    large, small, between = truth_rows(meaning_of(z))
    star = {"label": "blue star", "shape": "star", "colour": "blue", "texture": "striped", "background": "black"}
    assert large == star | {"size": "large", "position": "bottom right", "objects": 1}
    assert small == large | {"label": None, "colour": None, "size": "small", "position": "bottom left"}
    assert {name for name, value in between.items() if value is not None} == {"objects"}


def test_its_meaning_can_be_differentiated():
    z = torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: tuple(meaning_of(z)), (z,), fast_mode=True)
