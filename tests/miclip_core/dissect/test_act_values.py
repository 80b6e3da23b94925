"""Mean activations per concept: by hand, from one label or several per image, and over shards."""

from __future__ import annotations

import math

import pytest
import torch

from miclip_core.dissect.act_values import ActValues
from schemas.errors import BadAlignment, NonFiniteActivation

T_NU = torch.tensor([[1.0, 0.0, -1.0], [3.0, 0.0, 0.0], [5.0, 0.0, 7.0], [11.0, 0.0, 13.0]])
NONE = math.nan


def scores(labels: torch.Tensor, concepts: int = 3) -> torch.Tensor:
    sums = ActValues(concepts)
    sums.add(T_NU, labels)
    return sums.scores()


def test_means_by_hand_with_nothing_for_empty_concepts_and_silent_units() -> None:
    expected = torch.tensor([[2.0, NONE, 5.0], [NONE, NONE, NONE], [-0.5, NONE, 7.0]])
    torch.testing.assert_close(scores(torch.tensor([0, 0, 2, -1])), expected, equal_nan=True)


def test_an_image_with_several_labels_counts_for_each() -> None:
    member = torch.tensor([[True, True, False], [True, False, False], [False, False, False], [True, True, False]])
    expected = torch.tensor([[5.0, 6.0, NONE], [NONE, NONE, NONE], [4.0, 6.0, NONE]])
    torch.testing.assert_close(scores(member), expected, equal_nan=True)
    assert scores(torch.zeros(4, 3, dtype=torch.bool)).isnan().all()


def test_shards_in_any_order_give_the_means_of_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    t_NU, labels = torch.randn(300, 20, generator=draw), torch.randint(-1, 6, (300,), generator=draw)
    one_hot = labels[:, None] == torch.arange(6)
    expected = torch.stack([t_NU[labels == c].double().mean(0) for c in range(6)], 1).float()
    for seed in range(3):
        parts = [ActValues(6) for _ in range(4)]
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        for part, rows in zip(parts, order.split(80)):
            part.add(t_NU[rows], labels[rows] if seed else one_hot[rows])
        for part in parts[:0:-1]:
            parts[0].merge(part)
        torch.testing.assert_close(parts[0].scores(), expected)


def test_labels_that_name_no_concept_are_refused() -> None:
    for labels in ([0, 1, 3, 0], [0, -2, 0, 0]):
        with pytest.raises(BadAlignment, match=r"expected -1 \(none\) to 2"):
            scores(torch.tensor(labels))
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.zeros(4, 2, dtype=torch.bool)):
        with pytest.raises(BadAlignment, match=r"integers \[4\] or bool \[4, 3\]"):
            scores(wrong)


def test_activations_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteActivation, match=r"units \[0\] at rows \[1\]"):
        ActValues(3).add(torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]))
