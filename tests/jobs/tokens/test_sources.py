"""Tokens of tables and of live forwards: the rows that were stored, the same from both, and what is refused."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from jobs.activations import Forward, forward_of
from jobs.models import open_model
from jobs.sae_tokens import SiteTokens
from jobs.tokens.order import Order
from jobs.tokens.sources import LiveSource, TableSource, TokenRows
from jobs.tokens.window import batches
from schemas.errors import ImageChanged, KeyMissing, NonFiniteActivation, TableMismatch
from schemas.plans import Plan, load_json
from schemas.sae import StreamSettings
from tests.activations import image_id, make_images, publish_activations
from tests.lakes import Lake, export, make_extract

# ---------------------------------------------------------------- tables


def made_up(site: str = "resid_post.0@patch", round_to: str = "fp16") -> SiteTokens:
    forward = Forward(model="demo:made-up", inputs={}, params={"rows": 300, "on_nonfinite": "stop"}, effort={})
    return SiteTokens(forward=forward, site=site, round_to=round_to, stored=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    images = list(make_images(300, 5, 16))
    publish_activations(store, made_up().stage, images, shard_rows=64, group_bytes=1 << 13)
    return store


def read(source: TableSource | LiveSource, start: int, stop: int, site: str) -> TokenRows:
    (rows,) = source.read([(start, stop)], [site])
    return rows[site]


@pytest.mark.parametrize(("start", "stop"), [(0, 300), (60, 70), (299, 300), (3, 4), (290, 400)])
def test_the_rows_of_a_range_are_those_that_were_stored(store, start, stop) -> None:
    rows = read(TableSource(StoreInputs(store), [made_up()]), start, stop, made_up().site)
    there = [(i, values) for i, values in make_images(300, 5, 16) if start <= i < stop]
    assert rows.images == tuple((i, image_id(i)) for i, _ in there)
    assert rows.image_of_row.dtype == rows.token.dtype == np.int32 and rows.values.dtype == torch.float16
    assert rows.image_of_row.tolist() == [i for i in range(len(there)) for _ in range(5)]
    assert rows.token.tolist() == list(range(5)) * len(there)
    stored = np.concatenate([values for _, values in there]) if there else np.empty((0, 0))
    np.testing.assert_array_equal(rows.values.float().numpy(), stored)


def test_several_ranges_come_one_by_one_as_they_were_asked_for(store) -> None:
    source, site = TableSource(StoreInputs(store), [made_up()]), made_up().site
    ranges = [(200, 210), (0, 7), (63, 66)]
    for found, (start, stop) in zip(source.read(ranges, [site]), ranges, strict=True):
        alone = read(source, start, stop, site)
        assert found[site].images == alone.images and torch.equal(found[site].values, alone.values)
        assert found[site].token.tolist() == alone.token.tolist()


@pytest.mark.parametrize("round_to", ["fp16", "bf16", "fp32"])
def test_values_keep_the_format_that_they_were_rounded_to_without_loss(tmp_path, round_to) -> None:
    values = (
        np.array([[1.5, -0.25, 3.0]], np.float32) if round_to != "fp32" else np.array([[0.1, 1e-30, 3]], np.float32)
    )
    store = make_store(str(tmp_path))
    publish_activations(store, made_up(round_to=round_to).stage, [(0, values)])
    rows = read(TableSource(StoreInputs(store), [made_up(round_to=round_to)]), 0, 1, made_up().site)
    assert rows.values.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[round_to]
    np.testing.assert_array_equal(rows.values.float().numpy(), values)


def test_rows_that_were_stored_out_of_order_are_sorted(tmp_path) -> None:
    generator = np.random.default_rng(1)
    images = [(int(i), np.full((3, 4), i, np.float32)) for i in generator.permutation(50)]
    store = make_store(str(tmp_path))
    publish_activations(store, made_up().stage, images, shard_rows=50)
    rows = read(TableSource(StoreInputs(store), [made_up()]), 10, 20, made_up().site)
    assert rows.images == tuple((i, image_id(i)) for i in range(10, 20))
    assert rows.values[:, 0].tolist() == [i for i in range(10, 20) for _ in range(3)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_an_error_that_says_where_it_is(tmp_path, bad) -> None:
    images = [(i, np.ones((4, 3), np.float32)) for i in range(10)]
    images[6][1][2, 1] = bad
    store = make_store(str(tmp_path))
    publish_activations(store, made_up().stage, images)
    source = TableSource(StoreInputs(store), [made_up()])
    read(source, 0, 6, made_up().site)
    words = (
        f"stage {made_up().stage.digest}: resid_post.0@patch of demo:made-up is NaN or infinite for image {image_id(6)}"
    )
    with pytest.raises(NonFiniteActivation, match=rf"{words} \(image_index 6, token 2\).*extract it again"):
        read(source, 4, 8, made_up().site)


def test_vectors_of_different_widths_are_an_error(tmp_path) -> None:
    store = make_store(str(tmp_path))
    publish_activations(store, made_up().stage, [(0, np.ones((1, 3), np.float32)), (1, np.ones((1, 4), np.float32))])
    with pytest.raises(TableMismatch, match="expected vectors of one width, found 3 to 4"):
        read(TableSource(StoreInputs(store), [made_up()]), 0, 2, made_up().site)


def test_a_stage_that_nobody_published_is_an_error(tmp_path) -> None:
    with pytest.raises(KeyMissing, match="has published no table activations"):
        read(TableSource(StoreInputs(make_store(str(tmp_path))), [made_up()]), 0, 1, made_up().site)


# ---------------------------------------------------------------- live

SITES = ["resid_post.-2@patch", "resid_post.-1@cls", "mlp_act.1@patch:sample(5,3)", "resid_post.1@patch:mean"]
MODELS = {
    "demo:clip-p8": SITES,
    "demo:clip-rn": ["stage.-1@map", "stage.-2@map:sample(3,1)"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images; one is damaged and two have the same bytes."""
    world = export(tmp_path_factory.mktemp("world"), 40)
    images = sorted((world / "images").glob("*.png"))
    images[5].write_bytes(images[5].read_bytes()[:200])
    shutil.copy(images[10], images[20])
    return world


