"""The demo zoo's word-level tokenizer: the vocabulary, a plain encoder for training, and the files that models ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miclip_core.world.scene import CONCEPTS

CONTEXT = 26
_GRAMMAR = ("a", "an", "and", "background", "in", "object", "on", "says", "that", "the", "word")
_NAMES = {
    word
    for category, values in CONCEPTS.items()
    if category != "watermark"
    for value in values
    for word in value.split()
}
# The end token is the highest id because the text tower pools at the position of the largest one.
VOCABULARY = ("<pad>", "<bos>", "<unk>", *sorted({*_GRAMMAR, *_NAMES}), "<eos>")
IDS = {word: number for number, word in enumerate(VOCABULARY)}
PAD, BOS, UNKNOWN, EOS = (IDS[word] for word in ("<pad>", "<bos>", "<unk>", "<eos>"))


def encode(texts: list[str]) -> np.ndarray:
    """Token ids (N, CONTEXT) int64: begin, words, end, padding; a text too long loses words before the end token."""
    ids = np.full((len(texts), CONTEXT), PAD, np.int64)
    for row, text in zip(ids, texts, strict=True):
        words = [IDS.get(word, UNKNOWN) for word in text.lower().split()][: CONTEXT - 2]
        row[: len(words) + 2] = [BOS, *words, EOS]
    return ids


def save_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which the model loaders turn into the same ids as `encode`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    ).save_pretrained(directory)
