"""What Adam keeps of a run, and how a state of another run is told."""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.adam import differing, keep_weights, restore_weights


def make() -> tuple[dict[str, Tensor], torch.optim.Adam]:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(0.5)}
    return weights, torch.optim.Adam(weights.values(), lr=0.1, fused=True)


def step(weights: dict[str, Tensor], adam: torch.optim.Adam, number: int) -> None:
    for weight in weights.values():
        weight.grad = torch.sin(weight + number)
    adam.step()


def test_weights_restored_in_the_middle_take_the_same_steps_to_the_bit() -> None:
    whole, resumed = make(), make()
    for number in range(10):
        if number == 4:
            kept = {name: tensor.clone() for name, tensor in keep_weights(*whole).items()}
            restore_weights(*resumed, kept, 4)
        for run in (whole, resumed) if number >= 4 else (whole,):
            step(*run, number)
    assert torch.equal(whole[0]["a"], resumed[0]["a"])
    assert torch.equal(whole[0]["b"], resumed[0]["b"])


def test_before_the_first_step_moments_are_zeros() -> None:
    kept = keep_weights(*make())
    assert sorted(kept) == [
        "adam.exp_avg.a",
        "adam.exp_avg.b",
        "adam.exp_avg_sq.a",
        "adam.exp_avg_sq.b",
        "weight.a",
        "weight.b",
    ]
    assert kept["adam.exp_avg.a"].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_names_that_are_missing_unknown_or_of_another_shape_differ() -> None:
    one = {"same": torch.ones(2), "shape": torch.ones(2), "missing": torch.ones(1)}
    other = {"same": torch.zeros(2), "shape": torch.ones(2, 1), "unknown": torch.ones(1)}
    assert differing(one, other) == ["missing", "shape", "unknown"]
    assert differing(one, dict(one)) == []
