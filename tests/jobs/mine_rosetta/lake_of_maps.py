"""Pairs of demo models on a few images, and what must come out of them: by the tables of extraction and numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster.pipeline import RunReport
from schemas.pipeline_spec import PipelineSpec
from tests.interpolated_maps import interpolated
from tests.lakes import Lake

IMAGES = 72
WORLD = f"world:seed=0,n={IMAGES}"
VIT, RESNET = "demo:clip-p8", "demo:clip-rn"
SITES = ("mlp_act.-1", "stage.2", "stage.3")
GRIDS = {"mlp_act.4@patch": (8, 8), "stage.2@map": (8, 8), "stage.3@map": (4, 4)}


def make_spec(models: Sequence[str] = (VIT, RESNET), images: str = WORLD, **fields: Any) -> PipelineSpec:
    """Compare models at three sites, of which a ViT has one and a ResNet two on different grids."""
    stage = {"kind": "mine_rosetta", "sites": list(SITES), "k": 3, "margin": 4, "entries": 0, "batch_size": 16}
    stage |= {"resources": {"workers": 1}, **fields}
    data = {
        "kind": "pipeline",
        "name": "t",
        "images": {"ref": images},
        "matrix": {"model": list(models)},
        "stages": {"shared": stage},
    }
    return PipelineSpec.model_validate(data, strict=False)


def run(folder: Path, *args: Any, **fields: Any) -> tuple[Lake, RunReport]:
    """A lake in which that was run to its end."""
    lake = Lake(folder)
    report = lake.run(make_spec(*args, **fields))
    assert report.exit_code == 0, report.failures
    return lake, report


USUAL_SITES = {VIT: ("mlp_act.-1@patch",), RESNET: ("stage.2@map", "stage.3@map")}


def extract(
    lake: Lake,
    images: str = WORLD,
    models: Sequence[str] = (VIT, RESNET),
    sites_of: Mapping[str, Sequence[str]] = USUAL_SITES,
) -> dict[tuple[str, str], Tensor]:
    """(model, canonical site) -> maps fp32 [B, P, U] as extraction stores them."""
    stage = {"kind": "extract", "geometry": "square", "batch_size": 16, "round_to": "fp32", "outputs": ["activations"]}
    found = {}
    for model in models:
        data = {
            "kind": "pipeline",
            "name": "e",
            "images": {"ref": images},
            "matrix": {"model": [model]},
            "stages": {"acts": {**stage, "sites": list(sites_of[model])}},
        }
        report = lake.run(PipelineSpec.model_validate(data, strict=False))
        assert report.exit_code == 0, report.failures
        rows = lake.table(report, "activations")
        for site in sorted(set(rows["site"].to_pylist())):
            of = rows.filter(pa.compute.equal(rows["site"], site)).sort_by(
                [("image_index", "ascending"), ("token", "ascending")]
            )
            values = of["act"].combine_chunks().flatten().to_numpy().reshape(len(of), -1)
            found[model, site] = torch.from_numpy(values.copy()).unflatten(
                0, (len(set(of["image_index"].to_pylist())), -1)
            )
    return found


def correlations(
    maps: dict[tuple[str, str], Tensor],
    a: tuple[str, str],
    b: tuple[str, str],
    roll: int = 0,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """numpy's r [U_a, U_b] of interpolated maps that are written out; `roll` sets image i of a against i + roll of b."""
    target = grid or tuple(max(x, y) for x, y in zip(GRIDS[a[1]], GRIDS[b[1]]))
    x = interpolated(maps[a], GRIDS[a[1]], target)  # type: ignore[arg-type]
    y = interpolated(maps[b].roll(-roll, 0), GRIDS[b[1]], target)  # type: ignore[arg-type]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(x, y)[: len(x), len(x) :]


def by_place(maps: dict[tuple[str, str], Tensor], a: tuple[str, str], b: tuple[str, str]) -> np.ndarray:
    """numpy's r [U_a, U_b] of maps of which every image has the mean over all images, with the spread of the maps as they are."""
    target = tuple(max(x, y) for x, y in zip(GRIDS[a[1]], GRIDS[b[1]]))
    x, y = (interpolated(maps[one], GRIDS[one[1]], target) for one in (a, b))  # type: ignore[arg-type]
    sums = [z.reshape(len(z), -1, target[0] * target[1]).mean(1) for z in (x, y)]
    covariance = sums[0] @ sums[1].T / sums[0].shape[1] - np.outer(x.mean(1), y.mean(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / np.outer(x.std(1), y.std(1))


def alive(lake: Lake, report: RunReport, model: str) -> dict[str, np.ndarray]:
    """site -> bool [U]: units that are compared."""
    rows = lake.table(report, "rosetta_units", model=model)
    found = {}
    for site in dict.fromkeys(rows["site"].to_pylist()):
        of = rows.filter(pa.compute.equal(rows["site"], site)).sort_by("unit")
        found[site] = ~np.array(of["is_dead"].to_pylist()) & ~np.array(of["is_rare"].to_pylist())
    return found


def neighbours(lake: Lake, report: RunReport, a: str, b: str) -> dict[tuple[str, int], list[tuple[str, int, float]]]:
    """(site_a, unit_a) -> (site_b, unit_b, r) by rank."""
    rows = lake.table(report, "rosetta_neighbours", model_a=a, model_b=b).to_pylist()
    found: dict[tuple[str, int], list[tuple[str, int, float]]] = {}
    for row in sorted(rows, key=lambda row: (row["site_a"], row["unit_a"], row["rank"])):
        found.setdefault((row["site_a"], row["unit_a"]), []).append((row["site_b"], row["unit_b"], row["r"]))
    return found
