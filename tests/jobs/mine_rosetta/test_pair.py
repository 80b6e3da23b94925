"""Pairs of demo models against numpy on interpolated maps that are written out, however the work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.mine_rosetta import plan, tiles
from jobs.mine_rosetta.tiles import plan_tiles
from miclip_core.rosetta.turns import quarter_turns
from tests.interpolated_maps import interpolated
from tests.jobs.mine_rosetta.lake_of_maps import (
    IMAGES,
    RESNET,
    VIT,
    alive,
    by_place,
    correlations,
    extract,
    neighbours,
    run,
)

TABLES = ("rosetta_units", "rosetta_neighbours", "rosetta_buddies", "rosetta_pairs", "rosetta_moments")


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory):
    """A ViT and a ResNet with two grids, and each with itself; and all their maps."""
    lake, report = run(tmp_path_factory.mktemp("mined"))
    return lake, report, extract(lake)


def whole(maps: Any, a: str, b: str, **how: Any) -> tuple[np.ndarray, list[tuple[str, int]], list[tuple[str, int]]]:
    """r of all units of two models, and their names in order."""
    sites_a, sites_b = ([key for key in maps if key[0] == model] for model in (a, b))
    r = np.block([[correlations(maps, x, y, **how) for y in sites_b] for x in sites_a])
    names_a, names_b = ([(s, u) for _, s in sites for u in range(maps[_, s].shape[2])] for sites in (sites_a, sites_b))
    return r, names_a, names_b


def expected(lake: Any, report: Any, maps: Any, a: str, b: str, **how: Any):
    """The same with minus infinity for units that are not compared, and for a unit with itself."""
    r, names_a, names_b = whole(maps, a, b, **how)
    live_a, live_b = (alive(lake, report, model) for model in (a, b))
    r[~np.array([live_a[s][u] for s, u in names_a])] = -np.inf
    r[:, ~np.array([live_b[s][u] for s, u in names_b])] = -np.inf
    if a == b:
        np.fill_diagonal(r, -np.inf)
    return r, names_a, names_b


@pytest.mark.parametrize(("a", "b"), [(VIT, RESNET), (VIT, VIT), (RESNET, RESNET)])
def test_neighbours_are_the_largest_r_that_numpy_finds(mined: Any, a: str, b: str) -> None:
    lake, report, maps = mined
    r, names_a, names_b = expected(lake, report, maps, a, b)
    for matrix, names, others, found in [
        (r, names_a, names_b, neighbours(lake, report, a, b)),
        (r.T, names_b, names_a, neighbours(lake, report, b, a)),
    ]:
        place = {name: i for i, name in enumerate(others)}
        compared = 0
        for name, row in zip(names, matrix, strict=True):
            if np.isinf(row).all():
                assert name not in found
                continue
            best = np.sort(row)[::-1][:3]
            assert [x for *_, x in found[name]] == pytest.approx(best, abs=1e-6)
            assert [row[place[site, unit]] for site, unit, _ in found[name]] == pytest.approx(best, abs=1e-6)
            compared += 1
        assert compared > 100


@pytest.mark.parametrize(("a", "b"), [(VIT, RESNET), (RESNET, RESNET)])
def test_chance_is_what_numpy_finds_above_place_with_images_rolled_by_half(mined: Any, a: str, b: str) -> None:
    """Place is the correlation of mean maps; a buddy counts if it is above that by more than 999 of 1,000 units can be."""
    lake, report, maps = mined
    rolled, names_a, names_b = expected(lake, report, maps, a, b, roll=IMAGES // 2)
    sites_a, sites_b = ([key for key in maps if key[0] == model] for model in (a, b))
    place = np.block([[by_place(maps, x, y) for y in sites_b] for x in sites_a])
    above = rolled - np.maximum(np.nan_to_num(place), 0)
    best = np.concatenate([m[np.isfinite(m).any(1)].max(1) for m in (above, above.T)])
    of_a, of_b = ({name: i for i, name in enumerate(names)} for names in (names_a, names_b))
    rows = lake.table(report, "rosetta_buddies", model_a=a, model_b=b).to_pylist()
    for row in rows:
        i, j = of_a[row["site_a"], row["unit_a"]], of_b[row["site_b"], row["unit_b"]]
        assert row["place_r"] == pytest.approx(place[i, j], abs=1e-5)
        assert row["null_q999"] == pytest.approx(np.quantile(best, 0.999), abs=1e-5)
        assert row["is_below_null"] == (row["r"] - max(row["place_r"], 0) <= row["null_q999"])
    (pair,) = [p for p in lake.table(report, "rosetta_pairs", model_a=a, model_b=b).to_pylist() if p["k"] == 3]
    assert [pair["null_p50"], pair["null_max"]] == pytest.approx([np.median(best), best.max()], abs=1e-5)
    assert pair["above_null"] == sum(not row["is_below_null"] for row in rows) > 0


def rows_of(lake: Any, report: Any, table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a table by all that names them."""
    named = ("model", "model_a", "model_b", "site", "site_a", "site_b", "unit", "unit_a", "unit_b", "k", "target_h")
    found = {}
    for row in lake.table(report, table).to_pylist():
        found[tuple(row[name] for name in named if name in row)] = row
    return found


def same_tables(one: Any, other: Any, tolerance: float = 1e-9) -> None:
    """Every row of either is in the other: what is counted or decided equal, r to the tolerance."""
    for table in TABLES:
        a, b = rows_of(*one, table), rows_of(*other, table)
        assert a.keys() == b.keys() and a, table
        for key, row in a.items():
            for name, value in row.items():
                loose = {"place_r": 2e-6, "null_p50": 2e-6, "null_q999": 2e-6, "null_max": 2e-6}
                if isinstance(value, float):
                    assert b[key][name] == pytest.approx(value, abs=loose.get(name, tolerance), rel=1e-6), (key, name)
                elif name not in ("stage", "buddies_null"):
                    assert b[key][name] == value, (key, name)


