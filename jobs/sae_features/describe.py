"""The merge round: everything about one bucket of features, from its codes over all images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.between import bucket_units, pack, unpack_all
from jobs.protocol import Artifact, Inputs, Part
from jobs.sae_features.between import IMAGES, SCORES, codes_name, unpack_embeddings
from jobs.sae_features.concepts import (
    LEVELS,
    Concepts,
    Rows,
    image_entries,
    join_rows,
    keep_best,
    patch_entries,
    read_labels,
    read_truth,
)
from jobs.sae_features.plan import rank_by
from jobs.sae_features.rows import Images, code_parts, make_parts, top_parts
from miclip_core.sae.features.codes import FeatureCodes, ImageCodes, by_image, join_codes, means
from miclip_core.sae.features.decoder import describe_weights
from miclip_core.sae.features.describe import QUANTILES, Description, describe
from miclip_core.sae.features.embeddings import PairCosine, RandomPairs, in_blocks
from miclip_core.sae.features.top import TopImages, top_images
from miclip_core.sae.sae import Sae
from schemas.plans import Plan

CHUNK_CODES = 1 << 20
CHUNK_CELLS = 1 << 22
"""Of tables of features x concepts, and of the maps of top images, in one chunk."""
CHUNK_FEATURES = 4096


class Bucket:
    """The features of one merge shard; features are worked on in chunks, so that little beside the codes is in memory."""

    def __init__(self, plan: Plan, sae: Sae, bucket: int, inputs: Inputs) -> None:
        self._plan, self._sae, self._inputs = plan, sae, inputs
        self._params: Any = plan.stage.params
        self._first, self._stop = bucket_units(bucket, plan.rounds[1].rows, sae.config.latents)
        shards = list(unpack_all(inputs, plan, 0, IMAGES))
        starts = np.cumsum([0, *(len(shard["image_index"]) for shard in shards)])
        self._codes = join_codes(
            [FeatureCodes.from_state(state) for state in unpack_all(inputs, plan, 0, codes_name(bucket))],
            starts[:-1].tolist(),
        )
        image_index = np.concatenate([shard["image_index"] for shard in shards])
        uris, labels = read_labels(inputs, plan, image_index)
        self._images = Images(image_index, np.concatenate([shard["image_id"] for shard in shards]), uris)
        wanted = (labels, read_truth(inputs, plan, len(image_index))) if self._makes("selectivity") else ()
        self._concepts = [concepts for concepts in wanted if concepts is not None]
        self._described: list[Description] = []
        self._tops: list[tuple[np.ndarray, np.ndarray]] = []
        self._actives: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._scores: list[Rows] = []

    def results(self) -> Iterator[Part | Artifact]:
        """All rows of the bucket, features ascending, and the candidates for the best features of each concept."""
        if self._first == self._stop:
            return
        for codes in self._codes.chunks(CHUNK_CODES, self._chunk_features()):
            yield from self._chunk(codes)
        if self._makes("features"):
            yield from make_parts(self._plan, "sae_features", self._feature_columns())
        if (rows := join_rows(self._scores)) is not None:
            best = keep_best(rows, self._params["features_per_concept"])
            yield pack(self._plan.digest, SCORES, best)

    def _makes(self, table: str) -> bool:
        return table in self._params["tables"]

    def _chunk_features(self) -> int:
        patches = int(np.prod(self._params["grid"] or [1]))
        widest = max([self._params["top_k"] * patches, *(len(concepts.names) for concepts in self._concepts)])
        return max(1, min(CHUNK_FEATURES, CHUNK_CELLS // widest))

    def _chunk(self, codes: FeatureCodes) -> Iterator[Part]:
        if self._makes("codes"):
            yield from code_parts(self._plan, codes, self._images)
        images = by_image(codes, self._params["positions"])
        is_mean = rank_by(self._plan) == "mean"
        strength = means(images, self._params["positions"]) if is_mean else images.largest
        top = top_images(images, strength, self._images.id_order, self._params["top_k"])
        if self._makes("top_images"):
            yield from top_parts(self._plan, codes, images, top, self._images)
        if self._makes("features"):
            self._described.append(describe(codes, len(self._images) * self._params["positions"]))
            self._remember(codes.first - self._first, images, top)
        self._scores += [self._score(concepts, codes, images) for concepts in self._concepts]

    def _remember(self, offset: int, images: ImageCodes, top: TopImages) -> None:
        """What the image embeddings are weighted with once all chunks are through."""
        place = images.image[top.entry]
        order = np.lexsort((place, top.feature))
        self._tops.append((top.feature[order] + offset, place[order]))
        active = images.largest > 0
        self._actives.append((images.feature[active] + offset, images.image[active], images.largest[active]))

    def _score(self, concepts: Concepts, codes: FeatureCodes, images: ImageCodes) -> Rows:
        if concepts.level == "image":
            return concepts.score(image_entries(images), codes.first, self._plan)
        height, width = self._params["grid"]
        entries = patch_entries(codes, self._params["first_patch"], height * width)
        return concepts.score(entries, codes.first, self._plan)

    # -------------------------------------------------------------- sae_features

    def _feature_columns(self) -> dict[str, Any]:
        described = {
            f.name: np.concatenate([getattr(part, f.name) for part in self._described]) for f in fields(Description)
        }
        quantiles = described.pop("quantiles")
        tokens = len(self._images) * self._params["positions"]
        return {
            "feature": np.arange(self._first, self._stop, dtype=np.int32),
            "density": described["n_active"] / max(tokens, 1),
            "is_dead": described["n_active"] == 0,
            "min_pos": described.pop("min_active"),
            **{f"p{round(100 * q)}": quantiles[:, i] for i, q in enumerate(QUANTILES)},
            **described,
            **self._weight_columns(),
            **self._embedding_columns(),
        }

    def _weight_columns(self) -> dict[str, Any]:
        sae = self._sae
        weights = describe_weights(sae.W_enc.cpu(), sae.W_dec.cpu(), self._first, self._stop)
        bias = sae.gate.get("b_gate", sae.b_enc)
        return {
            "enc_dec_cos": weights.encoder_cosine.numpy(),
            "decoder_norm": weights.norm.numpy(),
            "b_enc": bias[self._first : self._stop].cpu().numpy(),
            "neighbours": weights.neighbours.numpy().astype(np.int32),
            "neighbour_cos": weights.neighbour_cosines.numpy().astype(np.float32),
        }

    def _embedding_columns(self) -> dict[str, Any]:
        """Clarity, its chance level, and monosemanticity: one pass over the image embeddings; NaN without them."""
        width = self._stop - self._first
        group, image = (np.concatenate(column) for column in zip(*self._tops))
        clarity = PairCosine(group, image, np.ones(len(group)), width)
        active, place, largest = (np.concatenate(column) for column in zip(*self._actives))
        monosemanticity = PairCosine(active, place, largest, width)
        chance = RandomPairs()
        for number, block in enumerate(in_blocks(unpack_embeddings(self._inputs, self._plan))):
            clarity.add(number, block)
            monosemanticity.add(number, block)
            chance.add(block)
        sizes = np.bincount(group, minlength=width)
        levels = {n: chance.clarity(n) for n in np.unique(sizes).tolist()}
        mean, deviation = (np.array([levels[n][i] for n in sizes.tolist()]) for i in (0, 1))
        found = clarity.mean()
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(deviation > 0, (found - mean) / deviation, np.nan)
        return {
            "clarity": found,
            "clarity_baseline": mean,
            "clarity_z": z,
            "monosemanticity": monosemanticity.mean(),
        }


def rank(plan: Plan, inputs: Inputs) -> Iterator[Part]:
    """The rank round: the best features of each concept among those of all buckets."""
    rows = join_rows(list(unpack_all(inputs, plan, 1, SCORES)))
    if rows is None:
        return
    from_buckets = {name: column for name, column in rows.items() if name != "rank_in_concept"}
    best = keep_best(from_buckets, int(plan.stage.params["features_per_concept"]))  # type: ignore[arg-type]
    columns: dict[str, Any] = {name: column for name, column in best.items() if name not in ("level", "number")}
    columns["level"] = pa.array(np.array(LEVELS)[best["level"]].tolist(), pa.string())
    columns["concept"] = pa.array(best["concept"].tolist(), pa.string())
    for name in ("rank_in_feature", "rank_in_concept"):
        columns[name] = pa.array(best[name], pa.int32(), mask=best[name] < 0)
    yield from make_parts(plan, "sae_selectivity", columns)
