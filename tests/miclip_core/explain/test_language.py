"""Soft tokens against those of the library's own pass from pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from miclip_core.explain.language import soft_tokens
from schemas.errors import GeometryMismatch, NonFiniteActivation, UnsupportedBlock
from tests.miclip_core.explain import vlms
from tests.miclip_core.explain.conftest import Speaker


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_soft_tokens_are_those_of_the_librarys_pass(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    images = vlms.images(vlm, 3)
    with torch.no_grad():
        expected = vlm.module.get_image_features(pixel_values=images, return_dict=True).pooler_output
    expected = expected if isinstance(expected, torch.Tensor) else torch.stack(list(expected))
    site = f"{vlm.language.reads}@all"
    found = soft_tokens(vlm, vlm.tower.run(images, [site])[site])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert tuple(found.shape) == (3, vlm.language.image_tokens, vlm.language.width)
    with torch.no_grad():  # the tower is the library's own again
        again = vlm.module.get_image_features(pixel_values=images, return_dict=True).pooler_output
    assert torch.equal(torch.stack(list(again)), expected)


def test_tokens_of_another_shape_are_refused(speaker: Speaker) -> None:
    vlm = speaker("llava")
    for shape in ((2, 16, 32), (2, 17, 31), (17, 32)):
        with pytest.raises(GeometryMismatch, match="17, 32"):
            soft_tokens(vlm, torch.zeros(shape))


def test_a_projection_that_gives_other_numbers_than_the_facts_say_is_refused(speaker: Speaker) -> None:
    vlm = speaker("llava")
    for name, count, expected in (
        ("image_tokens", 17, r"\(16, 24\) .* \(17, 24\)"),
        ("width", 23, r"\(16, 24\) .* \(16, 23\)"),
    ):
        facts = vlm.tower.facts.model_copy(update={"language": vlm.language.model_copy(update={name: count})})
        with pytest.raises(GeometryMismatch, match=expected):
            soft_tokens(replace(vlm, tower=replace(vlm.tower, facts=facts)), torch.zeros(1, 17, 32))


def test_a_token_that_is_no_number_is_refused_with_its_image(speaker: Speaker) -> None:
    vlm = speaker("llava")
    tokens = torch.zeros(3, 17, 32)
    tokens[1, 4, 2] = torch.nan
    with pytest.raises(NonFiniteActivation, match=r"images \[1\]"):
        soft_tokens(vlm, tokens)
    tokens[1, 4, 2], tokens[1, 0, 0] = 0, torch.nan  # LLaVA does not read its class token
    assert torch.isfinite(soft_tokens(vlm, tokens)).all()


def test_a_library_that_looks_elsewhere_than_the_facts_say_is_refused(speaker: Speaker) -> None:
    vlm = speaker("llava")
    facts = vlm.tower.facts.model_copy(update={"language": vlm.language.model_copy(update={"reads": "resid_post.0"})})
    with pytest.raises(UnsupportedBlock, match=r"reads resid_post\.1 of its vision tower, and resid_post\.0"):
        soft_tokens(replace(vlm, tower=replace(vlm.tower, facts=facts)), torch.zeros(1, 17, 32))
