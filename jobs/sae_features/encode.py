"""The map round: tokens of a range of images, encoded by each SAE and sorted by feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jobs.between import bucket_units, pack
from jobs.masks import find_masks
from jobs.protocol import Artifact, Inputs
from jobs.sae_features.between import EMBEDDINGS, IMAGES, TRUTH, codes_name
from jobs.tokens.sources import TokenRows
from miclip_core.sae.features.codes import sort_codes
from miclip_core.sae.sae import Sae
from schemas.plans import Plan

Vectors = Mapping[int, np.ndarray]
"""image_index -> image embedding."""


class Encoder:
    """Collects what one SAE gives for the images of a shard; holds the codes of the shard and nothing else of its tokens."""

    def __init__(self, plan: Plan, sae: Sae) -> None:
        self._plan = plan
        self._sae = sae
        self._images: list[tuple[int, str]] = []
        self._codes: list[tuple[np.ndarray, ...]] = []

    def add(self, rows: TokenRows) -> None:
        """Encode the tokens of the next images."""
        if not len(rows.values):
            return
        codes = self._sae.encode(rows.values.to(self._sae.W_enc)).to("cpu")
        row = codes.rows().numpy()
        image = rows.image_of_row[row] + np.int32(len(self._images))
        self._codes.append((codes.latents.numpy(), codes.values.float().numpy(), image, rows.token[row]))
        self._images += rows.images

    def results(self, embeddings: Vectors | None, uris: Mapping[int, str]) -> Iterator[Artifact]:
        """The codes of each bucket, and of the images their names, embeddings and, where it is known, what patches show."""
        stage, latents = self._plan.digest, self._sae.config.latents
        none = (np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.int32))
        columns = [np.concatenate(column) for column in zip(*(self._codes or [none]))]
        self._codes.clear()
        codes = sort_codes(columns[0], columns[1], columns[2], columns[3], latents)
        del columns
        buckets = self._plan.rounds[1].rows
        for bucket in range(buckets):
            yield pack(stage, codes_name(bucket), codes.cut(*bucket_units(bucket, buckets, latents)).state())
        index = np.array([image[0] for image in self._images], np.int64)
        names = np.array([image[1] for image in self._images], np.str_)
        yield pack(stage, IMAGES, {"image_index": index, "image_id": names})
        if not len(index):
            return
        if embeddings:
            missing = np.zeros_like(next(iter(embeddings.values())))
            yield pack(stage, EMBEDDINGS, {"embedding": np.stack([embeddings.get(i, missing) for i in index.tolist()])})
        yield from self._truth([uris[i] for i in index.tolist()])

    def _truth(self, uris: Sequence[str]) -> Iterator[Artifact]:
        grid = self._plan.stage.params["grid"]
        if grid is None or not self._plan.stage.params["whole_view"]:
            return
        masks = find_masks(uris[0], tuple(grid))  # type: ignore[arg-type]
        if masks is not None:
            classes = masks.classes(uris)
            names = {f"values.{name}": np.array(masks.values(name)) for name in classes}
            yield pack(self._plan.digest, TRUTH, {**{f"classes.{k}": v for k, v in classes.items()}, **names})


def live_embeddings(rows: TokenRows) -> dict[int, np.ndarray]:
    """Image embeddings that came with the tokens."""
    return dict(zip((image[0] for image in rows.images), rows.values.float().numpy(), strict=True))


def stored_embeddings(inputs: Inputs, stage: str, start: int, stop: int) -> dict[int, np.ndarray]:
    """Image embeddings that an extract stage published, for rows [start, stop) of the index."""
    found: dict[int, np.ndarray] = {}
    between = ("image_index", [(start, stop)])
    for batch in inputs.table(stage, "embeddings", ("image_index", "embedding"), between):
        if batch.num_rows:
            vectors = batch.column("embedding").flatten().to_numpy().reshape(batch.num_rows, -1)
            found.update(zip(batch.column("image_index").to_pylist(), vectors, strict=True))
    return found


def uris_of(inputs: Inputs, index: str, start: int, stop: int) -> dict[int, str]:
    """Where the images in rows [start, stop) of an index are."""
    batches = inputs.table(index, "images", ("image_index", "uri"), ("image_index", [(start, stop)]))
    return {i: uri for b in batches for i, uri in zip(b.column(0).to_pylist(), b.column(1).to_pylist(), strict=True)}
