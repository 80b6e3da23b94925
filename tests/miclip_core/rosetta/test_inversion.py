"""Inversion of a generator whose maps and images are linear in the latent, so that the best latent is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from miclip_core.rosetta.edits import edited
from miclip_core.rosetta.inversion import Goal, Guides, Wanted, edit_goal, invert, pair_similarities, rate
from miclip_core.rosetta.standardise import Scale
from schemas.errors import InversionDiverged
from schemas.inversion import Edit, InversionSettings

SIDE, UNITS, LENGTH = 4, 6, 5
GRIDS = {"coarse@map": (2, 2), "fine@map": (SIDE, SIDE)}


class Linear:
    """Images 0.5 + B z and maps A z + b."""

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.images = 0.1 * torch.randn(3 * SIDE * SIDE, LENGTH, generator=draw)
        self.maps = {site: torch.randn(h * w * UNITS, LENGTH, generator=draw) for site, (h, w) in GRIDS.items()}
        self.offset = 3.0

    def run(self, latents: Tensor, sites: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = {s: (latents @ self.maps[s].T).unflatten(1, (-1, UNITS)) + self.offset for s in sites}
        return (0.5 + latents @ self.images.T).unflatten(1, (3, SIDE, SIDE)), rows


def guides(site: str, units: Sequence[int] = range(UNITS), target: tuple[int, int] | None = None) -> Guides:
    scale = Scale(np.full(len(units), 3.0), np.linspace(1, 2, len(units)))
    return Guides(site, GRIDS[site], target or GRIDS[site], torch.tensor(list(units)), scale)


def latents(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, LENGTH, generator=torch.Generator().manual_seed(seed))


def goal_of(generator: Linear, z: Tensor, some: Sequence[Guides], pixels: bool = False) -> Goal:
    """What images at known latents have."""
    images, rows = generator.run(z, [g.site for g in some])
    return Goal(tuple(Wanted(g, g.standardise(rows[g.site])) for g in some), images if pixels else None)


def settings(**fields: Any) -> InversionSettings:
    return InversionSettings(**{"regulariser": 0.0, "steps": 400, "lr": 0.05, **fields})


def test_the_latent_of_an_image_is_found_again_by_its_pixels() -> None:
    generator, truth = Linear(), latents(3)
    goal = Goal((), goal_of(generator, truth, [], pixels=True).pixels)
    found = invert(generator, latents(3, seed=2), goal, settings(activation=0.0))
    torch.testing.assert_close(found.latents, truth, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.images, goal.pixels, atol=2e-3, rtol=0)
    assert (found.similarities == 0).all() and (found.losses[:, -1] < 1e-3).all()


def test_its_direction_is_found_by_the_cosine_of_its_maps_alone() -> None:
    """Around the mean of the data set maps are linear, so every multiple of the truth has the same cosine of 1."""
    generator, truth = Linear(), latents(3)
    goal = goal_of(generator, truth, [guides("coarse@map"), guides("fine@map", [4, 0])])
    wanted = settings(similarity="image_cosine", reconstruction=0.0)
    found = invert(generator, latents(3, seed=2), goal, wanted)
    assert cosine_similarity(found.latents, truth).min() > 0.999
    assert found.similarities[:, -1].min() > 0.999 > 0.9 > found.similarities[:, 0].max()


@pytest.mark.parametrize("towards", ["zero", "start", "origin"])
def test_by_the_data_set_the_regulariser_decides_how_far_it_goes(towards: str) -> None:
    """-c z + a mean (z - origin)^2 is least at origin + c d / (2 a), where c is the gradient of the similarity."""
    generator, truth, start = Linear(), latents(2), latents(2, seed=2)
    goal = goal_of(generator, truth, [guides("fine@map", [1, 3])])
    origin = {"zero": torch.zeros(2, LENGTH), "start": start, "origin": latents(2, seed=3)}[towards]
    counted = "zero" if towards == "zero" else "start"
    wanted = settings(reconstruction=0.0, activation=1.0, regulariser=2.0, towards=counted)
    z = torch.zeros(2, LENGTH, requires_grad=True)
    pair_similarity = goal.maps[0].guides.standardise(generator.run(z, ["fine@map"])[1]["fine@map"]) * goal.maps[0].maps
    (slope,) = torch.autograd.grad(pair_similarity.mean((1, 2)).sum(), z)
    expected = slope * LENGTH / (2 * 2.0) + origin
    found = invert(generator, start, goal, wanted, origin if towards == "origin" else None)
    torch.testing.assert_close(found.latents, expected, atol=2e-3, rtol=0)


def test_an_absolute_regulariser_sets_what_nothing_asks_for_to_zero() -> None:
    generator = Linear()
    for matrix in (generator.images, generator.maps["fine@map"]):
        matrix[:, 2] = 0  # no pixel and no map knows the third number
    truth = latents(2)
    goal = goal_of(generator, truth, [guides("fine@map")], pixels=True)
    found = invert(generator, latents(2, seed=2), goal, settings(regulariser=0.05, norm="l1", steps=600))
    assert found.latents[:, 2].abs().max() < 1e-3 < found.latents[:, [0, 1, 3, 4]].abs().min()


def test_samples_together_are_samples_apart() -> None:
    generator, truth = Linear(), latents(3)
    goal = goal_of(generator, truth, [guides("coarse@map", [5, 5, 1], (SIDE, SIDE)), guides("fine@map")], pixels=True)
    starts = latents(6, seed=2)
    order = torch.tensor([0, 0, 1, 1, 2, 2])  # two starts of each image
    wanted = settings(regulariser=0.1, reconstruction=10.0, steps=60)
    together = invert(generator, starts, goal.take(order), wanted)
    for i in range(6):
        alone = invert(generator, starts[i : i + 1], goal.take(order[i : i + 1]), wanted)
        torch.testing.assert_close(alone.latents, together.latents[i : i + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.losses, together.losses[i : i + 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together.latents[0], together.latents[1], atol=1e-3)


def test_the_loss_is_made_of_its_terms_by_their_weights() -> None:
    generator, truth, start = Linear(), latents(2), latents(2, seed=2)
    goal = goal_of(generator, truth, [guides("fine@map"), guides("coarse@map", [2])], pixels=True)
    found = invert(generator, start, goal, settings(reconstruction=3.0, activation=2.0, regulariser=0.5, steps=1))
    images, rows = generator.run(start, list(GRIDS))
    error = (images - goal.pixels).square().mean((1, 2, 3))  # type: ignore[operator]
    products = [w.guides.standardise(rows[w.guides.site]) * w.maps for w in goal.maps]
    alike = torch.cat([p.mean(1) for p in products], 1).mean(1)  # each of the 7 pairs counts once
    torch.testing.assert_close(found.pixels[:, 0], error)
    torch.testing.assert_close(found.similarities[:, 0], alike)
    torch.testing.assert_close(found.losses[:, 0], 3 * error - 2 * alike + 0.5 * start.square().mean(1))
    assert found.losses.shape == (2, 2) and found.steps.tolist() == [1, 1]


def test_the_rate_rises_stays_and_falls() -> None:
    ramp = InversionSettings(steps=1000, lr=0.2)
    by_hand = {0: 0.0, 25: 0.1, 50: 0.2, 400: 0.2, 750: 0.2, 875: 0.1, 1000: 0.0}
    for step, expected in by_hand.items():
        assert rate(ramp, step) == pytest.approx(expected, abs=1e-12), step
    assert rate(ramp, 900) == pytest.approx(0.2 * (0.5 - 0.5 * math.cos(0.4 * math.pi)))
    assert {rate(InversionSettings(steps=1000, lr=0.2, ramp=False), step) for step in by_hand} == {0.2}


def test_the_first_step_of_adam_is_the_rate_itself() -> None:
    generator, truth, start = Linear(), latents(1), latents(1, seed=2)
    goal = goal_of(generator, truth, [], pixels=True)
    found = invert(generator, start, goal, settings(activation=0.0, steps=1, ramp=False, lr=0.03))
    torch.testing.assert_close((found.latents - start).abs(), torch.full((1, LENGTH), 0.03), rtol=1e-3, atol=0)
    ramped = invert(generator, start, goal, settings(activation=0.0, steps=1, lr=0.03))
    torch.testing.assert_close(ramped.latents, start)  # its only step has rate 0


def test_an_edit_wants_the_maps_of_the_latent_edited_raw_and_leaves_out_grids_that_are_too_small() -> None:
    generator, z = Linear(), latents(2)
    coarse, fine = guides("coarse@map"), guides("fine@map", [3, 1])
    left = Edit(name="shift_left", amount=0.25)
    goal, unable = edit_goal(generator, z, [coarse, fine], left)
    assert unable == (coarse,)
    (wanted,) = goal.maps
    rows = generator.run(z, ["fine@map"])[1]["fine@map"]
    raw = edited(rows, (SIDE, SIDE), left)[:, :, [3, 1]]
    torch.testing.assert_close(wanted.maps, (raw - 3.0) / torch.tensor([1.0, 2.0]))
    assert (raw[0].unflatten(0, (SIDE, SIDE))[:, -1] == 0).all()  # zeros of raw maps, not of standardised ones
    assert goal.pixels is not None and torch.equal(goal.pixels, generator.run(z, [])[0])


def test_a_removed_map_falls_and_a_start_ends_when_its_maps_stand_still() -> None:
    generator, z = Linear(), latents(3)
    goal, _ = edit_goal(generator, z, [guides("fine@map", [2])], Edit(name="remove", amount=0.0))
    goal = Goal(goal.maps)
    wanted = settings(reconstruction=0.0, regulariser=1.0, towards="start", lr=0.02, steps=2000, ramp=False)
    whole = invert(generator, z, goal, wanted)
    early = invert(generator, z, goal, wanted.model_copy(update={"tolerance": 1e-3}))
    assert (early.steps < 2000).all() and (whole.steps == 2000).all()
    torch.testing.assert_close(early.latents, whole.latents, atol=5e-3, rtol=0)
    assert (early.similarities[:, -1] > early.similarities[:, 0]).all()
    for i in range(3):  # each ends when it would alone
        alone = invert(
            generator, z[i : i + 1], goal.take(slice(i, i + 1)), wanted.model_copy(update={"tolerance": 1e-3})
        )
        assert alone.steps.tolist() == early.steps[i : i + 1].tolist()
        torch.testing.assert_close(alone.losses, early.losses[i : i + 1], atol=1e-5, rtol=1e-5)


def test_every_pair_is_scored_and_a_goal_is_reached_by_its_own_latent() -> None:
    generator, truth = Linear(), latents(2)
    goal = goal_of(generator, truth, [guides("coarse@map", [0, 2], (SIDE, SIDE)), guides("fine@map")])
    cosines = InversionSettings(similarity="image_cosine")
    assert pair_similarities(generator, truth, goal, cosines).tolist() == [pytest.approx([1.0] * 8)] * 2
    assert pair_similarities(generator, -truth, goal, cosines).tolist() == [pytest.approx([-1.0] * 8)] * 2


def test_a_unit_that_never_varies_guides_nothing() -> None:
    generator, truth = Linear(), latents(2)
    dead = Guides("fine@map", (SIDE, SIDE), (SIDE, SIDE), torch.tensor([0]), Scale(np.array([3.0]), np.array([0.0])))
    goal = goal_of(generator, truth, [dead])
    assert pair_similarities(generator, latents(2, seed=2), goal, InversionSettings()).tolist() == [[0.0]] * 2


def test_a_loss_that_is_no_number_is_refused_with_the_rate() -> None:
    generator, truth = Linear(), latents(1)
    goal = goal_of(generator, truth, [], pixels=True)
    generator.images[0, 0] = math.inf
    with pytest.raises(InversionDiverged, match=r"from step 0 .* lower lr \(found 0.05\)"):
        invert(generator, latents(1, seed=2), goal, settings(activation=0.0, steps=2))


def test_nothing_to_seek_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is sought"):
        InversionSettings(reconstruction=0.0, activation=0.0)
