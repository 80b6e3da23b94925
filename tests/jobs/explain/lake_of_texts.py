"""A lake with a small vision-language model of random weights and a made-up SAE of its tower, and pipelines that explain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
from tests.miclip_core.explain.vlms import save

SITE, WIDTH, LATENTS, K = "resid_post.0@patch", 32, 12, 3
DEAD = LATENTS - 1
"""The one latent that never fires."""
WORLD = "world:seed=0,n=40"


def make_model(folder: Path, seed: int = 0) -> str:
    """The ref of a LLaVA of three blocks, of which the language model reads the second."""
    return str(save("llava", folder, seed=seed))


def make_sae(seed: int = 0, latents: int = LATENTS, width: int = WIDTH, longer: Mapping[int, float] = {}) -> Sae:
    """A random SAE with decoder rows of several lengths, whose last latent can never fire.

    longer: latent -> how many times as long its decoder row is.
    """
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    w_enc = w_dec + 0.1 * torch.randn(latents, width, generator=generator)
    b_enc = 0.1 * torch.randn(latents, generator=generator)
    b_enc[-1] = -1e6
    w_dec = w_dec * torch.linspace(0.5, 2, latents)[:, None]
    for latent, times in longer.items():
        w_dec[latent] *= times
    config = SaeConfig(arch="topk", d=width, latents=latents, k=K)
    return Sae(config, w_enc, b_enc, w_dec, torch.zeros(width))


def publish_sae(lake: Lake, model: str, sae: Sae, site: str = SITE) -> str:
    """The ref of an SAE that is now in the lake."""
    params: Any = {"site": site, "sae": {"k": K, "latents": sae.config.latents}, "seed": 0}
    stage = StageSpec(kind="train_sae", method=1, subject=model, output="sae", params=params)
    data, key = save_sae(sae), layout.artifact_key(stage.digest, 0, "sae.safetensors")
    lake.store.create(key, data)
    stored = StoredArtifact(name="sae.safetensors", key=key, bytes=len(data), sha256=sha256(data))
    marker = DoneMarker(shard=0, round=0, parts=(), artifacts=(stored,))
    lake.store.create(layout.done_key(stage.digest, 0), marker.canonical_json().encode())
    plan = Plan(stage=stage, rounds=(Round(name="train", rows=1, shard_rows=1),), worker="made up")
    publish(lake.store, plan, [], ["sae.safetensors"])
    return f"sae:{stage.digest}"


def make_spec(
    model: str, sae: str, described: Mapping[str, Any] = {}, images: str = WORLD, **explain: Any
) -> PipelineSpec:
    """Features of an SAE of the lake, live on the demo world, then texts about them; few tokens, small batches.

    described: fields of the stage of features; explain: of that of texts.
    """
    of_features = {
        "kind": "sae_features", "saes": [sae], "tables": ["features", "top_images"], "top_k": 4, "rank_by": "mean",
        "round_to": "fp32", "batch_size": 8, "resources": {"workers": 1},
    }  # fmt: skip
    of_texts = {
        "kind": "explain", "reads": "features", "alpha": 1, "k": 3, "max_new_tokens": 4, "batch_features": 4,
        "shard_features": 8, "resources": {"workers": 1},
    }  # fmt: skip
    stages = {"features": {**of_features, **described}, "texts": {**of_texts, **explain}}
    data = {
        "kind": "pipeline", "name": "t", "images": {"ref": images}, "matrix": {"model": [model]}, "stages": stages
    }  # fmt: skip
    return PipelineSpec.model_validate(data, strict=False)
