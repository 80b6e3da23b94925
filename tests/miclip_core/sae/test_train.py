"""Whole runs: trajectories against a textbook trainer, exact resume, invariants of every step, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from miclip_core.sae.train import NO_THRESHOLD, SaeTrainer, StepMetrics
from schemas.errors import BadSae, BadTokens, SaeCollapsed, SaeDiverged, ThresholdUnset
from schemas.sae import SaeSettings, training_bytes
from tests.miclip_core.sae.dense_reference import DenseTrainer, losses
from tests.miclip_core.sae.runs import KINDS, D, settings, tokens


def trainer(s: SaeSettings, dtype: torch.dtype = torch.float32) -> SaeTrainer:
    made = SaeTrainer(s, D, dtype=dtype)
    made.begin(tokens(300))
    return made


def train(made: SaeTrainer, steps: range) -> list[StepMetrics]:
    return [made.step(tokens(32, seed=step + 1)) for step in steps]


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("arch", KINDS)
def test_fifty_steps_are_those_of_a_textbook_trainer(arch: str) -> None:
    """Warm-up, decay, clipping, dead latents and revival all happen within them."""
    s = settings(arch, grad_clip=0.3)
    made = trainer(s, torch.float64)
    plain = DenseTrainer(s, made.weights)
    plain.begin(tokens(300))
    seen = []
    for step in range(50):
        x = tokens(32, seed=step + 1)
        metrics, expected = made.step(x)._asdict(), plain.step(x)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6), step
        seen.append(metrics)
    for name, weight in made.weights.items():
        torch.testing.assert_close(weight, plain.w[name].detach(), rtol=1e-6, atol=1e-8, msg=name)
    assert seen[0]["lr"] == 0
    assert max(m["grad_norm"] for m in seen) > 0.3
    if arch in ("topk", "batchtopk", "matryoshka"):
        assert max(m["dead"] for m in seen) > 0


@pytest.mark.parametrize("normalise", ["sqrt_d", "none"])
@pytest.mark.parametrize("centre", ["mean", "geometric_median", "none"])
def test_other_units_give_the_trajectories_of_the_textbook_too(normalise: str, centre: str) -> None:
    s = settings("topk", normalise=normalise, centre=centre)
    made = trainer(s, torch.float64)
    plain = DenseTrainer(s, made.weights)
    plain.begin(tokens(300))
    for step in range(15):
        x = tokens(32, seed=step + 1)
        metrics, expected = made.step(x)._asdict(), plain.step(x)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("arch", KINDS)
def test_decoder_rows_keep_length_one_and_gradients_are_tangent(arch: str) -> None:
    made = trainer(settings(arch))
    for step in range(12):
        v = made.weights["W_dec"].clone()
        made.step(tokens(32, seed=step + 1))
        assert float((made.weights["W_dec"].norm(dim=1) - 1).abs().max()) < 1e-5
        g = made.weights["W_dec"].grad
        assert g is not None
        assert bool(((g * v).sum(1).abs() <= 1e-6 * g.norm(dim=1) + 1e-9).all())


@pytest.mark.parametrize("arch", KINDS)
def test_the_finished_sae_does_in_the_models_units_what_training_did_in_its_own(arch: str) -> None:
    made = trainer(settings(arch), torch.float64)
    train(made, range(50))
    sae, x = made.finish(), tokens(64, seed=1000)
    assert made.norm is not None
    codes, x_hat = sae.reconstruct(x)
    expected = DenseTrainer(made.settings, made.weights)
    expected.begin(tokens(300))
    x_n = (x.double() - expected.mu) / expected.scale
    f = losses(made.settings, expected.w, x_n)[3].detach()
    if arch in ("batchtopk", "matryoshka"):  # at the end a threshold stands for the batch
        p = (x_n - made.weights["b_dec"]) @ made.weights["W_enc"].T + made.weights["b_enc"]
        f = p.relu() * (p > made.threshold)
    torch.testing.assert_close(codes.dense(), f * made.norm.scale)
    back = (f @ made.weights["W_dec"] + made.weights["b_dec"]) * made.norm.scale + made.norm.mu_D
    torch.testing.assert_close(x_hat, back)
    assert sae.config.norm_scale == made.norm.scale
    assert sae.config.tokens == 50 * 32


def test_the_threshold_of_batchtopk_keeps_about_k_per_token() -> None:
    made = SaeTrainer(settings("batchtopk", steps=200, lr=1e-2), D)
    made.begin(tokens(2000))
    for step in range(200):
        metrics = made.step(tokens(64, seed=step))
        assert metrics.threshold == NO_THRESHOLD if step < 100 else metrics.threshold > 0
    codes = made.finish().encode(tokens(500, seed=9999))
    assert float(codes.counts().double().mean()) == pytest.approx(4, rel=0.1)


def test_a_latent_that_was_selected_with_value_zero_has_not_fired() -> None:
    """k = 8 of 8 latents: all are selected for every token; those with p <= 0 must still count as silent."""
    made = SaeTrainer(SaeSettings(arch="topk", latents=8, k=8, lr=1e-9, steps=9, dead_tokens=30), D)
    made.begin(tokens(300))
    x = tokens(1, seed=5)
    for _ in range(4):
        made.step(x)
    assert made.norm is not None
    p = made.norm.apply(x, torch.float32) @ made.weights["W_enc"].T
    assert (made.dead_count.since == 4).tolist() == (p[0] <= 0).tolist()


# ---------------------------------------------------------------- resume and siblings


@pytest.mark.parametrize("arch", KINDS)
def test_a_resumed_run_ends_with_the_same_bits(arch: str) -> None:
    s = settings(arch)
    whole = trainer(s)
    kept: dict[str, Tensor] = {}
    for step in range(50):
        if step == 23:
            kept = {name: tensor.clone() for name, tensor in whole.state().items()}
        whole.step(tokens(32, seed=step + 1))
    resumed = SaeTrainer(s, D)
    resumed.load_state(kept)
    assert resumed.steps_done == 23
    train(resumed, range(23, 50))
    assert all(torch.equal(tensor, whole.state()[name]) for name, tensor in resumed.state().items())
    one, other = whole.finish().tensors(), resumed.finish().tensors()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_from_before_the_first_step_resumes_too() -> None:
    whole = trainer(settings("topk"))
    resumed = SaeTrainer(settings("topk"), D)
    resumed.load_state({name: tensor.clone() for name, tensor in whole.state().items()})
    train(whole, range(5))
    train(resumed, range(5))
    assert torch.equal(whole.weights["W_enc"], resumed.weights["W_enc"])


def test_runs_side_by_side_are_runs_one_by_one() -> None:
    many = [trainer(settings(arch)) for arch in KINDS] + [trainer(settings("topk", latents=20, seed=8))]
    for step in range(20):
        x = tokens(32, seed=step + 1)
        before = x.clone()
        for made in many:
            made.step(x)
        assert torch.equal(x, before)
    for made in many:
        alone = trainer(made.settings)
        train(alone, range(20))
        assert all(torch.equal(weight, made.weights[name]) for name, weight in alone.weights.items())


def test_the_seed_decides_the_initial_weights_and_the_dtype_does_not() -> None:
    one, other = SaeTrainer(settings("topk"), D), SaeTrainer(settings("topk", seed=4), D)
    assert torch.equal(one.weights["W_enc"], one.weights["W_dec"])
    assert not torch.equal(one.weights["W_enc"], other.weights["W_enc"])
    double = SaeTrainer(settings("topk"), D, dtype=torch.float64)
    assert torch.equal(one.weights["W_enc"].double(), double.weights["W_enc"])


def test_bf16_trains_nearly_the_same_sae() -> None:
    plain, rounded = trainer(settings("topk")), trainer(settings("topk", precision="bf16"))
    one, other = train(plain, range(50))[-1], train(rounded, range(50))[-1]
    assert one.fvu != other.fvu
    assert one.fvu == pytest.approx(other.fvu, rel=0.1)


# ---------------------------------------------------------------- what is refused


def test_tokens_of_another_width_are_refused_with_both_numbers() -> None:
    with pytest.raises(BadTokens, match=rf"expected tokens \[N, d={D}\], got \(5, 13\)"):
        trainer(settings("topk")).step(torch.zeros(5, 13))
    with pytest.raises(BadTokens, match="got"):
        SaeTrainer(settings("topk"), D).begin(torch.zeros(5, 13))


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_tokens_that_are_not_finite_are_refused_by_row_and_change_nothing(arch: str, bad: float) -> None:
    made = trainer(settings(arch))
    train(made, range(3))
    before = {name: tensor.clone() for name, tensor in made.state().items()}
    x = tokens(32, seed=50)
    x[17, 3] = bad
    with pytest.raises(BadTokens, match=r"1 of 32 tokens hold NaN or infinite values, the first are rows \[17\]"):
        made.step(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state().items())
    with pytest.raises(BadTokens, match=r"\[17\]"):
        SaeTrainer(settings(arch), D).begin(x)


def test_a_stream_without_variance_is_refused() -> None:
    with pytest.raises(BadTokens, match="all 100 tokens are alike"):
        SaeTrainer(settings("topk"), D).begin(torch.full((100, D), 3.3))
    with pytest.raises(BadTokens, match="no tokens"):
        SaeTrainer(settings("topk"), D).begin(torch.zeros(0, D))


def test_a_batch_without_tokens_is_refused() -> None:
    with pytest.raises(BadTokens, match="no tokens"):
        trainer(settings("topk")).step(torch.zeros(0, D))


def test_a_state_of_another_run_is_refused_and_names_what_differs() -> None:
    state = trainer(settings("topk")).state()
    with pytest.raises(BadSae, match=r"weight\.W_enc"):
        SaeTrainer(settings("topk", latents=20), D).load_state(state)
    with pytest.raises(BadSae, match=r"weight\.theta"):
        SaeTrainer(settings("jumprelu"), D).load_state(state)


def test_an_sae_in_which_nothing_fires_trains_on_visibly_and_is_refused_at_the_end() -> None:
    made = trainer(settings("relu", l1=500.0, warmup_steps=0, lr=0.5))
    seen = train(made, range(48))
    assert seen[-1].l0 == 0
    assert seen[-1].dead > 0
    assert seen[-1].fvu > 0.9
    with pytest.raises(SaeCollapsed, match=r"none of the 40 latents .* lower l1 \(500"):
        made.finish()


def test_a_batchtopk_run_cut_short_is_refused_for_want_of_a_threshold() -> None:
    made = trainer(settings("batchtopk"))
    train(made, range(20))
    with pytest.raises(ThresholdUnset, match="not measured in 20 of 50 steps"):
        made.finish()
    train(made, range(20, 50))
    threshold = made.finish().threshold
    assert threshold is not None
    assert bool((threshold > 0).all())


def test_a_loss_that_overflows_is_refused_before_the_weights_change() -> None:
    made = trainer(settings("topk", lr=1e25, warmup_steps=0))
    train(made, range(1))
    before = made.weights["W_enc"].clone()
    with pytest.raises(SaeDiverged, match=r"lower lr \(1e\+25\)"):
        train(made, range(1, 4))
    assert torch.equal(made.weights["W_enc"], before)


def test_tokens_too_large_for_the_sums_of_squares_are_refused() -> None:
    with pytest.raises(BadTokens, match="overflow"):
        trainer(settings("topk")).step(tokens(32) * 1e30)


def test_the_memory_of_a_training_is_four_copies_of_both_matrices_and_little_more() -> None:
    s = SaeSettings(arch="topk", latents=100_000, k=32, lr=1e-4, steps=10, dead_tokens=10**6)
    copies = training_bytes(s, 768, 1024) / (2 * 100_000 * 768 * 4)
    assert 4 < copies < 5


# ---------------------------------------------------------------- does it learn


@pytest.mark.slow
def test_topk_finds_sparse_directions() -> None:
    """64 unit vectors in 32 dimensions, 3 at a time: 128 latents leave less than 5 % unexplained."""
    made = SaeTrainer(
        SaeSettings(arch="topk", latents=128, k=3, lr=3e-3, steps=4000, warmup_steps=200, dead_tokens=30000), 32
    )
    made.begin(tokens(4096, d=32, directions=64))
    for step in range(4000):
        made.step(tokens(256, seed=step + 1, d=32, directions=64))
    sae, x = made.finish(), tokens(4096, seed=10**6, d=32, directions=64)
    x_hat = sae.reconstruct(x)[1]
    assert float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()) < 0.05
