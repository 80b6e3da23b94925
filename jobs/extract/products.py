"""What one stage makes of the rows of each batch: vectors, running moments, running top images, predictions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jobs.classes import Classifier
from jobs.protocol import Artifact, ImageBytes, Inputs, Part
from jobs.rows import Rows, image_columns, make_batch, make_vectors, round_values
from miclip_core.zoo.reducers import Moments, TopK
from schemas.errors import KeyMissing
from schemas.plans import Plan

PARTIAL = "partial.npz"


class Product(Protocol):
    """One stage's share of a shard."""

    def add(self, rows: Rows) -> Iterator[Part]:
        """Take one batch."""
        ...

    def finish(self) -> Iterator[Part | Artifact]:
        """What is left after the last batch."""
        ...


class Activations:
    """Every row of a site as a vector."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._site = str(plan.stage.params["site"])
        self._to = str(plan.stage.params["round_to"])

    def add(self, rows: Rows) -> Iterator[Part]:
        """One row per image and position."""
        per_image = rows.values.shape[1]
        values = round_values(rows.values, self._to)
        columns = {
            "stage": self._plan.digest,
            "model": self._plan.stage.subject,
            "site": self._site,
            **image_columns(rows.images, per_image),
            "token": rows.position_matrix().reshape(-1).astype(np.int32),
            "act": make_vectors(values.flatten(0, 1).cpu().numpy()),
        }
        yield Part(self._plan.digest, "activations", make_batch("activations", columns))

    def finish(self) -> Iterator[Part | Artifact]:
        """Nothing is held back."""
        yield from ()


class Embeddings:
    """The image embedding of every image."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._to = str(plan.stage.params["round_to"])

    def add(self, rows: Rows) -> Iterator[Part]:
        """One row per image."""
        values = rows.values[:, 0].float()
        rounded = round_values(values, self._to)
        columns = {
            "stage": self._plan.digest,
            "model": self._plan.stage.subject,
            **image_columns(rows.images),
            "norm": values.norm(dim=-1).cpu().numpy(),
            "embedding": make_vectors(rounded.cpu().numpy()),
        }
        yield Part(self._plan.digest, "embeddings", make_batch("embeddings", columns))

    def finish(self) -> Iterator[Part | Artifact]:
        """Nothing is held back."""
        yield from ()


class Predictions:
    """The k best classes of every image."""

    def __init__(self, plan: Plan, classifier: Classifier) -> None:
        self._plan = plan
        self._classifier = classifier
        self._k = min(int(plan.stage.params["k"]), len(classifier.names))  # type: ignore[arg-type]

    def add(self, rows: Rows) -> Iterator[Part]:
        """k rows per image."""
        scores_BC = self._classifier.scores(rows.values[:, 0])
        probability_BC = (scores_BC * self._classifier.scale).softmax(-1)
        # a stable sort puts the lower class number first among equal scores
        best_BK = scores_BC.sort(dim=-1, descending=True, stable=True).indices[:, : self._k]
        ids = best_BK.reshape(-1).cpu().numpy()
        columns = {
            "stage": self._plan.digest,
            "model": self._plan.stage.subject,
            **image_columns(rows.images, self._k),
            "rank": np.tile(np.arange(self._k, dtype=np.int32), len(rows.images)),
            "class_id": ids.astype(np.int32),
            "class_name": pa.array([self._classifier.names[i] for i in ids]),
            "score": scores_BC.gather(1, best_BK).reshape(-1).cpu().numpy(),
            "probability": probability_BC.gather(1, best_BK).reshape(-1).cpu().numpy(),
        }
        yield Part(self._plan.digest, "predictions", make_batch("predictions", columns))

    def finish(self) -> Iterator[Part | Artifact]:
        """Nothing is held back."""
        yield from ()


class Reduced:
    """A running summary of a site, kept as an artifact of the shard until the merge round."""

    def __init__(self, plan: Plan, reducer: Moments | TopK) -> None:
        self._plan = plan
        self._reducer = reducer

    def add(self, rows: Rows) -> Iterator[Part]:
        """Fold one batch in."""
        keys = [make_key(image) for image in rows.images]
        self._reducer.add(rows.values.float(), rows.positions, keys)
        yield from ()

    def finish(self) -> Iterator[Part | Artifact]:
        """The partial summary; nothing if every image was set aside."""
        if self._reducer.is_empty:
            return
        buffer = io.BytesIO()
        arrays: dict[str, Any] = self._reducer.state()
        np.savez_compressed(buffer, **arrays)
        yield Artifact(self._plan.digest, PARTIAL, buffer.getvalue())


def make_key(image: ImageBytes) -> str:
    """Image id first, so that ties in a top-k go by it; the index behind it comes back from the summary."""
    return f"{image.image_id}:{image.image_index}"


def merge_partials(plan: Plan, inputs: Inputs, reducer: Moments | TopK) -> None:
    """Fold the summaries of all shards into one, in shard order."""
    for shard in plan.shards(0):
        try:
            data = inputs.artifact(plan.digest, shard.number, PARTIAL)
        except KeyMissing:
            continue
        with np.load(io.BytesIO(data), allow_pickle=False) as state:
            reducer.merge(type(reducer).from_state(state))  # type: ignore[arg-type]


def moments_table(plan: Plan, moments: Moments) -> pa.RecordBatch:
    """One row per unit."""
    assert moments.mean is not None and moments.min is not None and moments.max is not None
    units = len(moments.mean)
    columns = {
        "stage": plan.digest,
        "model": plan.stage.subject,
        "site": str(plan.stage.params["site"]),
        "unit": np.arange(units, dtype=np.int32),
        "n": np.full(units, moments.count),
        "mean": moments.mean,
        "variance": moments.variance,
        "min": moments.min.astype(np.float32),
        "max": moments.max.astype(np.float32),
        "positive": moments.positive,
    }
    return make_batch("activation_moments", columns)


def top_images_table(plan: Plan, top: TopK) -> pa.RecordBatch:
    """k rows per unit, strongest first."""
    assert top.values is not None and top.ids is not None and top.positions is not None
    units, k = top.values.shape
    keys = [key.split(":") for key in top.ids.reshape(-1)]
    columns = {
        "stage": plan.digest,
        "model": plan.stage.subject,
        "site": str(plan.stage.params["site"]),
        "unit": np.repeat(np.arange(units, dtype=np.int32), k),
        "rank": np.tile(np.arange(k, dtype=np.int32), units),
        "image_id": pa.array([key[0] for key in keys]),
        "image_index": np.array([int(key[1]) for key in keys]),
        "value": top.values.reshape(-1),
        "token": top.positions.reshape(-1).astype(np.int32),
    }
    return make_batch("top_images", columns)
