"""A sentence-transformers model of random weights over a handful of words, made where the package is installed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from miclip_core.torchvision_shim import ensure_torchvision

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "circle", "green", "star"]
WIDTH = 16


def make_sentence_encoder(folder: Path) -> Path:
    """The folder `tiny` in another, which also holds its BERT in `bert`; skips the test without the package."""
    ensure_torchvision()
    package = pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokeniser = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).half().eval().save_pretrained(folder / "bert")
    tokeniser.save_pretrained(folder / "bert")
    parts = importlib.import_module("sentence_transformers.models")
    modules = [parts.Transformer(str(folder / "bert")), parts.Pooling(WIDTH, "mean"), parts.Normalize()]
    package.SentenceTransformer(modules=modules, device="cpu").save(str(folder / "tiny"))
    return folder / "tiny"
