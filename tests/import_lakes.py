"""A lake into which tests import SAEs that they wrote in the formats of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.pipeline import RunReport
from miclip_core.sae.foreign import save_foreign
from miclip_core.sae.sae import Sae
from schemas.pipeline_spec import PipelineSpec
from schemas.sae import SaeConfig
from tests.lakes import Lake, export

MODEL, SITE, WIDTH, LATENTS, K = "demo:clip-p8", "resid_post.3@patch", 96, 64, 6


def make_sae(seed: int = 0, width: int = WIDTH) -> Sae:
    make = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=make), dim=1)
    config = SaeConfig(arch="topk", d=width, latents=LATENTS, k=K)
    return Sae(config, W_dec.clone(), torch.zeros(LATENTS), W_dec, 0.1 * torch.randn(width, generator=make))


class ImportLake:
    """Images, a lake, and folders of SAEs in the formats of other libraries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = export(folder / "images", 24)
        self.lake = Lake(folder / "lake")

    def sae(self, format: str, name: str, seed: int = 0, width: int = WIDTH) -> str:
        save_foreign(format, make_sae(seed, width), self.folder / name)
        return f"{format}:{self.folder / name}"

    def run(self, saes: list[str], read: bool = False, **fields: Any) -> RunReport:
        own = {"kind": "import_sae", "saes": saes, "sites": [SITE], "block_images": 4, "holdout": 0.3, **fields}
        stages = {"saes": own}
        if read:
            stages["acts"] = {"kind": "extract", "sites": [SITE], "outputs": ["activations"]}
            stages["saes"] = {**own, "reads": ["acts"]}
        images = {"ref": f"folder:{self.images}/images", "labels": f"file:{self.images}/labels.parquet"}
        data = {"kind": "pipeline", "name": "t", "images": images, "matrix": {"model": [MODEL]}, "stages": stages}
        return self.lake.run(PipelineSpec.model_validate(data, strict=False))

    def digests(self, report: RunReport) -> list[str]:
        return [state.digest for state in report.state.stages if state.kind == "import_sae"]

    def measurements(self, report: RunReport) -> list[str]:
        return [state.digest for state in report.state.stages if state.kind == "measure_sae"]
