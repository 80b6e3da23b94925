"""A lake with SAEs that a test made up, and pipelines that describe their features on the demo world."""

from __future__ import annotations

from typing import Any

import torch

from cluster.ledger import publish
from cluster.parquet import sha256
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import save_sae
from schemas import layout
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import DoneMarker, Plan, Round, StageSpec, StoredArtifact
from schemas.sae import SaeConfig
from tests.lakes import Lake

MODEL, SITE = "demo:clip-p8", "resid_post.-2@patch"
CANONICAL = "resid_post.3@patch"
WIDTH, LATENTS, K = 96, 24, 4


def make_sae(seed: int = 0, latents: int = LATENTS, signed: bool = False, width: int = WIDTH) -> Sae:
    """A random SAE whose last latent can never fire."""
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    w_enc = w_dec + 0.1 * torch.randn(latents, width, generator=generator)
    b_enc = 0.1 * torch.randn(latents, generator=generator)
    b_enc[-1] = 0 if signed else -1e6
    config = SaeConfig(arch="topk", d=width, latents=latents, k=K, post_topk_relu=not signed)
    return Sae(config, w_enc, b_enc, w_dec, torch.zeros(width))


def publish_sae(lake: Lake, sae: Sae, site: str = CANONICAL, seed: int = 0) -> str:
    """The ref of an SAE that is now in the lake."""
    params: Any = {"site": site, "sae": {"k": K}, "seed": seed}
    stage = StageSpec(kind="train_sae", method=1, subject=MODEL, output="sae", params=params)
    data, key = save_sae(sae), layout.artifact_key(stage.digest, 0, "sae.safetensors")
    lake.store.create(key, data)
    stored = StoredArtifact(name="sae.safetensors", key=key, bytes=len(data), sha256=sha256(data))
    marker = DoneMarker(shard=0, round=0, parts=(), artifacts=(stored,))
    lake.store.create(layout.done_key(stage.digest, 0), marker.canonical_json().encode())
    publish(
        lake.store,
        Plan(stage=stage, rounds=(Round(name="train", rows=1, shard_rows=1),), worker="made up"),
        [],
        ["sae.safetensors"],
    )
    return f"sae:{stage.digest}"


def make_spec(saes: list[str], images: str, stored: dict[str, Any] | None = None, **changes: Any) -> PipelineSpec:
    """Describe SAEs of the lake; `stored`: fields of an extract stage whose tables are read, else live."""
    features: dict[str, Any] = {"kind": "sae_features", "saes": saes, "top_k": 4, "shard_rows": 64, "min_positives": 3}
    features |= {"round_to": "fp32", "batch_size": 16, "resources": {"workers": 1}, **changes}
    stages: dict[str, Any] = {"features": features}
    if stored is not None:
        of_forward = {"round_to": "fp32", "batch_size": 16, "shard_rows": 50, "resources": {"workers": 1}}
        stages["acts"] = {
            "kind": "extract",
            "sites": [SITE],
            "outputs": ["activations", "embeddings"],
            **of_forward,
            **stored,
        }
        features["reads"] = ["acts"]
    data = {"kind": "pipeline", "name": "t", "images": {"ref": images}, "matrix": {"model": [MODEL]}, "stages": stages}
    return PipelineSpec.model_validate(data, strict=False)
