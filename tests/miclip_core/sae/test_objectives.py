"""Losses and gradients by hand against autograd on dense float64 matrices, finite differences and numbers on paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from miclip_core.sae import revival
from miclip_core.sae.batch import Batch, Outcome
from miclip_core.sae.objectives import objective
from miclip_core.sae.parallel import Alone
from schemas.sae import SaeSettings
from tests.miclip_core.sae.dense_reference import losses
from tests.miclip_core.sae.runs import KINDS, D, M, settings

NAMES = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "theta")}


def random_weights(arch: str, seed: int = 0) -> dict[str, Tensor]:
    """Untidy weights: decoder rows of other lengths than 1, biases everywhere."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weights = {"W_enc": normal(M, D), "W_dec": normal(M, D) * 0.5, "b_dec": normal(D) * 0.3}
    weights |= {name: normal(M) * 0.3 for name in NAMES.get(arch, ("b_enc",))}
    if arch == "jumprelu":
        weights["theta"] = weights["theta"].abs() + 0.1
    return weights


def random_tokens(n: int = 30, seed: int = 1) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(
    s: SaeSettings, weights: dict[str, Tensor], x: Tensor, step: int = 0, dead: tuple[int, ...] = ()
) -> tuple[Outcome, dict[str, Tensor]]:
    grads = {name: torch.zeros_like(value) for name, value in weights.items()}
    batch = Batch(x, len(x), step, torch.tensor(dead, dtype=torch.int64), Alone())
    return objective(s, weights, grads, batch), grads


def by_autograd(s: SaeSettings, weights: dict[str, Tensor], x: Tensor, step: int = 0, dead: tuple[int, ...] = ()):
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    loss, mse, aux, f = losses(s, leaves, x, step, list(dead))
    loss.backward()
    return float(loss), float(mse), float(aux), f.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def assert_same(s: SaeSettings, dead: tuple[int, ...] = (), step: int = 7) -> None:
    weights, x = random_weights(s.arch), random_tokens()
    outcome, grads = ours(s, weights, x, step, dead)
    loss, mse, aux, f, expected = by_autograd(s, weights, x, step, dead)
    assert outcome.loss == pytest.approx(loss, rel=1e-10)
    assert outcome.mse == pytest.approx(mse, rel=1e-10)
    assert outcome.aux == pytest.approx(aux, rel=1e-10)
    assert outcome.fvu == pytest.approx(mse * len(x) / float((x - x.mean(0)).square().sum()), rel=1e-10)
    assert outcome.l0 == pytest.approx(float((f > 0).sum(1).double().mean()))
    assert torch.equal(outcome.fired_U, (f > 0).any(0))
    for name, grad in expected.items():
        torch.testing.assert_close(
            grads[name], grad if grad is not None else torch.zeros(()), rtol=1e-9, atol=1e-11, msg=name
        )


@pytest.mark.parametrize("arch", KINDS)
def test_losses_and_gradients_are_those_of_autograd(arch: str) -> None:
    assert_same(settings(arch))


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("dead", [(3,), (0, 4, 5, 6, 9, 12, 20, 33, 39), tuple(range(M))])
@pytest.mark.parametrize("few", [1000, 2], ids=["dense", "sparse"])
@pytest.mark.parametrize("normalise", ["unit_ms", "none"])
def test_the_loss_that_revives_the_dead_is_that_of_autograd(
    arch: str, dead: tuple[int, ...], few: int, normalise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revival, "_FEW", few)
    assert_same(settings(arch, normalise=normalise), dead)
    assert_same(settings(arch, normalise=normalise, aux_k=3), dead)


