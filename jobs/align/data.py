"""What neuron encoders of one site learn from, joined by image: activations, predictions and embeddings of published tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.align.plan import tokens_of
from jobs.protocol import Inputs
from jobs.tokens.sources import TableSource
from miclip_core.dissect.pool import pool_rows
from schemas.errors import BadAlignment
from schemas.plans import Plan

BLOCK = 256
"""Rows of the index that are read together."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N images with one row each, by image_index: activations [N,D], predicted classes [N], image embeddings [N,E]; texts [C,E]."""

    a_ND: Tensor
    yhat_N: Tensor
    x_NE: Tensor
    texts_CE: Tensor


def read_examples(plan: Plan, inputs: Inputs) -> Examples:
    """Images that all three tables have; one that was set aside in any of them is left out.

    Raises:
        BadAlignment: there is no such image.
    """
    rows, a_ND = _activations(plan, inputs)
    predicted = _predictions(plan.stage.inputs["predictions"], inputs)
    embedded, x_NE = _embeddings(plan.stage.inputs["embeddings"], inputs)
    place = {index: i for i, index in enumerate(embedded)}
    kept = [i for i, index in enumerate(rows) if index in predicted and index in place]
    if not kept:
        raise BadAlignment(
            f"no image has an activation at {plan.stage.params['site']} ({len(rows)} have), a prediction ({len(predicted)}) "
            f"and an embedding of {plan.stage.params['clip']} ({len(embedded)})"
        )
    return Examples(
        a_ND[kept],
        torch.tensor([predicted[rows[i]] for i in kept]),
        x_NE[[place[rows[i]] for i in kept]],
        _texts(plan.stage.inputs["texts"], inputs),
    )


def _activations(plan: Plan, inputs: Inputs) -> tuple[list[int], Tensor]:
    tokens, per_image = tokens_of(plan), int(str(plan.effort["per_image"]))
    source, total = TableSource(inputs, [tokens]), tokens.forward.rows
    indices: list[int] = []
    parts: list[Tensor] = []
    for start in range(0, total, BLOCK):
        for found in source.read([(start, min(start + BLOCK, total))], [tokens.site]):
            rows = found[tokens.site]
            if len(rows.values):
                indices += [index for index, _ in rows.images]
                parts.append(pool_rows(rows.values, per_image, plan.stage.params["pool"]))  # type: ignore[arg-type]
    return indices, torch.cat(parts) if parts else torch.empty(0, int(str(plan.effort["width"])))


def _predictions(stage: str, inputs: Inputs) -> dict[int, int]:
    found: dict[int, int] = {}
    for batch in inputs.table(stage, "predictions", ["image_index", "rank", "class_id"]):
        first = batch.filter(batch["rank"].to_numpy() == 0) if len(batch) else batch
        found.update(zip(first["image_index"].to_pylist(), first["class_id"].to_pylist(), strict=True))
    return found


def _embeddings(stage: str, inputs: Inputs) -> tuple[list[int], Tensor]:
    indices: list[int] = []
    parts: list[np.ndarray] = []
    for batch in inputs.table(stage, "embeddings", ["image_index", "embedding"]):
        indices += batch["image_index"].to_pylist()
        parts.append(_matrix(batch["embedding"]))
    return indices, torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, 0)


def _texts(stage: str, inputs: Inputs) -> Tensor:
    rows = [batch for batch in inputs.table(stage, "text_embeddings", ["text_id", "embedding"]) if len(batch)]
    ids = np.concatenate([batch["text_id"].to_numpy() for batch in rows])
    return torch.from_numpy(np.concatenate([_matrix(batch["embedding"]) for batch in rows])[np.argsort(ids)])


def _matrix(column: object) -> np.ndarray:
    """A column of equal lists as float32 [n, width]."""
    flat = column.flatten().to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
    return flat.reshape(len(column), -1)  # type: ignore[arg-type]
