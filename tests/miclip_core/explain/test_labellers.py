"""Labels of texts by the demo world's words, and by a model that is asked, against the library's own answer."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

from miclip_core.explain.answers import Generation
from miclip_core.explain.labellers import AskedLabels, Labeller, WorldLabels
from miclip_core.explain.labels import ABSTRACTIONS, parse_abstraction, parse_context
from miclip_core.explain.prompts import abstraction_prompt, context_prompt
from miclip_core.explain.vlm import Vlm
from schemas.errors import BadPrompt
from tests.miclip_core.explain import vlms
from tests.miclip_core.explain.conftest import Speaker, stir

LOW, HIGH, OTHER = ABSTRACTIONS
LABELLING = ("low", "high", "level", "low-level", "high-level", "animal", "background", "other")
TEXTS = tuple(
    f"{article} {colour} {noun}"
    for article in ("a", "the")
    for colour in ("red", "blue")
    for noun in ("circle", "bird", "circle and a bird")
)
Talker = Callable[[vlms.Kind], Vlm]


@pytest.mark.parametrize(
    ("text", "abstraction", "context"),
    [
        ("a large red striped circle in the top left on a grey background", HIGH, "other"),
        ("A red object", LOW, "other"),
        ("red red red", LOW, "other"),
        ("a striped object on a white background", LOW, "other"),
        ("a grey background", LOW, "background"),
        ("a grey background that says star", HIGH, "other"),
        ("the word red", HIGH, "other"),
        ("a dog in the grass", OTHER, "other"),
        ("", OTHER, "other"),
    ],
)
def test_the_worlds_words_say_what_a_text_is_about(text: str, abstraction: str, context: str) -> None:
    world: Labeller = WorldLabels()
    assert (world.abstraction([text]), world.context([text])) == ([abstraction], [context])


def by_the_library(vlm: Vlm, prompt: str) -> str:
    """The model's greedy answer to a text, without any of our code."""
    turn = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    read = vlm.processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    read = {name: value for name, value in read.items() if isinstance(value, torch.Tensor)}
    written = vlm.module.generate(**read, max_new_tokens=5, do_sample=False, pad_token_id=0)
    return vlm.processor.tokenizer.decode(written[0, read["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Talker:
    """Kind -> a small model among whose few words are those that labels are read from."""

    @cache
    def load(kind: vlms.Kind) -> Vlm:
        vlm = vlms.tiny_vlm(kind, tmp_path_factory.mktemp(kind), words=(*vlms.WORDS, *LABELLING))
        stir(vlm)
        return vlm

    return load


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_a_model_is_asked_the_papers_questions_without_an_image(talker: Talker, kind: vlms.Kind) -> None:
    vlm, asked = talker(kind), AskedLabels(talker(kind), Generation(max_new_tokens=5), size=3)
    raws = [by_the_library(vlm, abstraction_prompt(text)) for text in TEXTS]
    assert asked.abstraction(TEXTS) == [parse_abstraction(raw) for raw in raws]
    raws = [by_the_library(vlm, context_prompt(text)) for text in TEXTS]
    assert asked.context(TEXTS) == [parse_context(raw) for raw in raws]


def test_the_labels_of_these_models_are_not_all_alike(talker: Talker) -> None:
    asked = [AskedLabels(talker(kind), Generation(max_new_tokens=5)) for kind in vlms.KINDS]
    assert len({label for one in asked for label in one.abstraction(TEXTS)}) >= 2
    assert len({label for one in asked for label in one.context(TEXTS)}) >= 2


def test_equal_texts_are_asked_about_once_and_equally_long_ones_together(
    talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, batches = talker("llava"), []
    generate = vlm.module.generate
    monkeypatch.setattr(
        vlm.module, "generate", lambda **inputs: (batches.append(len(inputs["input_ids"])), generate(**inputs))[1]
    )
    labels = AskedLabels(vlm, size=2)
    first = labels.context(["a red bird", "a circle", "a blue bird", "a red bird", "a green bird"])
    assert batches == [2, 2, 2]  # one with two words, three with three; no batch depends on what else there is
    assert labels.context(["a circle", "a red bird"]) == first[1::-1] and len(batches) == 3
    labels.abstraction(["a red bird"])
    assert batches[3:] == [2]


def test_a_model_that_does_not_read_texts_is_not_asked(speaker: Speaker) -> None:
    processor = copy(speaker("llava").processor)
    processor.chat_template = "<bos>{% for p in messages[0]['content'] if p['type'] == 'image' %}<image>{% endfor %} is"
    labels = AskedLabels(replace(speaker("llava"), processor=processor))
    for ask in (labels.abstraction, labels.context):
        with pytest.raises(BadPrompt, match="leaves the text away"):
            ask(["a red bird"])


def test_a_text_that_holds_a_place_for_an_image_is_refused(speaker: Speaker) -> None:
    with pytest.raises(BadPrompt, match="stands for an image"):
        AskedLabels(speaker("llava")).context(["an <image> of it"])
