"""The stream pads to the planned batch, drops the padding, feeds reducers, and names what is not finite."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest
import torch

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.reducers import Moments, Sink, TopK
from miclip_core.zoo.stream import reduce_stream, tapped
from schemas.errors import NonFiniteActivation
from schemas.refs import Site
from tests.miclip_core.zoo.contract import tiny_model
from tests.miclip_core.zoo.test_clip_vit import TINY, _built

PIXELS = torch.randint(0, 256, (7, 3, 12, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
IDS = [f"{i:032x}" for i in range(7)]
TAPS = ("mlp_act.0@cls", "resid_post.1@patch:sample(2,0)", "embedding")


@pytest.fixture(scope="module")
def model():
    return tiny_model(partial(_built, TINY, False))


def batches(size: int):
    for first in range(0, len(IDS), size):
        yield IDS[first : first + size], PIXELS[first : first + size]


def test_a_short_batch_is_padded_for_the_model_and_cut_for_the_reader(model) -> None:
    shapes = []
    handle = model.module.visual.conv1.register_forward_hook(
        lambda module, args, output: shapes.append(args[0].shape[0])
    )
    out = list(tapped(model, batches(3), TAPS, batch_size=3))
    handle.remove()
    assert shapes == [3, 3, 3]
    assert [batch.image_ids for batch in out] == [tuple(IDS[:3]), tuple(IDS[3:6]), (IDS[6],)]
    whole = model.run(model.normalise(PIXELS), TAPS, image_ids=IDS)
    for name in whole:
        assert torch.allclose(torch.cat([batch.tensors[name] for batch in out]), whole[name], atol=1e-12), name


def test_shards_reduced_apart_and_merged_equal_one_pass(model) -> None:
    names = {str(site): site for site in model.sites(TAPS)}

    def reduced(part: list) -> dict[str, list]:
        reducers = {name: [Moments(), TopK(3)] for name in names}
        reduce_stream(model, part, reducers, batch_size=2)
        return reducers

    parts = list(batches(2))
    whole, first, second = reduced(parts), reduced(parts[:1]), reduced(parts[1:])
    for name in names:
        for one, other in zip(first[name], second[name]):
            one.merge(other)
        np.testing.assert_allclose(first[name][0].variance, whole[name][0].variance, rtol=1e-10)
        assert (first[name][1].ids == whole[name][1].ids).all()
        assert (first[name][1].values == whole[name][1].values).all()


def test_sampled_rows_carry_their_positions(model) -> None:
    seen = []
    sink = Sink(lambda rows, positions, ids: seen.append((rows.shape, positions.shape, tuple(ids))))
    reduce_stream(model, batches(4), {"resid_post.1@patch:sample(2,0)": [sink]}, batch_size=4)
    assert seen == [((4, 2, 16), (4, 2), tuple(IDS[:4])), ((3, 2, 16), (3, 2), tuple(IDS[4:]))]


def poison(image: int) -> Edit:
    def fn(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[image, 0, 0] = float("nan")
        return x

    return Edit(Site(path="mlp_act.0"), "fn", fn)


def test_a_value_that_is_no_number_stops_with_site_and_image(model) -> None:
    with pytest.raises(NonFiniteActivation, match=f"mlp_act.0@cls of tiny is NaN or infinite for 1 images: {IDS[1]}"):
        list(tapped(model, batches(7), TAPS, batch_size=7, edits=[poison(1)]))


def test_quarantine_leaves_the_image_out_of_that_site_alone_and_says_which(model) -> None:
    told = []
    (batch,) = tapped(
        model,
        batches(7),
        TAPS,
        batch_size=7,
        edits=[poison(1)],
        quarantine=lambda image, site: told.append((image, site)),
    )
    (act,) = model.sites(["mlp_act.0@cls"])
    assert (IDS[1], "mlp_act.0@cls") in told and {image for image, _ in told} == {IDS[1]}
    assert batch.ids(act) == (IDS[0], *IDS[2:])
    rows, _ = batch.rows(act)
    assert len(rows) == 6 and torch.isfinite(rows).all()
    (early,) = tapped(model, batches(7), ["embed", "mlp_act.0@cls"], batch_size=7, edits=[poison(1)], quarantine=print)
    assert early.ids(model.sites(["embed"])[0]) == tuple(IDS)


def test_a_consumer_inside_the_pass_gets_the_tensor_that_would_have_been_returned(model) -> None:
    images, seen = model.normalise(PIXELS), []
    out = model.run(
        images, ["mlp_act.0@cls", "z.0@cls"], consume={"mlp_act.0@cls": seen.append, "z.0@cls": seen.append}
    )
    assert out == {}
    expected = model.run(images, ["mlp_act.0@cls", "z.0@cls"])
    assert torch.equal(seen[0], expected["mlp_act.0@cls"]) and torch.equal(seen[1], expected["z.0@cls"])


def test_whole_tensors_of_selected_taps_are_gone_before_the_next_block(model) -> None:
    passed: list[weakref.ref] = []
    alive: list[int] = []

    def look(module, args) -> None:
        alive.append(sum(ref() is not None for ref in passed))
        passed.append(weakref.ref(args[0]))

    blocks = model.module.visual.transformer.resblocks
    handles = [block.mlp.c_proj.register_forward_pre_hook(look) for block in blocks]
    model.run(model.normalise(PIXELS), ["mlp_act.*@cls", "mlp_act.*@patch:mean"], stop="end")
    for handle in handles:
        handle.remove()
    assert alive == [0, 0] and all(ref() is None for ref in passed)
