"""Words that are all the same to an encoder of texts, because its vocabulary has none of them."""

from __future__ import annotations

import torch

from jobs.sentences import Sentences
from miclip_core.evaluate.sentences import TowerEncoder
from miclip_core.zoo.load import load_model
from miclip_core.zoo.openclip import tokeniser
from schemas.refs import ModelRef


def test_an_encoder_of_whole_words_says_which_it_does_not_know() -> None:
    clip = load_model(ModelRef.parse("demo:clip-p8"))
    sentences = Sentences(TowerEncoder("clip", clip.embed_text), clip)
    words = ["red", "zebra", "Circle", "the", "qwerty", "7"]
    assert sentences.unknown(words) == ["zebra", "qwerty", "7"]
    assert sentences.unknown([]) == []


def test_one_that_spells_words_out_knows_all_of_them() -> None:
    to_ids = tokeniser("ViT-B-32")
    table = torch.nn.Embedding(49408, 16, _weight=torch.randn(49408, 16, generator=torch.Generator().manual_seed(0)))
    sentences = Sentences(TowerEncoder("clip", lambda texts: table(to_ids(list(texts))).mean(1).detach()))
    assert sentences.unknown(["red", "zebra", "qwerty", "\U00012000", "斑马"]) == []
