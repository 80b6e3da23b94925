"""Queries by meaning: embedded by the encoder that texts were embedded with, and the texts that are nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.protocol import Inputs
from jobs.sentences import open_sentences
from jobs.text_encoders import TextEncoder
from miclip_core.explain.search import Hit, search


def find_nearest(
    encoder: TextEncoder,
    query: str,
    embedding_NE: np.ndarray,
    texts: Sequence[str],
    ids: Sequence[Any],
    inputs: Inputs,
    top: int,
) -> list[Hit]:
    """The `top` texts with the largest cosines with a query, best first; equal ones by text, then by id.

    embedding: of the texts, by this encoder.

    Raises:
        WeightsMissing: the encoder is not what it was. UnknownModel, MissingPackage: it is not there, or cannot be opened.
    """
    query_E = open_sentences(encoder, inputs, "cpu").embed([query])[0].numpy()
    return search(query_E, embedding_NE, texts, ids, top)
