"""Selectors, reductions and samples of one tensor, against slices written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.zoo.load import load_model
from miclip_core.zoo.select import REDUCED, as_rows, one_site, sample_positions, select
from schemas.errors import BadSite
from schemas.models import SiteFacts
from schemas.refs import ModelRef, Site

TOKENS = SiteFacts(
    path="z.0",
    layout="tokens",
    shape=(2, 3),
    positions=8,
    prefix=2,
    grid=(2, 3),
    selectors=("all", "patch", "map", "cls", "reg"),
)
HEADS = SiteFacts(
    path="q.0",
    layout="heads",
    shape=(2, 3),
    positions=7,
    prefix=1,
    grid=(2, 3),
    selectors=("all", "patch", "map", "cls"),
)
MAP = SiteFacts(path="stem", layout="map", shape=(5,), positions=6, grid=(2, 3), selectors=("map",))
X_TOKENS = torch.arange(4 * 8 * 6.0).reshape(4, 8, 2, 3)
X_HEADS = torch.arange(4 * 2 * 7 * 3.0).reshape(4, 2, 7, 3)
X_MAP = torch.arange(4 * 5 * 6.0).reshape(4, 5, 2, 3)
IDS = ["a", "b", "c", "d"]


def picked(facts: SiteFacts, text: str, x: torch.Tensor) -> torch.Tensor:
    return select(facts, Site.parse(text), x, IDS)


def test_token_selectors_cut_the_token_axis() -> None:
    assert torch.equal(picked(TOKENS, "z.0@cls", X_TOKENS), X_TOKENS[:, 0])
    assert torch.equal(picked(TOKENS, "z.0@reg", X_TOKENS), X_TOKENS[:, 1:2])
    assert torch.equal(picked(TOKENS, "z.0@patch", X_TOKENS), X_TOKENS[:, 2:])
    assert torch.equal(picked(TOKENS, "z.0@patch:mean", X_TOKENS), X_TOKENS[:, 2:].mean(1))
    assert torch.equal(picked(TOKENS, "z.0@all:max", X_TOKENS), X_TOKENS.amax(1))


def test_a_map_of_tokens_is_row_major() -> None:
    out = picked(TOKENS, "z.0@map", X_TOKENS)
    assert out.shape == (4, 2, 3, 2, 3)
    assert torch.equal(out[1, :, :, 1, 2], X_TOKENS[1, 2 + 1 * 3 + 2])
    assert torch.equal(picked(HEADS, "q.0@map", X_HEADS)[0, 1, :, 0, 2], X_HEADS[0, 1, 1 + 2])


def test_selected_parts_do_not_keep_the_whole_alive() -> None:
    for text in ("z.0@cls", "z.0@patch", "z.0@map"):
        assert picked(TOKENS, text, X_TOKENS).untyped_storage().data_ptr() != X_TOKENS.untyped_storage().data_ptr()


def test_samples_are_distinct_ascending_and_a_function_of_seed_and_image_alone() -> None:
    one = sample_positions(5, 0, "image", 196)
    assert len(set(one.tolist())) == 5 and (np.diff(one) > 0).all() and one.max() < 196
    assert (one == sample_positions(5, 0, "image", 196)).all()
    assert (one != sample_positions(5, 1, "image", 196)).any() and (one != sample_positions(5, 0, "other", 196)).any()
    assert sample_positions(3, 0, "x", 3).tolist() == [0, 1, 2]
    counts = np.bincount(np.concatenate([sample_positions(4, 0, str(i), 16) for i in range(4000)]), minlength=16)
    assert abs(counts - 1000).max() < 120  # uniform: 4 standard deviations are 110


def test_a_sample_takes_each_images_own_positions() -> None:
    for facts, x, prefix, text in (
        (TOKENS, X_TOKENS, 2, "z.0@patch"),
        (HEADS, X_HEADS.transpose(1, 2), 1, "q.0@patch"),
    ):
        whole = x if facts is TOKENS else X_HEADS
        out = select(facts, Site.parse(f"{text}:sample(2,5)"), whole, IDS)
        rows, positions = as_rows(facts, Site.parse(f"{text}:sample(2,5)"), out, IDS)
        for b, image_id in enumerate(IDS):
            where = sample_positions(2, 5, image_id, 6)
            assert (positions[b] == where).all()
            assert torch.equal(rows[b], x[b, prefix + where].flatten(1))
    with pytest.raises(ValueError, match="image_ids"):
        select(TOKENS, Site.parse("z.0@patch:sample(2,5)"), X_TOKENS, None)


def test_rows_of_a_map_are_its_positions_row_major() -> None:
    rows, positions = as_rows(MAP, Site.parse("stem@map"), picked(MAP, "stem@map", X_MAP))
    assert rows.shape == (4, 6, 5) and positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(rows[2, 4], X_MAP[2, :, 1, 1])
    rows, positions = as_rows(MAP, Site.parse("stem@map:mean"), picked(MAP, "stem@map:mean", X_MAP))
    assert torch.equal(rows[:, 0], X_MAP.mean((2, 3))) and positions.tolist() == [REDUCED]


def test_map_and_patch_rows_of_tokens_are_the_same_rows() -> None:
    by_map, _ = as_rows(TOKENS, Site.parse("z.0@map"), picked(TOKENS, "z.0@map", X_TOKENS))
    by_patch, _ = as_rows(TOKENS, Site.parse("z.0@patch"), picked(TOKENS, "z.0@patch", X_TOKENS))
    assert torch.equal(by_map, by_patch)


def test_one_site_is_one_whose_tokens_can_be_replaced():
    facts = load_model(ModelRef.parse("demo:clip-p8")).facts
    assert str(one_site(facts, "resid_post.-2@patch")) == "resid_post.3@patch"
    assert str(one_site(facts, "resid_post.3@patch:sample(4,0)")) == "resid_post.3@patch:sample(4,0)"
    with pytest.raises(BadSite, match=r"names 5 sites of demo:clip-p8; give one of them, such as resid_post.0@patch"):
        one_site(facts, "resid_post.*@patch")
    with pytest.raises(BadSite, match=r"take the site without :mean \(resid_post.3@patch\)") as refused:
        one_site(facts, "resid_post.3@patch:mean")
    assert "SAE" not in str(refused.value)
