"""A zoo of a hundred large models over a million images, as facts alone: what planning reads, and nothing to compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.cells import find_needs
from cluster.facts import plan_facts
from cluster.parquet import sha256
from cluster.stores.base import Store
from schemas import layout
from schemas.models import Geometry, ModelFacts, SiteFacts
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Published, StoredArtifact
from tests.made_up_saes import publish_rows

IMAGES, PER_TAR = 1_280_000, 1000
BLOCKS, WIDTH = 24, 1024
NAMES = (
    "resid_pre", "ln1_mean", "ln1_std", "ln1_out", "q", "k", "v", "attn", "z", "attn_out", "resid_mid", "ln2_mean", "ln2_std",
    "ln2_out", "mlp_pre", "mlp_act", "mlp_out", "resid_post",
)  # fmt: skip
"""Sites of one block of a vision transformer."""


def make_facts(model: str) -> ModelFacts:
    """A ViT-L/14: 24 blocks of 18 sites, 300 M parameters, 162 GFLOP per image."""
    sites = [_site(f"{name}.{block}") for block in range(BLOCKS) for name in NAMES]
    sites.append(SiteFacts(path="embedding", layout="vector", shape=(768,), positions=1))
    geometry = Geometry(
        resize="shortest", resize_hw=(224, 224), crop_hw=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )  # fmt: skip
    return ModelFacts(
        model=model, family="clip_vit", weights_sha256=model, files_sha256=model, revision=None, library_versions={}, n_blocks=BLOCKS,
        n_heads=16, head_dim=64, width=WIDTH, mlp_width=4 * WIDTH, embed_dim=768, n_prefix=1, has_cls=True, grid=(16, 16), patch=14,
        input_hw=(224, 224), norm_eps=1e-5, act_kind="gelu", pool="tok", final_norm_position="before_pool", geometry=geometry,
        has_text=True, params=304_000_000, flops=162_000_000_000, sites=tuple(sites),
    )  # fmt: skip


def _site(path: str) -> SiteFacts:
    width = 4 * WIDTH if path.startswith(("mlp_pre", "mlp_act")) else WIDTH
    return SiteFacts(
        path=path, layout="tokens", shape=(width,), positions=257, prefix=1, grid=(16, 16), selectors=("all", "patch", "map", "cls")
    )  # fmt: skip


def make_pipeline(folder: Path, stages: dict[str, Any], models: int = 100, images: int = IMAGES) -> PipelineSpec:
    """These stages over so many models and tars of `folder`, which are made, empty, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images // PER_TAR):
        (folder / f"train-{number:05d}.tar").touch()
    data = {
        "kind": "pipeline",
        "name": "night",
        "images": {"ref": f"wds:{folder}"},
        "matrix": {"model": [f"open_clip:ViT-L-14/lab_{i:03d}" for i in range(models)]},
        "resources": {"gpus": 1, "cpus": 4, "workers": 16},
        "stages": stages,
    }
    return PipelineSpec.model_validate(data, strict=False)


def publish_facts(store: Store, spec: PipelineSpec, images: int = IMAGES) -> None:
    """What inspecting its models and indexing its images would publish."""
    plans = plan_facts(find_needs(spec), store)
    for model, plan in plans.models.items():
        facts = make_facts(model)
        row = {
            "model": model, "family": facts.family, "weights_sha256": model, "files_sha256": model, "library_versions": [],
            "n_layers": BLOCKS, "width": WIDTH, "embed_dim": 768, "n_prefix": 1, "grid_h": 16, "grid_w": 16, "input_h": 224, "input_w": 224,
            "act_kind": "gelu", "pool": "tok", "has_text": True, "parameters": facts.params, "flops": facts.flops,
            "sites": [site.path for site in facts.sites], "facts": facts.canonical_json(),
        }  # fmt: skip
        publish_rows(store, plan.stage, {"models": [row]})
    for index in plans.images.values():
        content = json.dumps({"rows": images, "usable": images}).encode()
        key = layout.artifact_key(index.plan.digest, 0, "content", 0)
        store.create(key, content)
        artifact = StoredArtifact(name="content", key=key, bytes=len(content), sha256=sha256(content))
        published = Published(stage=index.plan.stage, tables={}, artifacts=(artifact,), content=artifact.sha256)
        store.create(layout.published_key(index.plan.digest), published.canonical_json().encode())
