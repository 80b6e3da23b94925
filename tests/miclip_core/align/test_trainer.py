"""Whole alignments: trajectories against autograd, planted truth, exact resume, siblings, early stopping, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.align.trainer import AlignTrainer
from miclip_core.zoo.reducers import Moments
from schemas.align import AlignSettings
from schemas.errors import BadAlignment
from tests.miclip_core.align.runs import (
    B,
    C,
    D,
    E,
    Images,
    TextbookTrainer,
    fit,
    images,
    moments,
    settings,
    train,
    trainer,
)

VARIANTS: dict[str, dict[str, object]] = {
    "paper": {},
    "in only": {"w_out": 0.0},
    "out only": {"w_in": 0.0},
    "bias": {"bias": True},
    "standardise": {"standardise": True},
    "learned": {"logit_scale": "learned"},
    "clip": {"logit_scale": "clip"},
    "multi positive": {"multi_positive": True},
    "everything": {"bias": True, "standardise": True, "logit_scale": "learned", "multi_positive": True, "w_in": 0.5},
}


def bits(made: AlignTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.state().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("variant", VARIANTS)
def test_thirty_steps_are_those_of_autograd_and_plain_adam(variant: str) -> None:
    s = settings(**VARIANTS[variant])
    made = trainer(s, torch.float64)
    plain = TextbookTrainer(s, made, images(300).a)
    for step in range(30):
        data = images(B, seed=step + 1)
        found, expected = made.step(*data)._asdict(), plain.step(*data)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6), step
    for name, weight in made.weights.items():
        torch.testing.assert_close(weight, plain.weights[name].detach(), rtol=1e-5, atol=1e-7)


def test_a_learned_scale_starts_at_one_over_007_and_stops_at_100() -> None:
    """Of an encoder that has found its targets, so that every step wants a larger scale."""
    made = trainer(settings(logit_scale="learned", lr=0.02))
    near = torch.eye(E)[:C] + 1.5
    data = Images(torch.eye(D)[:C], near, torch.arange(C), near)
    with torch.no_grad():
        made.weights["W"][:, :C] = near.T
    seen = [made.step(*data).logit_scale for _ in range(3)]
    assert seen[0] == pytest.approx(1 / 0.07)
    assert seen[2] > seen[1] > seen[0]
    made.weights["log_scale"].fill_(math.log(99.5))
    assert [made.step(*data).logit_scale for _ in range(3)] == pytest.approx([99.5, 100, 100])
    assert trainer(settings(logit_scale="clip")).step(*data).logit_scale == 60


def test_planted_classes_are_described_and_localised_without_an_error() -> None:
    """A = 5 onehot(yhat) + noise: neuron i must be named class i, and class i must find neuron i first."""
    draw = torch.Generator().manual_seed(0)
    n = 16
    yhat = torch.randint(n, (2048,), generator=draw)
    c = torch.randn(n, 24, generator=draw)
    a = 5 * torch.eye(n)[yhat] + torch.randn(2048, n, generator=draw)
    x = c[yhat] + torch.randn(2048, 24, generator=draw)
    for weights in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
        made = AlignTrainer(AlignSettings(w_out=weights[0], w_in=weights[1], lr=1e-2, batch=128, epochs=4), n, 24)
        seen = fit(made, Images(a, c, yhat, x))
        cosines = normalize(made.finish().embed_units(), dim=1) @ normalize(c, dim=1).T
        assert cosines.argmax(1).tolist() == list(range(n)), weights
        assert cosines.argmax(0).tolist() == list(range(n)), weights
        assert seen[-1].loss < seen[0].loss
    assert seen[-1].acc_row_out == 1
    assert seen[-1].acc_row_in is None


def test_the_finished_encoder_embeds_as_training_did() -> None:
    for variant in ("paper", "everything"):
        made = trainer(settings(**VARIANTS[variant]))
        train(made, range(20))
        data = images(B, seed=77)
        a = data.a.double()
        if variant == "everything":
            all_a = images(300).a.double()
            a = (a - all_a.mean(0)) / all_a.std(0, correction=0)
        expected = a @ made.weights["W"].double().T + made.weights.get("b", torch.zeros(E)).double()
        found = made.finish()
        torch.testing.assert_close(found.embed(data.a).double(), expected, rtol=1e-4, atol=1e-5)
        assert found.config.steps == 20
        assert found.config.logit_scale == pytest.approx(float(made.logit_scale))


def test_half_precision_inputs_are_read_as_their_values() -> None:
    one, other = trainer(settings()), trainer(settings())
    data = images(B, seed=1)
    halves = Images(data.a.half(), data.c.half(), data.yhat.int(), data.x.half())
    assert one.step(*halves) == other.step(
        *(halves._replace(a=halves.a.float(), c=halves.c.float(), x=halves.x.float()))
    )


def test_the_lengths_of_embeddings_do_not_matter() -> None:
    data = images(B, seed=1)
    longer = data._replace(c=data.c * 4, x=data.x * torch.tensor([2.0, 8.0] * 16)[:, None])
    assert trainer(settings()).step(*data).loss == pytest.approx(trainer(settings()).step(*longer).loss)


# ---------------------------------------------------------------- resume and siblings


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_with_the_same_bits(variant: str) -> None:
    s = settings(**VARIANTS[variant])
    whole = trainer(s)
    train(whole, range(7))
    resumed = AlignTrainer(s, D, E, clip_scale=60.0)
    resumed.load_state(bits(whole))
    assert resumed.steps_done == 7
    train(whole, range(7, 20))
    train(resumed, range(7, 20))
    assert_same(bits(whole), bits(resumed))
    assert_same(whole.finish().tensors(), resumed.finish().tensors())


def test_a_run_resumed_between_epochs_stops_as_the_whole_one() -> None:
    s = settings(patience=2)
    whole = trainer(s)
    for step, loss in enumerate((3.0, 2.0, 2.5)):
        train(whole, range(step, step + 1))
        assert not whole.end_epoch(loss)
    resumed = AlignTrainer(s, D, E)
    resumed.load_state(bits(whole))
    for made in (whole, resumed):
        train(made, range(3, 4))
        assert made.end_epoch(2.0)
    assert_same(bits(whole), bits(resumed))
    assert_same(whole.finish().tensors(), resumed.finish().tensors())


def test_runs_side_by_side_are_runs_one_by_one() -> None:
    many = [trainer(settings(**changes)) for changes in VARIANTS.values()]
    for step in range(12):
        data = images(B, seed=step + 1)
        before = [tensor.clone() for tensor in data]
        seen = [made.step(*data) for made in many]
        assert all(torch.equal(*pair) for pair in zip(data, before))
    for made, last in zip(many, seen):
        alone = trainer(made.settings)
        assert train(alone, range(12))[-1] == last
        assert_same(bits(alone), bits(made))


def test_the_seed_decides_the_initial_weights_and_the_dtype_does_not() -> None:
    one, other = trainer(settings(bias=True)), trainer(settings(bias=True, seed=4))
    for name, limit in (("W", D**-0.5), ("b", D**-0.5)):
        assert not torch.equal(one.weights[name], other.weights[name])
        assert 0.7 * limit < float(one.weights[name].abs().max()) <= limit
    double = trainer(settings(bias=True), torch.float64)
    assert torch.equal(one.weights["W"].double(), double.weights["W"])


# ---------------------------------------------------------------- early stopping


def test_with_a_patience_the_best_epoch_wins_and_training_stops() -> None:
    made = trainer(settings(patience=2))
    kept = []
    for step, (loss, stops) in enumerate([(2.0, False), (1.0, False), (1.5, False), (1.0, True)]):
        train(made, range(step, step + 1))
        kept.append(made.weights["W"].clone())
        assert made.end_epoch(loss) is stops
    found = made.finish()
    assert torch.equal(found.W, kept[1])
    assert found.config.steps == 2


def test_evaluation_learns_nothing_and_gives_the_metrics_of_the_next_step() -> None:
    made = trainer(settings(logit_scale="learned"))
    train(made, range(3))
    before = bits(made)
    data = images(B, seed=9)
    found = made.evaluate(*data)
    assert_same(bits(made), before)
    assert found == made.step(*data)


def test_without_a_patience_no_epoch_can_end_training() -> None:
    with pytest.raises(RuntimeError, match="set patience"):
        trainer(settings()).end_epoch(1.0)


# ---------------------------------------------------------------- what is refused


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(BadAlignment, match="31 images do not fill one batch of 32"):
        trainer(settings(), n=31)
    with pytest.raises(BadAlignment, match="0 images"):
        AlignTrainer(settings(), D, E).begin(Moments())


def test_activations_of_another_width_are_refused_with_both_numbers() -> None:
    data = images(B, seed=1, d=D + 1)
    with pytest.raises(BadAlignment, match=r"expected activations \[N, 10\], got \(32, 11\)"):
        trainer(settings()).step(*data)
    with pytest.raises(BadAlignment, match="expected those of 10"):
        AlignTrainer(settings(), D, E).begin(moments(data.a))


@pytest.mark.parametrize(("field", "name"), [("c", "class embeddings"), ("x", "image embeddings")])
def test_embeddings_of_another_clip_are_refused(field: str, name: str) -> None:
    data = images(B, seed=1)
    with pytest.raises(BadAlignment, match=rf"expected {name} \[N, 8\], got .*9\)"):
        trainer(settings()).step(*data._replace(**{field: torch.ones(len(getattr(data, field)), 9)}))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_refused_by_row_and_change_nothing(bad: float) -> None:
    made = trainer(settings())
    train(made, range(2))
    before, data = bits(made), images(B, seed=5)
    data.a[17, 3] = bad
    with pytest.raises(
        BadAlignment, match=r"1 of 32 activations hold NaN or infinite values, the first are rows \[17\]"
    ):
        made.step(*data)
    assert_same(bits(made), before)
    with pytest.raises(BadAlignment, match=r"1 of 10 channels hold NaN or infinite values, the first are \[3\]"):
        AlignTrainer(settings(), D, E).begin(moments(data.a))


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_embeddings_without_a_direction_are_refused_by_their_numbers(bad: float) -> None:
    data = images(B, seed=5)
    assert int((data.yhat == 3).sum()) > 0
    data.c[3], data.x[6] = bad, 1.0
    with pytest.raises(BadAlignment, match=r"1 class embeddings have length 0 or hold NaN .* \[3\]"):
        trainer(settings()).step(*data)
    data.c[3], data.x[6] = 1.0, bad
    with pytest.raises(BadAlignment, match=r"1 image embeddings of the batch have length 0 .* \[6\]"):
        trainer(settings()).step(*data)


@pytest.mark.parametrize("label", [-1, C])
def test_a_predicted_class_without_a_text_is_refused(label: int) -> None:
    data = images(B, seed=1)
    data.yhat[4] = label
    with pytest.raises(
        BadAlignment, match=r"predicted classes from .* expected 0 to 4, as there are 5 class embeddings"
    ):
        trainer(settings()).step(*data)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    data = images(B, seed=1)
    with pytest.raises(BadAlignment, match="32 activations, 31 predictions, 32 images"):
        trainer(settings()).step(*data._replace(yhat=data.yhat[1:]))


def test_classes_may_be_missing_where_the_loss_does_not_depend_on_them() -> None:
    data, alone = images(B, seed=1), {"w_out": 0.0}
    with_classes, without = trainer(settings(**alone)), trainer(settings(**alone))
    assert with_classes.step(*data) == without.step(data.a, None, None, data.x)
    assert_same(bits(with_classes), bits(without))
    for fields in ({}, {**alone, "multi_positive": True}):
        with pytest.raises(BadAlignment, match="towards predicted classes, but none are given"):
            trainer(settings(**fields)).step(data.a, None, None, data.x)


def test_channels_that_are_mostly_zero_are_listed_and_train_on() -> None:
    data = images(64)
    made = AlignTrainer(settings(), D, E)
    data.a[:, [0, 2, 4, 6, 8]] = 0
    made.begin(moments(data.a))
    assert made.mostly_zero == []  # half is not more than half
    data.a[:, 9] = 0
    made.begin(moments(data.a))
    assert made.mostly_zero == [0, 2, 4, 6, 8, 9]
    resumed = AlignTrainer(settings(), D, E)
    resumed.load_state(bits(made))
    assert resumed.mostly_zero == made.mostly_zero
    assert math.isfinite(made.step(*data).loss)


def test_channels_that_do_not_vary_can_be_standardised() -> None:
    data = images(64)
    data.a[:, 4] = 2.5
    made = AlignTrainer(settings(standardise=True), D, E)
    made.begin(moments(data.a))
    made.step(*data)
    found = made.finish()
    assert found.std is not None
    assert float(found.std[4]) == pytest.approx(1e-6)
    assert bool(torch.isfinite(found.embed(data.a)).all())


def test_the_scale_of_the_clip_must_be_given_where_it_is_asked_for() -> None:
    with pytest.raises(BadAlignment, match="logit scale of the CLIP was not given"):
        AlignTrainer(settings(logit_scale="clip"), D, E)


def test_a_state_of_another_run_is_refused_and_names_what_differs() -> None:
    state = bits(trainer(settings()))
    with pytest.raises(BadAlignment, match=r"adam\.exp_avg\.b, .*weight\.b"):
        AlignTrainer(settings(bias=True), D, E).load_state(state)
    with pytest.raises(BadAlignment, match=r"weight\.W"):
        AlignTrainer(settings(), D, E + 1).load_state(state)


def test_a_loss_that_is_no_number_is_refused_before_the_weights_change() -> None:
    made = trainer(settings(lr=1e38))
    with pytest.raises(BadAlignment, match=r"lower lr \(1e\+38\)"):
        train(made, range(4))


def test_steps_come_after_a_beginning() -> None:
    made = AlignTrainer(settings(), D, E)
    for call in (lambda: made.step(*images(B)), made.state, made.finish):
        with pytest.raises(RuntimeError, match=r"begin\(moments\)"):
            call()
