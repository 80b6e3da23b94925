"""Texts beside texts: what methods say of units against what these stand for, in the spaces of text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.evaluate.truth import Said
from miclip_core.evaluate.descriptions import Descriptions, compare_descriptions
from miclip_core.evaluate.sentences import SentenceEncoder, embed_each

Row = dict[str, Any]


class Texts:
    """Embeddings of all texts of a stage, each encoded once, by every encoder."""

    def __init__(self, encoders: Mapping[str, SentenceEncoder], texts: Sequence[str]) -> None:
        self._place = {text: place for place, text in enumerate(sorted(set(texts)))}
        distinct = list(self._place)
        self._rows = {name: embed_each(encoder, distinct) for name, encoder in encoders.items() if distinct}

    @property
    def encoders(self) -> list[str]:
        """Names of the encoders."""
        return list(self._rows)

    def rows(self, encoder: str, texts: Sequence[str | None]) -> Tensor:
        """Embeddings float32 [N, E]; zeros for None."""
        known = self._rows[encoder]
        padded = torch.cat([known, torch.zeros_like(known[:1])])
        return padded[[len(known) if text is None else self._place[text] for text in texts]]


def compare(said: Said, texts: Texts) -> Descriptions:
    """Descriptions of one method beside the truth; names are equal as they are written, as they differ in lists of concepts."""
    pairs = {name: (texts.rows(name, said.names), texts.rows(name, said.truth.names)) for name in texts.encoders}
    number = {name: n for n, name in enumerate(sorted({*said.truth.names, *filter(None, said.names)}))}
    ids = [-1 if name is None else number[name] for name in said.names], [number[name] for name in said.truth.names]
    return compare_descriptions(said.truth.units.tolist(), said.names, said.truth.names, pairs, ids)


def offered(said: Said) -> np.ndarray:
    """Of which units the truth was among the concepts to choose from, bool [N]: of the others nothing is right or wrong."""
    return np.array([name in said.offered for name in said.truth.names], bool)


def rows_of(said: Said, found: Descriptions) -> Iterator[Row]:
    """One row of `description_eval` per unit."""
    scores = said.truth.scores
    for place, (row, known) in enumerate(zip(found.rows(), offered(said), strict=True)):
        yield {
            **said.units._asdict(),
            "method": said.method.method,
            "variant": said.method.variant,
            "seed": said.method.seed,
            "unit": row["unit_id"],
            "truth": row["truth"],
            "truth_score": None if scores is None else float(scores[place]),
            "predicted": row["pred"],
            "correct": row["correct"] if known else None,
            "clip_score": row["clip_score"],
            "sentence_score": row.get("sentence_score"),
        }
