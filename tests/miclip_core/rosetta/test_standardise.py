"""Shifting, scaling and rounding of maps, and which units are dead."""

from __future__ import annotations

import numpy as np
import torch

from miclip_core.rosetta.standardise import CLAMP, Scale, standardised
from miclip_core.zoo.reducers import Moments

NAN = float("nan")


def test_a_scale_is_the_mean_and_the_population_sd_of_the_moments() -> None:
    moments = Moments()
    moments.add(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]), np.arange(2), ["a"])
    scale = Scale.of(moments)
    assert scale.centre.tolist() == [2.0, 5.0]
    assert scale.sd.tolist() == [1.0, 0.0]
    assert scale.dead.tolist() == [False, True]


def test_dead_units_are_constant_up_to_rounding_or_not_finite() -> None:
    scale = Scale(np.array([1000.0, 1000.0, 0.0, 0.0, NAN, 1.0]), np.array([9e-4, 1.1e-3, 5e-19, 1e-15, 1.0, np.inf]))
    assert scale.dead.tolist() == [True, False, True, False, True, True]


def test_values_are_shifted_before_they_are_scaled_and_rounded_once() -> None:
    x = torch.tensor([[[1000.25], [1000.5]]])
    z, clamped = standardised(x, Scale(np.array([1000.0]), np.array([0.5])), "fp16")
    assert z.dtype == torch.float16
    assert z.flatten().tolist() == [0.5, 1.0]
    assert int(clamped) == 0


def test_dead_units_give_zeros_whatever_they_hold() -> None:
    x = torch.tensor([[[1.0, NAN, 4.0]]])
    z, _ = standardised(x, Scale(np.array([1.0, NAN, 2.0]), np.array([0.0, NAN, 1.0])))
    assert z.flatten().tolist() == [0.0, 0.0, 2.0]


def test_what_float16_cannot_hold_is_clamped_and_counted() -> None:
    x = torch.tensor([[[1e6, -1e6, 3.0]]])
    z, clamped = standardised(x, Scale(np.zeros(3), np.ones(3)), "fp16")
    assert z.flatten().tolist() == [CLAMP, -CLAMP, 3.0]
    assert int(clamped) == 2
    assert standardised(x, Scale(np.zeros(3), np.ones(3)), "bf16")[0].isfinite().all()
