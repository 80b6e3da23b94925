"""What neuron encoders of one site learn from, joined by image: activations, predictions and embeddings of published tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jobs.columns import read_embeddings, read_predictions, read_texts
from jobs.pooled import read_pooled
from jobs.protocol import Inputs
from jobs.sae_tokens import planned_tokens
from schemas.errors import BadAlignment
from schemas.plans import Plan


@dataclass(frozen=True, eq=False)
class Examples:
    """N images with one row each, by image_index: activations [N,D], image embeddings [N,E], predicted classes [N]; texts [C,E].

    Both that are about classes are None where no loss is towards them.
    """

    a_ND: Tensor
    x_NE: Tensor
    yhat_N: Tensor | None = None
    texts_CE: Tensor | None = None


def read_examples(plan: Plan, inputs: Inputs) -> Examples:
    """Images that all tables have; one that was set aside in any of them is left out.

    Raises:
        BadAlignment: there is no such image.
    """
    stages = plan.stage.inputs
    per_image, width = (int(str(plan.effort[name])) for name in ("per_image", "width"))
    pool: Any = plan.stage.params["pool"]
    images, a_ND = read_pooled(inputs, planned_tokens(plan), per_image, width, pool)
    rows = [index for index, _ in images]
    predicted = read_predictions(inputs, stages["predictions"]) if "predictions" in stages else None
    embedded, x_NE = read_embeddings(inputs, stages["embeddings"])
    place = {index: i for i, index in enumerate(embedded)}
    kept = [i for i, index in enumerate(rows) if index in place and (predicted is None or index in predicted)]
    if not kept:
        guessed = "" if predicted is None else f", a prediction ({len(predicted)})"
        raise BadAlignment(
            f"no image has an activation at {plan.stage.params['site']} ({len(rows)} have){guessed} "
            f"and an embedding of {plan.stage.params['clip']} ({len(embedded)})"
        )
    seen = Examples(a_ND[kept], torch.from_numpy(x_NE[[place[rows[i]] for i in kept]]))
    if predicted is None:
        return seen
    yhat_N = torch.tensor([predicted[rows[i]] for i in kept])
    return replace(seen, yhat_N=yhat_N, texts_CE=torch.from_numpy(read_texts(inputs, stages["texts"])))
