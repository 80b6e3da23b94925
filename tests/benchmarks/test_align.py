"""How fast neuron encoders train beside the bare matrix products of a step; run with `make bench`, prints ratios."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from miclip_core.align.trainer import AlignTrainer
from miclip_core.zoo.reducers import Moments
from schemas.align import AlignSettings
from tests.benchmarks.measures import seconds

D, E, B, CLASSES = 768, 512, 1024, 1000


def make_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations, texts, predictions (about 640 classes of 1,000 in a batch) and images of the size of a ViT-B/16."""
    draw = torch.Generator().manual_seed(0)
    a, c, x = (torch.randn(*shape, generator=draw) for shape in ((B, D), (CLASSES, E), (B, E)))
    return a, c, torch.randint(CLASSES, (B,), generator=draw), x


def make_trainer(**changes: object) -> AlignTrainer:
    trainer = AlignTrainer(AlignSettings.model_validate({"batch": B, **changes}), D, E, clip_scale=100.0)
    moments = Moments()
    moments.add(make_batch()[0][:, None], torch.arange(1).numpy(), [])
    trainer.begin(moments)
    return trainer


def products(keys: int) -> Callable[[], None]:
    """The matrix products of one step alone: the map and its gradient, cosines with `keys` keys and their gradients."""
    draw = torch.Generator().manual_seed(1)
    a, W, n = (torch.randn(*shape, generator=draw) for shape in ((B, D), (E, D), (B, E)))
    key, p = torch.randn(keys, E, generator=draw), torch.randn(B, keys, generator=draw)

    def run() -> None:
        a @ W.T
        n @ key.T
        p @ key
        n.T @ a

    return run


def plain_step(c: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """The pseudocode of MICLIP with autograd and the Adam of torch."""
    W = make_trainer().weights["W"].detach().clone().requires_grad_()
    adam, labels = torch.optim.Adam([W], lr=1e-4), torch.arange(B)

    def run(a: Tensor, c: Tensor, yhat: Tensor, x: Tensor) -> None:
        n = normalize(a @ W.T, dim=1)
        logits = [n @ normalize(other, dim=1).T for other in (c[yhat], x)]
        loss = sum((cross_entropy(z, labels) + cross_entropy(z.T, labels)) / 2 for z in logits)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return run


@pytest.mark.bench
@pytest.mark.parametrize("threads", [1, 2])
def test_one_step_against_its_bare_matrix_products(threads: int) -> None:
    """Goal: at least half of the rate of the products, also of those that a step really needs: one key per class in L_out."""
    torch.set_num_threads(threads)
    batch = make_batch()
    needed = len(batch[2].unique()) + B
    plain = plain_step(batch[1])
    variants = {
        "paper": {},
        "clip scale": {"logit_scale": "clip"},
        "learned": {"logit_scale": "learned"},
        "out only": {"w_in": 0.0},
        "in only": {"w_out": 0.0},
        "multi positive": {"multi_positive": True},
    }
    trainers = {name: make_trainer(**changes) for name, changes in variants.items()}
    steps: dict[str, Callable[[], object]] = {
        "products of 2 B keys": products(2 * B),
        "products needed": products(needed),
        "autograd": lambda: plain(*batch),
        **{name: (lambda made=made: made.step(*batch)) for name, made in trainers.items()},
    }
    taken = seconds(9, steps)
    print(f"\n{threads} threads, d {D}, E {E}, batch {B}, {needed - B} classes in it")
    for name, s in taken.items():
        print(f"  {name:21} {s * 1e3:7.1f} ms, products of 2 B keys {taken['products of 2 B keys'] / s:.2f}, "
              f"products needed {taken['products needed'] / s:.2f}")  # fmt: skip
    print("  goal: products needed / paper >= 0.5")


@pytest.mark.bench
def test_eight_encoders_on_one_batch_against_one() -> None:
    torch.set_num_threads(2)
    batch = make_batch()
    many, one = [make_trainer(seed=seed) for seed in range(8)], make_trainer()
    taken = seconds(5, {"one": lambda: one.step(*batch), "eight": lambda: [made.step(*batch) for made in many]})
    print(f"\neight / one {taken['eight'] / taken['one']:.2f}")
