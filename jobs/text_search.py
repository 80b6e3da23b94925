"""Queries by meaning: embedded by the encoder that texts were embedded with, and the texts that are nearest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jobs.protocol import Inputs
from jobs.sentences import Sentences, open_sentences
from jobs.text_encoders import TextEncoder
from miclip_core.explain.search import Hit, search
from schemas.errors import UsageError

SUGGESTED = 8
"""Words that may be looked for instead of what an encoder does not know."""


class Nearest(NamedTuple):
    """The texts that are nearest to a query, and words of the query that say nothing to what embedded it."""

    hits: list[Hit]
    unknown: list[str]


def find_nearest(
    encoder: TextEncoder,
    query: str,
    embedding_NE: np.ndarray,
    texts: Sequence[str],
    ids: Sequence[Any],
    inputs: Inputs,
    top: int,
) -> Nearest:
    """The `top` texts with the largest cosines with a query, best first; equal ones by text, then by id.

    embedding: of the texts, by this encoder.

    Raises:
        UsageError: the encoder knows no word of the query that has a meaning of its own.
        WeightsMissing: the encoder is not what it was. UnknownModel, MissingPackage: it is not there, or cannot be opened.
    """
    sentences = open_sentences(encoder, inputs, "cpu")
    unknown = sentences.unknown(words := list(dict.fromkeys(re.findall(r"\w+", query))))
    if unknown:
        _check_known(encoder.name, sentences, [word for word in words if word not in unknown], unknown, texts)
    query_E = sentences.embed([query])[0].numpy()
    return Nearest(search(query_E, embedding_NE, texts, ids, top), unknown)


def _check_known(name: str, sentences: Sentences, known: list[str], unknown: list[str], texts: Sequence[str]) -> None:
    from miclip_core.explain.clusters import content_words  # loads scikit-learn

    if content_words(" ".join(known)):
        return
    count = Counter(word for text in texts for word in content_words(text))
    frequent = sorted(count, key=lambda word: (-count[word], word))
    strange = set(sentences.unknown(frequent))
    instead = [word for word in frequent if word not in strange][:SUGGESTED]
    use = f"look for words of the texts that it knows, such as {', '.join(instead)}, or " if instead else ""
    raise UsageError(
        f"{name}, which embedded the texts, does not know {', '.join(unknown)}, and all words that it does not know are the "
        f"same to it; {use}make a map whose encoder knows more: another clip, or sentences: file:/folder of "
        "sentence-transformers"
    )
