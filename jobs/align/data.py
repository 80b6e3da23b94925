"""What neuron encoders of one site learn from, joined by image: activations, predictions and embeddings of published tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.columns import read_embeddings, read_predictions, read_texts
from jobs.encoders import tokens_of
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
    predicted = read_predictions(inputs, plan.stage.inputs["predictions"])
    embedded, x_NE = read_embeddings(inputs, plan.stage.inputs["embeddings"])
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
        torch.from_numpy(x_NE[[place[rows[i]] for i in kept]]),
        torch.from_numpy(read_texts(inputs, plan.stage.inputs["texts"])),
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
