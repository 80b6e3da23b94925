"""What the rounds hand to each other, where a shard of images has no embedding at all."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.between import pack
from jobs.sae_features.between import EMBEDDINGS, IMAGES, codes_name, unpack_embeddings
from jobs.sae_features.describe import Bucket
from miclip_core.sae.features.codes import sort_codes
from schemas.errors import KeyMissing
from schemas.plans import Plan, Round, StageSpec
from tests.jobs.sae_features.lake_of_saes import LATENTS, make_sae

COUNTS = (2, 3, 1, 4)
"""Images per map shard."""
PARAMS = {
    "site": "resid_post.3@cls", "tables": ["features"], "top_k": 20, "max_values": 9, "min_positives": 1,
    "positions": 1, "first_patch": 0, "grid": None, "whole_view": True, "concepts_per_feature": 1,
    "features_per_concept": 1,
}  # fmt: skip


def made_plan() -> Plan:
    stage = StageSpec(
        kind="sae_features", method=1, subject="m", output="features", params=PARAMS, inputs={"sae": "a", "labels": "b"}
    )
    rounds = (Round(name="map", rows=len(COUNTS), shard_rows=1), Round(name="merge", rows=1, shard_rows=1))
    return Plan(stage=stage, rounds=rounds, worker="made up")


class Made:
    """Latent 0 fires with 1, 2, 3 ... on every image; embeddings are the rows of `vectors`, but for shards without."""

    def __init__(self, vectors: np.ndarray, without: tuple[int, ...]) -> None:
        self._artifacts, first = {}, 0
        for shard, n in enumerate(COUNTS):
            index = np.arange(first, first + n)
            fires = np.zeros(n, np.int32)
            codes = sort_codes(fires, (index + 1).astype(np.float32), np.arange(n), np.full(n, -1), LATENTS)
            made = [pack("", codes_name(0), codes.state())]
            made += [pack("", IMAGES, {"image_index": index, "image_id": np.array([f"{i:032x}" for i in index])})]
            made += [] if shard in without else [pack("", EMBEDDINGS, {"embedding": vectors[index]})]
            self._artifacts |= {(shard, artifact.name): artifact.data for artifact in made}
            first += n

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        if (shard, name) not in self._artifacts:
            raise KeyMissing(name)
        return self._artifacts[shard, name]

    def table(self, *args: object):
        return iter(())


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(sum(COUNTS), 5)).astype(np.float32)


@pytest.mark.parametrize("without", [(), (0,), (1,), (3,), (0, 1, 3)])
def test_every_image_keeps_its_own_embedding_where_whole_shards_have_none(without: tuple[int, ...]) -> None:
    expected = vectors()
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    expected[np.isin(shard_of, without)] = 0
    assert np.array_equal(np.concatenate(list(unpack_embeddings(Made(vectors(), without), made_plan()))), expected)  # type: ignore[arg-type]


def test_without_any_embedding_there_is_nothing() -> None:
    assert list(unpack_embeddings(Made(vectors(), (0, 1, 2, 3)), made_plan())) == []  # type: ignore[arg-type]


def test_monosemanticity_and_clarity_leave_out_a_shard_without_embeddings() -> None:
    """Weights are the codes 1 to 10; images 2, 3 and 4 are those of the shard without."""
    (part,) = Bucket(made_plan(), make_sae(), 0, Made(vectors(), (1,))).results()  # type: ignore[arg-type]
    row = part.batch.slice(0, 1).to_pylist()[0]  # type: ignore[union-attr]
    there = [0, 1, 5, 6, 7, 8, 9]
    unit = vectors().astype(np.float64) / np.linalg.norm(vectors().astype(np.float64), axis=1, keepdims=True)
    pairs = [(i, j) for i in there for j in there if i != j]
    weight = np.array([(i + 1.0) * (j + 1.0) for i, j in pairs])
    cosine = np.array([unit[i] @ unit[j] for i, j in pairs])
    assert row["monosemanticity"] == pytest.approx(float((weight * cosine).sum() / weight.sum()), abs=1e-12)
    assert row["clarity"] == pytest.approx(float(cosine.mean()), abs=1e-12)
