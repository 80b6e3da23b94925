"""The training encoder and the tokenizer that models ship give the same ids."""

import numpy as np

from miclip_core.world.captions import CaptionMix, full_claims, sample_claims, sentences
from miclip_core.world.scene import World, attributes
from miclip_core.world.tokens import CONTEXT, EOS, PAD, UNKNOWN, VOCABULARY, encode, save_tokenizer


def test_the_shipped_tokenizer_gives_the_ids_of_training(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path)
    scenes = attributes(World(), range(300))
    texts = sentences(sample_claims(scenes, CaptionMix(), 0)) + sentences(full_claims(scenes)) + ["A RED dog"]
    shipped = AutoTokenizer.from_pretrained(tmp_path)(texts, max_length=CONTEXT, padding="max_length", truncation=True)
    assert np.array_equal(encode(texts), shipped["input_ids"])


def test_every_caption_fits_and_no_word_is_unknown():
    scenes = attributes(World(text=0.5), range(3000))
    ids = encode(sentences(sample_claims(scenes, CaptionMix(), 0)) + sentences(full_claims(scenes)))
    assert not (ids == UNKNOWN).any() and ((ids == EOS).sum(1) == 1).all()
    assert (ids[:, -1] == PAD).all()  # so nothing was cut


def test_the_end_token_is_the_highest_id():
    assert len(VOCABULARY) - 1 == EOS


def test_a_long_text_keeps_its_end_token():
    assert encode(["red " * 40])[0, -1] == EOS