@pytest.mark.parametrize("arch", ["relu", "jumprelu", "gated"])
def test_slices_of_tokens_add_up(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miclip_core.sae.dense.DENSE_CELLS", 7 * M)  # 30 tokens in slices of 7
    assert_same(settings(arch))


@pytest.mark.parametrize("arch", ["relu", "topk", "batchtopk", "matryoshka"])
def test_gradients_are_slopes(arch: str) -> None:
    """Central differences along random directions, for the kinds whose losses are differentiable almost everywhere."""
    s, weights, x = settings(arch), random_weights(arch), random_tokens()
    _, grads = ours(s, weights, x)
    for seed in range(3):
        draw, eps = torch.Generator().manual_seed(seed), 1e-7
        towards = {n: torch.randn(w.shape, generator=draw, dtype=w.dtype) for n, w in weights.items()}
        up, down = ({n: w + sign * eps * towards[n] for n, w in weights.items()} for sign in (1, -1))
        slope = (ours(s, up, x)[0].loss - ours(s, down, x)[0].loss) / (2 * eps)
        assert float(sum((grads[n] * towards[n]).sum() for n in weights)) == pytest.approx(slope, rel=1e-5)


def test_jumprelu_follows_the_formulas_on_paper() -> None:
    """d = m = 1, W = v = 1, theta 1, h 0.5: p = 0.8, 1.2 are in the window (0.75, 1.25), p = 0.6, 2 are not; k = 1.

    f = 0, 1.2, 0, 2 and e = .8, 0, .6, 0. L0 = 2/4. df = -2 e / 4 = -.4, 0, -.3, 0.
    d mse / d theta = -(1 / .5) * (-.4 + 0) = .8; d penalty / d theta = 2 (.5 - 1) * -(1 / .5) * 2 / 4 = 1.
    """
    s = SaeSettings(
        arch="jumprelu", latents=1, k=1, lr=1, steps=9, dead_tokens=9, bandwidth=0.5, sparsity_warmup_steps=0
    )
    one = torch.ones(1, dtype=torch.float64)
    weights = {"W_enc": one[:, None], "W_dec": one[:, None], "b_enc": one * 0, "b_dec": one * 0, "theta": one}
    outcome, grads = ours(s, weights, torch.tensor([[0.8], [1.2], [0.6], [2.0]], dtype=torch.float64))
    assert outcome.l0 == 0.5
    assert outcome.mse == pytest.approx((0.64 + 0.36) / 4)
    assert outcome.loss == pytest.approx(0.25 + 0.25)
    assert float(grads["theta"]) == pytest.approx(0.8 + 1.0)
    assert float(grads["b_enc"]) == 0  # the firing tokens are reconstructed exactly, and the count gives p nothing


def test_jumprelus_penalty_warms_up() -> None:
    s, weights, x = settings("jumprelu"), random_weights("jumprelu"), random_tokens()  # 20 steps of warm-up
    first, tenth = ours(s, weights, x, step=0)[0], ours(s, weights, x, step=10)[0]
    excess = (first.l0 / 4 - 1) ** 2
    assert first.loss == first.mse
    assert tenth.loss - tenth.mse == pytest.approx(0.5 * excess)


def test_revival_reaches_encoder_rows_of_the_dead_alone_and_no_decoder_bias() -> None:
    s, weights, x, dead = settings("topk"), random_weights("topk"), random_tokens(), (2, 7, 30)
    with_dead, without = ours(s, weights, x, dead=dead)[1], ours(s, weights, x)[1]
    moved = {n: (with_dead[n] - without[n]).abs().reshape(len(with_dead[n]), -1).sum(1).nonzero().flatten().tolist()
             for n in ("W_enc", "W_dec", "b_enc")}  # fmt: skip
    assert moved == {"W_enc": [2, 7, 30], "W_dec": [2, 7, 30], "b_enc": [2, 7, 30]}
    # b_dec moves only as the origin of the encoder's input: minus the moved b_enc times the encoder
    through_c = -(with_dead["b_enc"] - without["b_enc"]) @ weights["W_enc"]
    torch.testing.assert_close(with_dead["b_dec"] - without["b_dec"], through_c)


def test_without_dead_latents_nothing_is_revived() -> None:
    outcome, _ = ours(settings("topk"), random_weights("topk"), random_tokens())
    assert outcome.aux == 0
    assert outcome.loss == outcome.mse


def test_when_all_are_dead_and_all_may_help_the_residual_is_explained_by_relu_of_p() -> None:
    s, weights, x = settings("topk", aux_k=M), random_weights("topk"), random_tokens()
    aux = ours(s, weights, x, dead=tuple(range(M)))[0].aux
    p = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    kept = p.relu() * (p >= p.topk(4, dim=1).values[:, -1:])
    e = x - weights["b_dec"] - kept @ weights["W_dec"]
    assert aux == pytest.approx(
        float((e - p.relu() @ weights["W_dec"]).square().sum() / (e - e.mean(0)).square().sum())
    )


def test_one_level_of_a_matryoshka_is_batchtopk() -> None:
    weights, x = random_weights("batchtopk"), random_tokens()
    nested = settings("matryoshka", group_sizes=(M,), level_weights=(1.0,))
    one, other = ours(nested, weights, x), ours(settings("batchtopk"), weights, x)
    assert one[0].loss == other[0].loss
    assert all(torch.equal(one[1][name], other[1][name]) for name in weights)


def test_bf16_rounds_the_encoder_product_alone() -> None:
    """With weights and tokens that bf16 holds exactly and sums that it does too, nothing changes."""
    weights = {"W_enc": torch.eye(4).repeat(2, 1)[:6], "b_enc": torch.arange(6.0) / 1024,
               "W_dec": torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), "b_dec": torch.zeros(4)}  # fmt: skip
    x = torch.tensor([[1.0, 2.0, 3.0, 0.5], [0.25, -1.0, 4.0, 1.5]])
    plain = SaeSettings(arch="topk", latents=6, k=2, lr=1, steps=1, dead_tokens=9)
    exact, rounded = ours(plain, weights, x), ours(plain.model_copy(update={"precision": "bf16"}), weights, x)
    assert exact[0].loss == rounded[0].loss
    x = x + 0.001  # which bf16 cannot hold beside 1
    assert ours(plain, weights, x)[0].loss != ours(plain.model_copy(update={"precision": "bf16"}), weights, x)[0].loss
