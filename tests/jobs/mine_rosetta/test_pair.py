"""Pairs of demo models against numpy on interpolated maps that are written out, however the work is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.jobs.mine_rosetta.lake_of_maps import (
    IMAGES,
    RESNET,
    VIT,
    alive,
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
def test_chance_is_what_numpy_finds_with_images_rolled_by_half(mined: Any, a: str, b: str) -> None:
    lake, report, maps = mined
    rolled, names_a, names_b = expected(lake, report, maps, a, b, roll=IMAGES // 2)
    place_a, place_b = ({name: i for i, name in enumerate(names)} for names in (names_a, names_b))
    q999 = np.quantile(rolled[np.isfinite(rolled)], 0.999)
    rows = lake.table(report, "rosetta_buddies", model_a=a, model_b=b).to_pylist()
    for row in rows:
        i, j = place_a[row["site_a"], row["unit_a"]], place_b[row["site_b"], row["unit_b"]]
        draws = (
            [rolled[i, j], rolled[j, i]] if a == b else [rolled[i, j]]
        )  # either unit of a pair may have the first images
        assert min(abs(row["null_r"] - draw) for draw in draws) < 1e-5, row
        assert row["null_q999"] == pytest.approx(q999, abs=1e-3)
        assert row["is_below_null"] == (row["r"] - max(row["null_r"], 0) <= row["null_q999"])
    (pair,) = [p for p in lake.table(report, "rosetta_pairs", model_a=a, model_b=b).to_pylist() if p["k"] == 3]
    best = [m[np.isfinite(m).any(1)].max(1) for m in ((rolled,) if a == b else (rolled, rolled.T))]
    assert pair["null_best_p50"] == pytest.approx(np.median(np.concatenate(best)), abs=1e-4)
    assert pair["above_null"] == sum(not row["is_below_null"] for row in rows) > 0
