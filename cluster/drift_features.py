"""Which features of an SAE are still there: by decoder rows where widths allow it, by codes where they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from scipy import sparse

from cluster.amounts import count
from cluster.catalog import Catalog
from cluster.drift_table import Features, Pair, Row
from cluster.ledger import get_checked
from cluster.sql import run_sql
from cluster.stores.base import Store
from jobs.feature_matches import Matches, match_codes, match_decoders
from jobs.sae_files import WEIGHTS
from schemas.plans import Published, StoredArtifact

LEAST_SHARED = 16
"""Images below which a correlation of codes says nothing."""
MOST_CODES = 1 << 25
"""Codes of each SAE that are compared; where there are more, those of fewer images are, for all must fit in memory."""
AT_ONCE = 1 << 22
"""Codes that are brought together at a time."""


def match_features(store: Store, pair: Pair, setting: str, notes: list[str]) -> Iterator[Features]:
    """Features of the SAE of two stages, where these are the SAEs themselves or hold their codes.

    notes: what could not be compared, or only in part, is added.
    """
    yield from _by_weights(store, pair, setting, notes)
    if pair.before.rows("sae_codes") and pair.after.rows("sae_codes"):
        yield from _by_codes(store, pair, setting, notes)


def share_rows(features: Features) -> Iterator[Row]:
    """The figure that follows: the share of features that are matched, of those then and of those now; none if all are."""
    matches, item = features.matches, f"matched_by_{features.item}"
    shares = {"before": _share(matches, len(matches.same)), "after": _share(matches, matches.others)}
    if not matches.all_same:
        yield features.pair.row("metric", features.source, item, features.setting, "changed", **shares)


def _share(matches: Matches, of: int) -> float | None:
    return float(matches.same.sum()) / of if of else None


# ---------------------------------------------------------------- decoder rows


def _by_weights(store: Store, pair: Pair, setting: str, notes: list[str]) -> Iterator[Features]:
    stored = [_weights(pair.before), _weights(pair.after)]
    decoders = [_decoder(get_checked(store, weights)) for weights in stored if weights is not None]
    if len(decoders) < 2:
        return
    if decoders[0].shape[1] != decoders[1].shape[1]:
        widths = " and ".join(str(decoder.shape[1]) for decoder in decoders)
        notes.append(f"{pair.cell}: decoders of widths {widths} are not compared; codes over images may be")
        return
    yield Features(pair, "weights", "decoder_cosine", setting, match_decoders(*decoders))


def _weights(published: Published) -> StoredArtifact | None:
    return next((artifact for artifact in published.artifacts if artifact.name == WEIGHTS), None)


def _decoder(data: bytes) -> np.ndarray:
    from safetensors.numpy import load

    return load(data)["W_dec"]


# ---------------------------------------------------------------- codes over images

_SHARED = """
WITH both_have AS (
    SELECT DISTINCT image_id FROM sae_codes WHERE stage = '{before}'
    INTERSECT SELECT DISTINCT image_id FROM sae_codes WHERE stage = '{after}'
)
"""
_COUNTS = """
SELECT (SELECT count(*) FROM both_have) AS images, max(feature) FILTER (stage = '{before}') + 1 AS features_before,
       max(feature) FILTER (stage = '{after}') + 1 AS features_after
FROM sae_codes
"""
_CODES = """
, numbered AS (
    SELECT image_id, (row_number() OVER (ORDER BY image_id) - 1)::INT AS image FROM both_have ORDER BY image_id LIMIT {images}
)
SELECT feature, image, value FROM sae_codes JOIN numbered USING (image_id) WHERE stage = '{stage}'
"""


def _by_codes(store: Store, pair: Pair, setting: str, notes: list[str]) -> Iterator[Features]:
    stages = (pair.before, pair.after)
    catalog = Catalog(store, stages)
    shared = _SHARED.format(before=pair.before.stage.digest, after=pair.after.stage.digest)
    asked = _COUNTS.format(before=pair.before.stage.digest, after=pair.after.stage.digest)
    (counts,) = run_sql(catalog, shared + asked).read_all().to_pylist()
    if counts["images"] < LEAST_SHARED:
        notes.append(f"{pair.cell}: fewer than {LEAST_SHARED} images are in the codes of both; features not compared")
        return
    images = _how_many(counts["images"], max(stage.rows("sae_codes") for stage in stages))
    if images < counts["images"]:  # ids are hashes of what is in the images, so the first ones are any
        notes.append(
            f"{pair.cell}: codes of {count(images)} of {count(counts['images'])} images were compared, as many as fit in memory"
        )
    codes = [
        _largest_codes(
            run_sql(catalog, shared + _CODES.format(images=images, stage=stage.stage.digest)), (features, images)
        )
        for stage, features in zip(stages, (counts["features_before"], counts["features_after"]), strict=True)
    ]
    yield Features(pair, "sae_codes", "code_correlation", setting, match_codes(*codes))


def _how_many(images: int, codes: int) -> int:
    """Images whose codes fit, at the usual number of them an image."""
    return images if codes <= MOST_CODES else max(LEAST_SHARED, images * MOST_CODES // codes)


def _largest_codes(rows: pa.RecordBatchReader, shape: tuple[int, int]) -> sparse.csr_matrix:
    """The largest code of each feature in each image, float32 [U, B], from codes above 0 of single tokens in any order."""
    largest = sparse.csr_matrix(shape, dtype=np.float32)
    waiting: list[pa.RecordBatch] = []
    for batch in rows:
        waiting.append(batch)
        if sum(len(some) for some in waiting) >= AT_ONCE:
            largest = largest.maximum(_collect(waiting, shape))
            waiting = []
    return largest.maximum(_collect(waiting, shape)) if waiting else largest


def _collect(batches: Sequence[pa.RecordBatch], shape: tuple[int, int]) -> sparse.csr_matrix:
    feature, image, value = (
        np.concatenate([batch[name].to_numpy() for batch in batches]) for name in ("feature", "image", "value")
    )
    place = feature.astype(np.int64) * shape[1] + image
    order = np.argsort(place)
    place = place[order]
    first = np.flatnonzero(np.diff(place, prepend=-1))
    largest = np.maximum.reduceat(value[order], first)
    return sparse.csr_matrix((largest, np.divmod(place[first], shape[1])), shape=shape)
