"""How fast units are compared with concepts, beside straightforward loops over units; run with `make bench`, prints ratios."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.dissect.clip_dissect import clip_dissect
from miclip_core.dissect.rank_reorder import shuffles
from tests.benchmarks.measures import seconds

UNITS, CONCEPTS, IMAGES, E = 1000, 1000, 5000, 512


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Random activations and embeddings, whose cosines have the mean and the spread of a CLIP's."""
    draw = torch.Generator().manual_seed(0)
    x_NE, concepts_ME = (torch.randn(n, E, generator=draw) for n in (IMAGES, CONCEPTS))
    for embeddings in (x_NE, concepts_ME):
        embeddings[:, 0] += 12
    return torch.randn(IMAGES, UNITS, generator=draw), normalize(x_NE), normalize(concepts_ME)


def loop_soft_wpmi(t_NU: Tensor, p_NM: Tensor) -> Tensor:
    """soft_wpmi, one unit after another."""
    shares_NM = (10 * p_NM).softmax(1)
    best_KU = t_NU.topk(100, dim=0).indices
    q_K1 = (0.998 - torch.arange(100) / 100 * (0.998 - 0.97))[:, None]
    l_UM = torch.stack([(1 + q_K1 * (shares_NM[best_K] - 1) + 1e-7).log().sum(0) for best_K in best_KU.T])
    return l_UM - (l_UM.logsumexp(0) - math.log(len(l_UM)))


def loop_rank_reorder(t_NU: Tensor, p_NM: Tensor, permutations_SK: Tensor) -> Tensor:
    """rank_reorder, one unit after another."""
    scores = []
    for t_N in t_NU.T:
        t_K, best_K = t_N.topk(permutations_SK.shape[1])
        p_KM = p_NM[best_K]
        rank_KM = p_KM.argsort(0, descending=True).argsort(0)
        base = (t_K - t_K[permutations_SK]).abs().pow(3).mean()
        scores.append(-((t_K[:, None] - t_K[rank_KM]).abs().pow(3).mean(0) / base) / p_KM.mean(0).sqrt())
    return torch.stack(scores)


@pytest.mark.bench
def test_soft_wpmi_against_a_loop_over_units(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Goal: twice as fast, both from activations and embeddings to scores."""
    t_NU, x_NE, concepts_ME = inputs
    expected = loop_soft_wpmi(t_NU, x_NE @ concepts_ME.T)
    torch.testing.assert_close(clip_dissect("soft_wpmi", *inputs), expected, rtol=1e-4, atol=1e-3)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        taken = seconds(
            5,
            {
                "ours": lambda: clip_dissect("soft_wpmi", *inputs),
                "loop": lambda: loop_soft_wpmi(t_NU, x_NE @ concepts_ME.T),
                "cosines, which both compute": lambda: x_NE @ concepts_ME.T,
                "top images, as the loop finds them": lambda: t_NU.topk(100, dim=0),
            },
        )
        print(f"\nsoft_wpmi, {UNITS} units, {CONCEPTS} concepts, {IMAGES} images, {threads} threads: " + ", ".join(
            f"{name} {s:.3f} s" for name, s in taken.items()) + f"; loop / ours {taken['loop'] / taken['ours']:.2f} (goal 2)")  # fmt: skip


@pytest.mark.bench
def test_rank_reorder_against_a_loop_over_units(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Goal: five times as fast, both from activations and embeddings to scores; for 200 of the units."""
    t_NU, x_NE, concepts_ME = inputs[0][:, :200].contiguous(), *inputs[1:]
    permutations_SK = shuffles(IMAGES // 20)
    expected = loop_rank_reorder(t_NU, x_NE @ concepts_ME.T, permutations_SK)
    close = torch.isclose(clip_dissect("rank_reorder", t_NU, x_NE, concepts_ME), expected, rtol=1e-4)
    assert close.float().mean() > 0.99  # two cosines that are apart by less than their rounding may change places
    for threads in (1, 2):
        torch.set_num_threads(threads)
        taken = seconds(
            3,
            {
                "ours": lambda: clip_dissect("rank_reorder", t_NU, x_NE, concepts_ME, permutations_SK),
                "loop": lambda: loop_rank_reorder(t_NU, x_NE @ concepts_ME.T, permutations_SK),
            },
        )
        print(f"\nrank_reorder, {CONCEPTS} concepts, {IMAGES} images, {threads} threads: " + ", ".join(
            f"{name} {s * 5:.2f} ms a unit" for name, s in taken.items())
            + f"; loop / ours {taken['loop'] / taken['ours']:.2f} (goal 5)")  # fmt: skip