def plans_of(lake: Lake, report, output: str = "activations") -> list[Plan]:
    stages = [s for s in report.state.stages if s.kind == "extract" and s.output == output]
    return [load_json(Plan, lake.store.get(f"stages/{s.digest}/plan.json")) for s in stages]


def tokens_of(plan: Plan) -> SiteTokens:
    params = plan.stage.params
    return SiteTokens(forward=forward_of(plan), site=str(params["site"]), round_to=str(params["round_to"]), stored=True)


def open_live(lake: Lake, tokens: list[SiteTokens]) -> LiveSource:
    inputs = StoreInputs(lake.store)
    model = open_model(tokens[0].forward, inputs, "cpu", [t.site for t in tokens])
    return LiveSource(model, inputs, tokens, threads=2)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("round_to", ["fp16", "fp32"])
def test_live_tokens_are_bit_for_bit_those_of_the_table(world, tmp_path, model, round_to) -> None:
    lake = Lake(tmp_path)
    spec = make_extract(
        world, (model,), sites=MODELS[model], outputs=["activations"], batch_size=8, shard_rows=16, round_to=round_to
    )
    report = lake.run(spec)
    assert report.exit_code == 0, report.failures
    tokens = [tokens_of(plan) for plan in plans_of(lake, report)]
    assert [t.stage.digest for t in tokens] == [plan.digest for plan in plans_of(lake, report)]
    table, live, sites = TableSource(StoreInputs(lake.store), tokens), open_live(lake, tokens), [t.site for t in tokens]
    ranges = [(0, 11), (11, 13), (24, 40)]  # no borders of shards or batches
    for stored, computed in zip(table.read(ranges, sites), live.read(ranges, sites), strict=True):
        assert stored.keys() == computed.keys() == set(sites)
        for site in sites:
            a, b = stored[site], computed[site]
            assert a.images == b.images and len(a.values) > 0
            assert a.values.dtype == b.values.dtype and torch.equal(a.values, b.values), site
            np.testing.assert_array_equal(a.image_of_row, b.image_of_row)
            np.testing.assert_array_equal(a.token, b.token)
            assert a.token.dtype == b.token.dtype and a.image_of_row.dtype == b.image_of_row.dtype
    order = Order(40, StreamSettings(batch_tokens=16, buffer_batches=2, block_images=4, holdout=0.2))
    steps = dict.fromkeys(sites, 3)
    for a, b in zip(batches(table, order, steps), batches(live, order, steps), strict=True):
        assert a.position == b.position and all(torch.equal(a.x[site], b.x[site]) for site in a.x)


def test_damaged_images_and_duplicates_have_no_live_tokens(world, tmp_path) -> None:
    lake = Lake(tmp_path)
    report = lake.run(make_extract(world, ("demo:clip-p8",), outputs=["activations"], batch_size=8))
    (plan,) = plans_of(lake, report)
    tokens = tokens_of(plan)
    rows = read(open_live(lake, [tokens]), 0, tokens.forward.rows, tokens.site)
    assert len(rows.images) == 38 and len({name for _, name in rows.images}) == 38


def broken_model(folder: Path) -> str:
    """A demo model with an infinite weight behind the last block."""
    shutil.copytree(str(files("miclip_core") / "world" / "zoo" / "clip-p8"), folder)
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["visual.transformer.resblocks.3.mlp.c_proj.bias"][0] = float("inf")
    save_file(weights, path)
    return f"open_clip:clip-p8@file:{folder}"


def test_live_values_that_are_no_numbers_stop_or_leave_the_image_out_as_extraction_would(world, tmp_path) -> None:
    model, lake = broken_model(tmp_path / "model"), Lake(tmp_path / "lake")
    sites = ["resid_post.0@cls", "resid_post.-1@cls"]
    options = {"sites": sites, "outputs": ["activations"], "batch_size": 8}
    report = lake.run(make_extract(world, (model,), on_nonfinite="quarantine", **options))
    assert report.exit_code == 0, report.failures
    tokens = [tokens_of(plan) for plan in plans_of(lake, report)]
    (rows,) = open_live(lake, tokens).read([(0, 16)], [t.site for t in tokens])
    sizes = [len(rows[t.site].values) for t in tokens]
    assert sizes[0] > 10 and sizes[1] == 0
    stopping = [
        t.model_copy(
            update={"forward": t.forward.model_copy(update={"params": {**t.forward.params, "on_nonfinite": "stop"}})}
        )
        for t in tokens
    ]
    with pytest.raises(NonFiniteActivation, match=r"is NaN or infinite for 8 images.*on_nonfinite: quarantine"):
        list(open_live(lake, stopping).read([(0, 16)], [t.site for t in stopping]))


def test_an_image_that_changed_since_it_was_indexed_stops_a_live_stream(tmp_path) -> None:
    world = export(tmp_path / "world", 12)
    lake = Lake(tmp_path / "lake")
    (plan,) = plans_of(lake, lake.run(make_extract(world, ("demo:clip-p8",), outputs=["activations"], batch_size=8)))
    sorted((world / "images").glob("*.png"))[3].unlink()
    tokens = tokens_of(plan)
    with pytest.raises(ImageChanged, match="it is gone"):
        read(open_live(lake, [tokens]), 0, 12, tokens.site)
