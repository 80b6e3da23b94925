"""Codes of two SAEs are compared over the images that both have, in pieces, and of no more than fit in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import drift_features
from cluster.drift_features import match_features, share_rows
from cluster.drift_table import Features, Pair
from cluster.ledger import load_published
from tests.lakes import Lake
from tests.made_up_nights import Night, codes

VALUES = np.random.default_rng(5).random((6, 20)) * (np.random.default_rng(6).random((6, 20)) < 0.5)
VALUES[0] += 0.1  # no image is without a code
ORDER = [3, 0, 5, 1, 2, 4]
"""Feature i of the SAE now is this one of the SAE then."""


def pair_of(lake: Lake, *nights: dict[str, Any]) -> Pair:
    """One stage of codes then and now."""
    found = []
    for seed, tables in enumerate(nights):
        night = Night(lake)
        night.publish("features", "features", tables, seed)
        found.append(load_published(lake.store, night.stages[0].digest))
    before, after = found
    assert before is not None and after is not None
    return Pair("features", before, after)


def match(lake: Lake, pair: Pair, notes: list[str]) -> Features:
    (found,) = match_features(lake.store, pair, "site=s", notes)
    return found


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
def test_matches_do_not_depend_on_how_many_codes_are_brought_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(drift_features, "AT_ONCE", at_once)
    lake, notes = Lake(tmp_path), []
    features = match(lake, pair_of(lake, codes(VALUES), codes(VALUES[ORDER] * 2)), notes)
    assert features.matches.nearest.tolist() == [ORDER.index(i) for i in range(6)] and notes == []
    assert features.matches.similarity == pytest.approx(1.0)
    assert list(share_rows(features)) == []


def test_the_share_of_features_that_are_matched_is_told_unless_all_are(tmp_path: Path) -> None:
    fewer, dead = VALUES[ORDER[:5]], VALUES.copy()
    dead[1] = 0.0
    nights = {(1.0, 5 / 6): (fewer, VALUES), (5 / 6, 1.0): (VALUES, fewer), (5 / 6, 5 / 6): (dead, VALUES)}
    for number, (shares, (then, now)) in enumerate(nights.items()):
        lake = Lake(tmp_path / str(number))
        (row,) = share_rows(match(lake, pair_of(lake, codes(then), codes(now)), []))
        assert (row["item"], row["status"]) == ("matched_by_code_correlation", "changed")
        assert (row["before"], row["after"]) == pytest.approx(shares)


@pytest.mark.parametrize("at_once", [1, 3])
def test_of_the_codes_of_one_feature_in_one_image_the_largest_counts(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(drift_features, "AT_ONCE", at_once)
    feature, image = pa.array([0, 0, 1, 0], pa.int32()), pa.array([2, 2, 0, 2], pa.int32())
    batch = pa.RecordBatch.from_arrays(
        [feature, image, pa.array([1, 3, 5, 2], pa.float32())], names=["feature", "image", "value"]
    )
    for pieces in ([batch], [batch.slice(0, 1), batch.slice(1, 2), batch.slice(3)]):
        reader = pa.RecordBatchReader.from_batches(batch.schema, pieces)
        found = drift_features._largest_codes(reader, (3, 4))
        assert found.toarray().tolist() == [[0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 0]]
        assert found.dtype == np.float32 and found.indices.dtype == np.int32


def test_only_images_that_both_have_count_and_too_few_say_nothing(tmp_path: Path) -> None:
    lake, notes = Lake(tmp_path), []
    others = VALUES[ORDER].copy()
    others[:, :10] = 0.0  # no code of half of the images
    assert list(match_features(lake.store, pair_of(lake, codes(VALUES), codes(others)), "", notes)) == []
    assert notes == ["features: fewer than 16 images are in the codes of both; features not compared"]


def test_where_codes_do_not_fit_those_of_fewer_images_are_compared_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_features, "MOST_CODES", int(np.count_nonzero(VALUES) * 0.9))
    lake, notes = Lake(tmp_path), []
    others = VALUES[ORDER].copy()
    others[:, 18:] = others[::-1, 18:]  # the last two images are not among those compared, so this is not seen
    found = match(lake, pair_of(lake, codes(VALUES), codes(others)), notes)
    assert found.matches.similarity == pytest.approx(1.0)
    assert notes == ["features: codes of 17 of 20 images were compared, as many as fit in memory"]


def test_the_rows_of_features_are_one_batch_without_those_of_which_nothing_can_be_said(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    values = VALUES.copy()
    values[1] = 0.0  # never active
    batch = match(lake, pair_of(lake, codes(values), codes(VALUES)), []).batch("0" * 20)
    assert batch["feature_before"].to_pylist() == batch["feature_after"].to_pylist() == [0, 2, 3, 4, 5]
    assert batch["status"].to_pylist() == ["matched"] * 5 and batch["before"].null_count == 5
    assert set(batch["setting"].to_pylist()) == {"site=s"} and set(batch["stage"].to_pylist()) == {"0" * 20}
