"""The train round on made-up tables: siblings, resuming at any step, and input that cannot be trained on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from jobs.tokens.order import Order
from jobs.tokens.sources import TableSource
from jobs.tokens.window import batches
from jobs.train_sae.plan import settings_of
from miclip_core.sae.train import SaeTrainer
from miclip_core.sae.weights import load_sae
from schemas.errors import (
    BadTokens,
    NonFiniteActivation,
    SaeCollapsed,
    SaeDiverged,
    TooFewImages,
    TooFewTokens,
)
from schemas.sae import SaeSettings, StreamSettings
from tests.activations import make_images
from tests.training import IMAGES, STREAM, TOKENS, WIDTH, Stopped, make_plan, store_tokens, train, with_nan

KINDS: list[dict[str, Any]] = [
    {"arch": "topk"},
    {"arch": "topk", "seed": 1, "steps": 8},
    {"arch": "batchtopk", "latents": 16},
    {"arch": "jumprelu", "steps": 10, "normalise": "sqrt_d"},
    {"arch": "relu", "k": None, "l1": 0.01},
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path / "lake"))


# -- what comes out


def test_a_stage_is_what_the_trainer_makes_of_the_batches_of_the_stream(store: Store) -> None:
    """The plain loop: begin with the first window, a step per batch."""
    tokens = store_tokens(store)
    plan = make_plan(tokens)
    trainer = SaeTrainer(settings_of(plan), WIDTH)
    seen = []
    source = TableSource(StoreInputs(store), [tokens])
    for step in batches(source, Order(IMAGES, STREAM), {tokens.site: 12}):
        if not seen:
            trainer.begin(step.windows[tokens.site].rows)
        seen.append(trainer.step(step.x[tokens.site]))
    found = train(store, plan)
    sae = load_sae(found.files[plan.digest])
    expected = trainer.finish()
    assert all(torch.equal(tensor, sae.tensors()[name]) for name, tensor in expected.tensors().items())
    curve = found.curves[plan.digest].to_pydict()
    assert curve["step"] == list(range(12)) and curve["tokens"] == [16 * (i + 1) for i in range(12)]
    for name in ("loss", "mse", "fvu", "l0", "lr", "grad_norm"):
        assert curve[name] == [float(np.float32(getattr(metrics, name))) for metrics in seen]
    assert curve["dead"] == [metrics.dead for metrics in seen]


def test_weights_say_where_they_are_from(store: Store) -> None:
    tokens = store_tokens(store)
    plan = make_plan(tokens, seed=5)
    config = load_sae(train(store, plan).files[plan.digest]).config
    assert (config.model, config.site, config.source) == ("demo:made-up", tokens.site, "miclip")
    assert (config.tokens, config.seed, config.precision, config.d) == (12 * 16, 5, "fp32", WIDTH)


def test_a_threshold_that_is_not_known_yet_is_null(store: Store) -> None:
    plan = make_plan(store_tokens(store), arch="topk")
    thresholds = train(store, plan).curves[plan.digest]["threshold"].to_pylist()
    assert thresholds[0] is None and thresholds[-1] is not None


# -- siblings


def test_a_sweep_gives_bit_for_bit_what_each_of_its_saes_gives_alone(store: Store) -> None:
    tokens = store_tokens(store)
    plans = [make_plan(tokens, **kind) for kind in KINDS]
    together = train(store, *plans).same()
    alone = {}
    for plan in plans:
        drop_states(store)
        alone |= train(store, plan).same()
    assert together == alone and len(together) == len(KINDS)


def test_sites_with_other_numbers_of_tokens_train_side_by_side_as_alone(store: Store) -> None:
    """A window of the site with one token per image spans five times as many images."""
    many = store_tokens(store)
    one = store_tokens(store, make_images(IMAGES, 1, WIDTH, 3), site="resid_post.0@cls")
    plans = [make_plan(many, steps=20), make_plan(one, steps=5), make_plan(one, steps=4, seed=1)]
    together = train(store, *plans).same()
    drop_states(store)
    assert together == {**train(store, plans[0]).same(), **train(store, *plans[1:]).same()}


def drop_states(store: Store) -> None:
    for key in store.list("stages"):
        if "/keep/" in key:
            store.drop_state(key)


# -- resuming


@pytest.mark.parametrize(("stop_at", "after"), itertools.product((1, 2, 5, 9, 14), (True, False)))
def test_a_run_that_dies_anywhere_ends_with_the_bits_of_one_that_did_not(
    store: Store, tmp_path: Path, stop_at: int, after: bool
) -> None:
    """Siblings are then at different steps; states come every 3 steps, and the data spans 3 epochs."""
    quiet = make_store(str(tmp_path / "quiet"))
    plans = [make_plan(store_tokens(store), **kind) for kind in KINDS]
    store_tokens(quiet)
    expected = train(quiet, *plans).same()
    with pytest.raises(Stopped):
        train(store, *plans, stop_at=stop_at, after=after)
    found = train(store, *plans)
    assert found.same() == expected
    assert len(found.notes) == min(len(KINDS), stop_at if after else stop_at - 1)  # that many had kept something


def test_a_resumed_run_takes_only_the_steps_that_are_left(store: Store) -> None:
    plan = make_plan(store_tokens(store), keep_every=4)
    with pytest.raises(Stopped):
        train(store, plan, stop_at=2)
    found = train(store, plan)
    assert [step for _, step in found.keep.saved] == [12]
    assert found.notes == [f"{plan.stage.detail}: goes on from step 8"]


def test_a_run_that_dies_after_its_last_state_takes_no_step(store: Store) -> None:
    plan = make_plan(store_tokens(store), keep_every=100)
    with pytest.raises(Stopped):
        train(store, plan, stop_at=1)
    found = train(store, plan)
    assert found.keep.saved == [] and set(found.files) == {plan.digest}


def test_a_sibling_that_joins_later_changes_nothing(store: Store, tmp_path: Path) -> None:
    """One has 6 steps behind it when a new one begins at 0; both give what they give alone."""
    tokens = store_tokens(store)
    old, new = make_plan(tokens), make_plan(tokens, seed=7)
    with pytest.raises(Stopped):
        train(store, old, stop_at=2)
    together = train(store, old, new)
    assert [step for stage, step in together.keep.saved if stage == old.digest] == [9, 12]
    other = make_store(str(tmp_path / "other"))
    store_tokens(other)
    assert together.same() == {**train(other, old).same(), **train(other, new).same()}


def test_large_tensors_are_pieces_of_their_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a state made of such pieces is as good."""
    monkeypatch.setattr("jobs.train_sae.lane.SMALL", 200)
    plan = make_plan(store_tokens(store))
    with pytest.raises(Stopped):
        train(store, plan, stop_at=2)
    names = {key.split("-", 1)[1] for key in store.list("stages") if "/keep/" in key and "-" in key.rsplit("/", 1)[1]}
    assert {"position", "curve", "small", "tensor.weight.W_enc", "tensor.adam.exp_avg.W_dec"} <= names
    resumed = train(store, plan).same()
    drop_states(store)
    assert resumed == train(store, plan).same()


