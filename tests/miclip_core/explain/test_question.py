"""Questions against what the library's processor makes of the same turn with real pictures."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from miclip_core.explain.question import make_question
from miclip_core.explain.vlm import Vlm
from schemas.errors import BadPrompt
from tests.miclip_core.explain import vlms
from tests.miclip_core.explain.conftest import Speaker

RNG = np.random.default_rng(0)


def picture() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", vlms.KINDS)
@pytest.mark.parametrize("images", [1, 3])
def test_a_question_is_what_the_library_reads_with_real_pictures(
    speaker: Speaker, kind: vlms.Kind, images: int
) -> None:
    vlm = speaker(kind)
    question = make_question(vlm, "describe the red circle", images)
    text = "<bos>" + vlms.SHOWN[kind] * images + " describe the red circle is"
    read = vlm.processor(text=text, images=[picture() for _ in range(images)], return_tensors="pt")
    assert question.ids.tolist() == read["input_ids"][0].tolist() and question.images == images
    for name, value in question.extras.items():
        assert value.tolist() == read[name][0].tolist()
    assert ("token_type_ids" in question.extras) == (kind == "gemma3")


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_every_image_has_its_places_before_the_text(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    ids = make_question(vlm, "circle", 2).ids.tolist()
    place, word = vlm.module.config.image_token_id, vlms.vocabulary(kind)["circle"]
    per_image = {"llava": 16, "gemma3": 4, "internvl": 4}[kind]
    assert ids.count(place) == 2 * per_image and ids.count(word) == 1
    assert ids[-2:] == [word, vlms.vocabulary(kind)["is"]]
    alone = make_question(vlm, "circle", 0)
    assert alone.ids.tolist() == [1, *ids[-2:]] and alone.images == 0


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_a_text_that_holds_an_image_token_is_refused(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    for token in {vlms.SHOWN[kind], vlm.processor.tokenizer.convert_ids_to_tokens(vlm.module.config.image_token_id)}:
        with pytest.raises(BadPrompt, match="must hold no token that stands for an image"):
            make_question(vlm, f"describe {token} this", 1)


def changed(vlm: Vlm, **more: object) -> Vlm:
    """The same model with other facts of its language model."""
    facts = vlm.tower.facts.model_copy(update={"language": vlm.language.model_copy(update=more)})
    return replace(vlm, tower=replace(vlm.tower, facts=facts))


def test_another_number_of_places_than_the_model_fills_is_refused(speaker: Speaker) -> None:
    with pytest.raises(BadPrompt, match="32 places for image tokens, expected 34: 2 images of 17 each"):
        make_question(changed(speaker("llava"), image_tokens=17), "describe", 2)


def test_a_template_may_leave_the_question_away_but_no_image(speaker: Speaker) -> None:
    vlm = speaker("llava")
    try:
        own = vlm.processor.chat_template
        vlm.processor.chat_template = (
            "{% for p in messages[0]['content'] %}{% if p['type'] == 'image' %}<image>{% endif %}{% endfor %}"
        )
        assert torch.equal(make_question(vlm, "red", 1).ids, torch.full((16,), vlm.module.config.image_token_id))
        vlm.processor.chat_template = "<image>{{ messages[0]['content'][-1]['text'] }}"
        with pytest.raises(BadPrompt):
            make_question(vlm, "red", 2)
    finally:
        vlm.processor.chat_template = own


def test_a_model_whose_template_leaves_the_text_away_is_not_asked_about_texts(speaker: Speaker) -> None:
    vlm = speaker("llava")
    processor = copy(vlm.processor)
    processor.chat_template = "<bos>{% for p in messages[0]['content'] if p['type'] == 'image' %}<image>{% endfor %} is"
    mute = replace(vlm, processor=processor)
    assert make_question(mute, "red", 1).images == 1
    with pytest.raises(BadPrompt, match="leaves the text away"):
        make_question(mute, "red", 0)


@pytest.mark.parametrize(
    ("kind", "tiling"),
    [("internvl", {"crop_to_patches": True, "min_patches": 2}),
     ("gemma3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 4, "pan_and_scan_min_ratio_to_activate": 0.5})],
)  # fmt: skip
def test_an_image_is_one_tile_whatever_the_processor_would_make_of_it(
    speaker: Speaker, kind: vlms.Kind, tiling: dict[str, object]
) -> None:
    vlm = speaker(kind)
    processor = copy(vlm.processor)
    processor.image_processor = copy(vlm.processor.image_processor)
    for name, value in tiling.items():
        assert hasattr(processor.image_processor, name)
        setattr(processor.image_processor, name, value)
    found = make_question(replace(vlm, processor=processor), "describe", 2)
    assert torch.equal(found.ids, make_question(vlm, "describe", 2).ids)


def test_a_processor_without_a_chat_template_is_refused(speaker: Speaker) -> None:
    vlm = speaker("llava")
    bare = SimpleNamespace(chat_template=None, tokenizer=vlm.processor.tokenizer)
    with pytest.raises(BadPrompt, match=r"chat_template\.jinja"):
        make_question(replace(vlm, processor=bare), "describe", 1)
