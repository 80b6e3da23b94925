"""A lake with patches of the demo world and an SAE of them, and what looking at all of it at once gives."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from jobs.sae_files import WEIGHTS
from miclip_core.sae.weights import load_sae
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake

MODEL, CLIP, SITE, IMAGES = "demo:clip-p8", "demo:clip-rn", "resid_post.-2@patch", 96
WORLD = f"world:seed=0,n={IMAGES}"
SAE = {"kind": "train_sae", "reads": "acts", "latents": 64, "k": 4, "steps": 40, "batch_tokens": 256}


class Place:
    """A lake in which activations are stored and an SAE is trained; descriptions come on top of it."""

    def __init__(self, folder: Path, images: Mapping[str, Any] | None = None, sae: bool = True) -> None:
        self.folder, self.lake = folder, Lake(folder / "lake")
        self.images = images or {"ref": WORLD}
        self._sae = sae

    def spec(self, acts: Mapping[str, Any] | None = None, **describe: Any) -> PipelineSpec:
        stages: dict[str, Any] = {
            "acts": {
                "kind": "extract", "sites": [SITE], "outputs": ["activations"], "batch_size": 32, **(acts or {}),
            },
        }  # fmt: skip
        if self._sae:
            stages["sae"] = SAE
        if describe:
            reads = ["acts", "sae"] if self._sae else ["acts"]
            stages["names"] = {"kind": "describe", "reads": reads, "concepts": "world", **describe}
        data = {
            "kind": "pipeline", "name": "t", "images": self.images, "clip": CLIP, "matrix": {"model": [MODEL]},
            "stages": stages,
        }  # fmt: skip
        return PipelineSpec.model_validate(data, strict=False)

    def run(self, **describe: Any) -> RunReport:
        report = self.lake.run(self.spec(**describe))
        assert report.exit_code == 0, report.failures
        return report

    def copy(self, folder: Path) -> Place:
        """The same lake elsewhere, before anything else is done in it."""
        shutil.copytree(self.folder / "lake", folder / "lake")
        return Place(folder, self.images, self._sae)

    def rows(self, report: RunReport, table: str, **where: str) -> list[dict[str, Any]]:
        return self.lake.table(report, table, **where).to_pylist()

    def activations(self, report: RunReport, kind: str) -> Tensor:
        """All units at all patches, float32 [images, patches, units], by (image_index, token); of an SAE as it encodes them at once."""
        found = sorted(self.rows(report, "activations"), key=lambda row: (row["image_index"], row["token"]))
        values = torch.tensor([row["act"] for row in found])
        if kind == "features":
            (sae,) = [s.digest for s in report.state.stages if s.kind == "train_sae"]
            values = load_sae(StoreInputs(self.lake.store).published(sae, WEIGHTS)).encode(values).dense()
        return values.unflatten(0, (IMAGES, -1)).float()


def same_rows(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two tables hold the same rows, bit for bit, in whatever order."""
    return bool(one) and sorted(map(repr, one)) == sorted(map(repr, other))
