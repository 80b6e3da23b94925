"""Models of different libraries and families in one zoo: prefix tokens are no places, and MAE sees every patch where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.interpolated_maps import pearson
from tests.jobs.mine_rosetta.lake_of_maps import extract, neighbours, run

MAE, DINO, TIMM = "hf:vit_mae/random(0)", "hf:dinov2_with_registers/random(0)", "timm:vit_tiny_patch16_224/random(0)"
RESNET = "timm:resnet18/random(0)"
SITES = {MAE: "resid_post.3@patch", DINO: "resid_post.3@patch", TIMM: "resid_post.3@patch", RESNET: "stage.3@map"}
IMAGES = "world:seed=0,n=20"
GRIDS = {MAE: (14, 14), DINO: (14, 14), TIMM: (14, 14), RESNET: (14, 14)}


@pytest.mark.slow
def test_mae_dinov2_with_registers_and_timm_models_are_compared_place_by_place(tmp_path: Path) -> None:
    models = list(SITES)
    lake, report = run(
        tmp_path / "lake", models, IMAGES, sites=["resid_post.3", "stage.3"], anchors="none", maps="cache", rare="keep",
    )  # fmt: skip
    maps = extract(lake, IMAGES, models, {model: [site] for model, site in SITES.items()})
    for a, model_a in enumerate(models):
        for model_b in models[a + 1 :]:
            x, y = maps[model_a, SITES[model_a]], maps[model_b, SITES[model_b]]
            assert x.shape[:2] == (20, GRIDS[model_a][0] * GRIDS[model_a][1])
            finer = max(GRIDS[model_a], GRIDS[model_b])
            r = pearson(x, GRIDS[model_a], y, GRIDS[model_b], finer)
            found = neighbours(lake, report, model_a, model_b)
            assert len(found) == x.shape[2]
            for (_, unit), listed in found.items():
                assert [r[unit, other] for _, other, _ in listed] == pytest.approx([s for *_, s in listed], abs=1e-6)
                assert np.sort(r[unit])[-3:][::-1] == pytest.approx([s for *_, s in listed], abs=1e-6)