# -- input that cannot be trained on


def refused(store: Store, kind: type[Exception], *words: str, tokens: Any = None, **plan: Any) -> None:
    """The train round raises this, saying these words, and keeps nothing."""
    made = make_plan(tokens or store_tokens(store), **plan)
    with pytest.raises(kind) as raised:
        train(store, made)
    assert [word for word in words if word not in str(raised.value)] == [], raised.value


def test_nan_in_a_table_names_the_image(store: Store) -> None:
    image = Order(IMAGES, STREAM).rows(Order(IMAGES, STREAM).training[0])[0]
    tokens = store_tokens(store, with_nan(make_images(IMAGES, TOKENS, WIDTH), image))
    refused(store, NonFiniteActivation, f"{image:032x}", "NaN", tokens=tokens)


def test_a_table_of_another_width_than_the_site_names_both(store: Store) -> None:
    refused(store, BadTokens, "d=13", "12", width=13)


def test_an_empty_table_is_no_training(store: Store) -> None:
    refused(store, TooFewTokens, "0 tokens", tokens=store_tokens(store, []))


def test_too_few_tokens_for_one_batch_names_both_numbers(store: Store) -> None:
    stream = StreamSettings(batch_tokens=500, buffer_batches=3, block_images=4, holdout=0.1)
    refused(store, TooFewTokens, "500", "batch_tokens", stream=stream)


def test_too_few_images_for_a_held_out_block_names_both_numbers(store: Store) -> None:
    stream = StreamSettings(batch_tokens=4, buffer_batches=3, block_images=100, holdout=0.1)
    refused(store, TooFewImages, "40 images", "block_images", stream=stream)


def test_tokens_that_are_all_alike_are_refused(store: Store) -> None:
    alike = [(index, np.ones_like(values)) for index, values in make_images(IMAGES, TOKENS, WIDTH)]
    refused(store, BadTokens, "alike", tokens=store_tokens(store, alike))


def test_an_sae_of_which_nothing_fires_any_more_says_which_and_publishes_nothing(store: Store) -> None:
    dying = {"arch": "relu", "k": None, "l1": 1e4, "lr": 0.5, "steps": 40, "centre": "mean"}
    refused(store, SaeCollapsed, "relu 24 latents", "lower l1", **dying)


def test_a_loss_that_is_no_number_any_more_says_which_and_when(store: Store) -> None:
    refused(store, SaeDiverged, "topk 24 latents k 3", "at step 2", "lower lr", lr=1e30)


def test_more_active_latents_than_there_are_is_refused_by_the_settings() -> None:
    with pytest.raises(ValueError, match="k is 9, but there are only 8 latents"):
        SaeSettings(arch="topk", latents=8, k=9, lr=1e-3, steps=1, dead_tokens=1)


def test_an_sae_that_fails_is_blamed_alone_and_its_siblings_are_kept_at_their_end(store: Store) -> None:
    tokens = store_tokens(store)
    good, bad = make_plan(tokens), make_plan(tokens, lr=1e30)
    with pytest.raises(SaeDiverged) as raised:
        train(store, bad, good)
    assert raised.value.stages == (bad.digest,)
    found = train(store, good)
    assert found.notes == [f"{good.stage.detail}: goes on from step 12"] and found.keep.saved == []