def in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let plans have many small tiles, in the reverse of their usual order; gives how many each pair got."""
    counts: list[int] = []

    def reversed_tiles(*args: Any) -> Any:
        shards = plan_tiles(*args)
        counts.append(sum(map(len, shards)))
        return tuple(shard[::-1] for shard in shards[::-1])

    monkeypatch.setattr(plan, "plan_tiles", reversed_tiles)
    monkeypatch.setattr(plan, "SHARD_OVER_MAPS", 0)
    monkeypatch.setattr(tiles, "ACCUMULATOR_SHARE", 0.05)
    return counts


@pytest.mark.slow
def test_however_the_work_is_cut_tables_are_the_same(
    mined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = in_small_tiles(monkeypatch)
    how = {"budget_gb": 0.008, "shard_rows": 29, "batch_size": 8, "maps": "recompute", "resources": {"workers": 3}}
    cut = run(tmp_path / "lake", **how)
    assert min(counts) >= 4, counts
    same_tables(mined[:2], cut)


def test_swapped_models_are_the_same_pair_seen_from_the_other_side(mined: Any, tmp_path: Path) -> None:
    swapped = run(tmp_path / "lake", (RESNET, VIT))
    lake, report, _ = mined
    there = neighbours(lake, report, VIT, RESNET), neighbours(lake, report, RESNET, VIT)
    back = neighbours(*swapped, VIT, RESNET), neighbours(*swapped, RESNET, VIT)
    for one, other in zip(there, back, strict=True):
        assert one.keys() == other.keys()
        for unit, found in one.items():
            assert [name[:2] for name in found] == [name[:2] for name in other[unit]]
            assert [r for *_, r in found] == pytest.approx([r for *_, r in other[unit]], abs=1e-12)
    buddies = rows_of(lake, report, "rosetta_buddies")
    flipped = {
        (b, a, sb, sa, ub, ua): row for (a, b, sa, sb, ua, ub), row in rows_of(*swapped, "rosetta_buddies").items()
    }
    pair = {key for key in buddies if key[0] != key[1]}
    assert pair and pair == {key for key in flipped if key[0] != key[1]}
    assert all(buddies[key]["rank_ab"] == flipped[key]["rank_ba"] for key in pair)


def test_buddies_are_those_that_lists_of_numpy_share(mined: Any) -> None:
    lake, report, maps = mined
    r, names_a, names_b = expected(lake, report, maps, VIT, RESNET)
    for k in (1, 3):
        of_a, of_b = np.argsort(-r, axis=1)[:, :k], np.argsort(-r.T, axis=1)[:, :k]
        live = {(i, j) for i in range(len(r)) for j in of_a[i] if i in of_b[j] and np.isfinite(r[i, j])}
        rows = rows_of(lake, report, "rosetta_buddies").values()
        found = {
            (names_a.index((row["site_a"], row["unit_a"])), names_b.index((row["site_b"], row["unit_b"])))
            for row in rows
            if row["model_a"] == VIT and row["model_b"] == RESNET and max(row["rank_ab"], row["rank_ba"]) < k
        }
        assert found == live and len(found) > 20
        (pair,) = [
            p for p in lake.table(report, "rosetta_pairs", model_a=VIT, model_b=RESNET).to_pylist() if p["k"] == k
        ]
        assert pair["buddies"] == len(found) and pair["images"] == IMAGES and pair["inexact"] == 0
        assert pair["share_a"] == len({i for i, _ in found}) / np.isfinite(r).any(1).sum()


def test_moments_are_those_of_interpolated_maps(mined: Any) -> None:
    lake, report, maps = mined
    found = rows_of(lake, report, "rosetta_moments")
    site = "stage.3@map"
    written = interpolated(maps[RESNET, site], (4, 4), (8, 8))
    rows = [found[RESNET, site, unit, 8] for unit in range(len(written))]
    assert [row["mean"] for row in rows] == pytest.approx(written.mean(1), rel=1e-6)
    assert [row["sd"] for row in rows] == pytest.approx(written.std(1), rel=1e-6)
    assert {row["n"] for row in rows} == {IMAGES * 64}


@pytest.mark.slow
def test_a_null_that_turns_maps_is_numpy_on_maps_that_are_shifted_and_turned(mined: Any, tmp_path: Path) -> None:
    _, _, maps = mined
    lake, report = run(tmp_path / "lake", chance="shifted_rotated", chance_shift=5)
    one, two = (VIT, "mlp_act.4@patch"), (RESNET, "stage.3@map")
    turns = quarter_turns(range(IMAGES))
    other = torch.stack([torch.rot90(m.unflatten(0, (4, 4)), int(t)) for m, t in zip(maps[two], turns, strict=True)])
    turned = {one: maps[one], two: other.flatten(1, 2)}
    place = by_place(turned, one, two)
    best = np.nanmax(correlations(turned, one, two, roll=5) - np.maximum(place, 0))
    rows = lake.table(report, "rosetta_buddies", model_a=VIT, site_b=two[1]).to_pylist()
    assert len(rows) > 20
    for row in rows:
        assert row["place_r"] == pytest.approx(place[row["unit_a"], row["unit_b"]], abs=1e-5)
    (pair,) = [p for p in lake.table(report, "rosetta_pairs", model_a=VIT, model_b=RESNET).to_pylist() if p["k"] == 3]
    assert pair["null_max"] >= best - 1e-5  # of this site and the other
