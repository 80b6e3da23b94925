"""Answers of a multimodal model against choosing the likeliest token by hand, and captions that images bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from miclip_core.dissect.caption import AskedCaptions, GivenCaptions, Patch, prompt_hash
from schemas.errors import BadSpec, UnsupportedBlock
from tests.miclip_core.dissect import tiny_models

RNG = np.random.default_rng(0)
PATCHES = [Patch(i, Image.fromarray(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)))
           for i, (h, w) in enumerate([(8, 8), (30, 20), (64, 64), (5, 9), (32, 32)])]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    return folder, tiny_models.llava(folder)


def by_hand(folder: Path, model: Any, patch: Patch, question: str, length: int) -> str:
    """The likeliest next token, again and again, each by a forward over everything so far."""
    processor = tiny_models.transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=patch.pixels, text=question, return_tensors="pt")
    ids, begin = inputs.input_ids, inputs.input_ids.shape[1]
    picture = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        for _ in range(length):
            logits = model(input_ids=ids, **picture).logits
            ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
            if ids[0, -1] == 2:
                break
    return processor.tokenizer.decode(ids[0, begin:], skip_special_tokens=True).strip()


def test_answers_are_the_likeliest_tokens_after_the_question(saved: tuple[Path, Any]) -> None:
    captioner = AskedCaptions(saved[0], max_new_tokens=6, batch_size=2)
    answers = captioner.caption(PATCHES, "describe this")
    question = "USER: <image> describe this ASSISTANT:"
    assert answers == [by_hand(*saved, patch, question, 6) for patch in PATCHES]
    assert len(set(answers)) > 1 and captioner.name == "tiny-llava"


def test_questions_of_different_lengths_are_answered_as_each_alone(tmp_path: Path) -> None:
    model = tiny_models.llava_next(tmp_path)
    answers = AskedCaptions(tmp_path, max_new_tokens=4).caption(PATCHES, "describe this")
    question = "USER: <image> describe this ASSISTANT:"
    assert answers == [by_hand(tmp_path, model, patch, question, 4) for patch in PATCHES]


def test_without_a_chat_template_the_picture_comes_before_the_prompt(tmp_path: Path) -> None:
    model = tiny_models.llava(tmp_path, chat_template=None, seed=1)
    answers = AskedCaptions(tmp_path, max_new_tokens=4).caption(PATCHES[:2], "describe this")
    assert answers == [by_hand(tmp_path, model, patch, "<image>\ndescribe this", 4) for patch in PATCHES[:2]]


def test_the_folders_end_token_ends_an_answer(tmp_path: Path) -> None:
    model = tiny_models.llava(tmp_path)
    longer = AskedCaptions(tmp_path, max_new_tokens=6).caption(PATCHES[:1], "describe this")[0].split()
    tokenizer = tiny_models.transformers.AutoTokenizer.from_pretrained(tmp_path)
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids(longer[1])]
    model.generation_config.save_pretrained(tmp_path)
    shorter = AskedCaptions(tmp_path, max_new_tokens=6).caption(PATCHES[:1], "describe this")[0].split()
    assert shorter == longer[:2]


def test_the_hash_is_that_of_what_the_model_reads(saved: tuple[Path, Any]) -> None:
    one = AskedCaptions(saved[0], max_new_tokens=6)
    assert prompt_hash(one, "describe this") == prompt_hash(AskedCaptions(saved[0], max_new_tokens=6), "describe this")
    different = {prompt_hash(one, "describe this"), prompt_hash(one, "describe"),
                 prompt_hash(AskedCaptions(saved[0], max_new_tokens=7), "describe this")}  # fmt: skip
    assert len(different) == 3 and all(len(digest) == 64 for digest in different)


def test_given_captions_are_those_of_the_image() -> None:
    given = GivenCaptions({0: " a star ", 3: "a red ring"}, "alt_text")
    assert given.caption(PATCHES[:4], "ignored") == ["a star", "", "", "a red ring"]
    assert given.name == "alt_text" and prompt_hash(given, "a") == prompt_hash(given, "b")


def test_what_cannot_answer_is_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="max_new_tokens=0"):
        AskedCaptions(saved[0], max_new_tokens=0)
    tiny_models.clipseg(tmp_path)
    with pytest.raises(UnsupportedBlock, match="clipseg"):
        AskedCaptions(tmp_path)
