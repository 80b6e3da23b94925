"""Rows of explanations: what was written about each feature, cleaned and told from refusals, or why nothing was."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import Any

from jobs.explain.asked import Asked
from jobs.explain.explainer import Try, Written
from jobs.explain.features import Batch
from jobs.latents import Feature
from jobs.protocol import Part
from jobs.rows import make_batch
from miclip_core.explain.prompts import prompt_sha256
from miclip_core.explain.render import hides_nothing
from miclip_core.explain.texts import clean, status

TABLE = "explanations"
Row = dict[str, Any]


def text_of(written: Written) -> tuple[str | None, str]:
    """The cleaned text, None unless it says something, and its status."""
    if written.answer is None:
        return None, "not_finite"
    cleaned = clean(written.answer.raw)
    known = status(written.answer.raw, cleaned)
    return (cleaned if known == "ok" else None), known


def rows_of(one: Try, batch: Batch, written: Sequence[Written], token_norm: float | None) -> Iterator[Row]:
    """Rows of one try about a batch. token_norm: median length of tokens, of whatever steers."""
    asked = one.asked
    for text in written:
        shown = batch.shown[text.place] if asked.sees_images else ()
        cleaned, known = text_of(text)
        logprob = text.answer.mean_logprob if text.answer else math.nan
        yield {
            "feature": batch.features[text.place].number,
            "sequence": text.sequence,
            "alpha": one.alpha,
            "strength": text.strength,
            "alpha_rel": text.strength / token_norm if token_norm else 0.0,
            "realised": text.realised,
            "k_eff": len(shown),
            "full_masks": sum(hides_nothing(image.map_IJ) for image in shown),
            "image_ids": [image.image_id for image in shown],
            "seed": asked.seed if asked.samples else None,
            "text": cleaned,
            "raw_text": text.answer.raw if text.answer else None,
            "n_tokens": text.answer.n_tokens if text.answer else 0,
            "mean_logprob": logprob if math.isfinite(logprob) else None,
            "status": known,
            "prompt_sha256": prompt_sha256(asked.prompt),
        }


def rows_without(one: Try, feature: Feature) -> Iterator[Row]:
    """Rows of a feature that no image shows."""
    for sequence in range(one.asked.sequences):
        yield {
            "feature": feature.number,
            "sequence": sequence,
            "alpha": one.alpha,
            "strength": 0.0,
            "alpha_rel": 0.0,
            "realised": None,
            "k_eff": 0,
            "full_masks": 0,
            "image_ids": [],
            "seed": one.asked.seed if one.asked.samples else None,
            "text": None,
            "raw_text": None,
            "n_tokens": 0,
            "mean_logprob": None,
            "status": "no_images",
            "prompt_sha256": None,
        }


def make_part(asked: Asked, rows: Sequence[Row], validation: Container[int]) -> Part:
    """The rows of a stage by feature and sequence. validation: features on which its alpha was chosen."""
    ordered = sorted(rows, key=lambda row: (row["feature"], row["sequence"]))
    columns: dict[str, Any] = {name: [row[name] for row in ordered] for name in ordered[0]}
    columns["is_validation"] = [feature in validation for feature in columns["feature"]]
    return Part(asked.plan.digest, TABLE, make_batch(TABLE, {**columns, **asked.about()}))
