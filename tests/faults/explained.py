"""A lake in which features of a made-up SAE are explained by the demo zoo, to score and to map while things go wrong."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.pipeline_spec import PipelineSpec
from tests.jobs.sae_features.lake_of_saes import MODEL, make_sae, publish_sae
from tests.lakes import Lake

FEATURES: dict[str, Any] = {
    "kind": "sae_features", "top_k": 5, "rank_by": "mean", "round_to": "fp32", "batch_size": 8, "min_positives": 3,
    "resources": {"workers": 1},
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "shown": {**FEATURES, "images": {"ref": "world:seed=0,n=40"}},
    "others": {**FEATURES, "images": {"ref": "world:seed=1,n=48"}},
    "texts": {
        "kind": "explain", "reads": "shown", "vlm": "demo:llava-p8", "alpha": 2, "alpha_unit": "p90", "k": 3,
        "max_new_tokens": 12, "features": list(range(12)), "resources": {"workers": 1},
    },
    "scores": {
        "kind": "score_explanations", "reads": ["texts", "others"], "top": 3, "on_shared": "leave_out", "maker_images": 2,
        "least_auroc": 0.6, "labels": "world", "batch_size": 8, "seed": 3, "shard_features": 5, "resources": {"workers": 1},
    },
    "chosen": {"kind": "map_explanations", "reads": "scores", "clusters": 3, "resources": {"workers": 1}},
    "every": {"kind": "map_explanations", "reads": "texts", "texts": "all", "clusters": 4, "resources": {"workers": 1}},
}  # fmt: skip
"""All stages, in the order in which they read each other."""


class Explained:
    """A lake in which some stages are published, and copies of it in which the rest is made."""

    def __init__(self, folder: Path, published: Sequence[str]) -> None:
        lake = Lake(folder)
        self._folder, self._sae = folder, publish_sae(lake, make_sae(seed=3))
        report = lake.run(self.spec(published))
        assert report.exit_code == 0, report.failures

    def begin(self, folder: Path) -> Lake:
        """A copy of the lake as it is before anything else is made."""
        shutil.copytree(self._folder, folder)
        return Lake(folder)

    def spec(self, stages: Sequence[str]) -> PipelineSpec:
        """A pipeline of these stages and of all that they read."""
        wanted = {name: dict(STAGES[name]) for name in STAGES if name in stages}
        for name in ("shown", "others"):
            wanted[name]["saes"] = [self._sae]
        data = {
            "kind": "pipeline", "name": "t", "clip": "demo:clip-p8-b", "matrix": {"model": [MODEL]}, "stages": wanted,
        }  # fmt: skip
        return PipelineSpec.model_validate(data, strict=False)
