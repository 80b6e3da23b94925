"""Mean activations per concept: by hand, from one label or several per image, and in portions."""

from __future__ import annotations

import math

import pytest
import torch

from miclip_core.dissect.act_values import ActValues
from schemas.errors import BadAlignment, NonFiniteActivation

T_NU = torch.tensor([[1.0, 0.0, -1.0], [3.0, 0.0, 0.0], [5.0, 0.0, 7.0], [11.0, 0.0, 13.0]])
NONE = math.nan


def one_hot(labels: torch.Tensor, concepts: int = 3) -> torch.Tensor:
    """One concept per image, or none at -1."""
    return labels[:, None] == torch.arange(concepts)


def scores(labels: torch.Tensor) -> torch.Tensor:
    sums = ActValues(3)
    sums.add(T_NU, labels)
    return sums.scores()


def test_means_by_hand_with_nothing_for_empty_concepts_and_silent_units() -> None:
    expected = torch.tensor([[2.0, NONE, 5.0], [NONE, NONE, NONE], [-0.5, NONE, 7.0]])
    torch.testing.assert_close(scores(one_hot(torch.tensor([0, 0, 2, -1]))), expected, equal_nan=True)


def test_an_image_with_several_labels_counts_for_each() -> None:
    member = torch.tensor([[True, True, False], [True, False, False], [False, False, False], [True, True, False]])
    expected = torch.tensor([[5.0, 6.0, NONE], [NONE, NONE, NONE], [4.0, 6.0, NONE]])
    torch.testing.assert_close(scores(member), expected, equal_nan=True)
    assert scores(torch.zeros(4, 3, dtype=torch.bool)).isnan().all()


def test_portions_in_any_order_give_the_means_of_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    t_NU, labels = torch.randn(300, 20, generator=draw), torch.randint(-1, 6, (300,), generator=draw)
    expected = torch.stack([t_NU[labels == c].double().mean(0) for c in range(6)], 1).float()
    for seed in range(3):
        sums = ActValues(6)
        for rows in torch.randperm(300, generator=torch.Generator().manual_seed(seed)).split(80):
            sums.add(t_NU[rows], one_hot(labels[rows], 6))
        torch.testing.assert_close(sums.scores(), expected)


def test_labels_of_another_shape_or_type_are_refused() -> None:
    for wrong in (torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.bool)):
        with pytest.raises(BadAlignment, match=r"expected labels as bool \[4, 3\]"):
            scores(wrong)


def test_activations_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteActivation, match=r"units \[0\] at rows \[1\]"):
        ActValues(3).add(torch.tensor([[1.0], [math.nan]]), one_hot(torch.tensor([0, 1])))
