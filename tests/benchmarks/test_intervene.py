"""What interventions cost beside the passes that they cannot do without; run with `make bench`, prints ratios."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from miclip_core.intervene.edits import Features, Neurons, UnitKind
from miclip_core.intervene.sweep import Sweep
from miclip_core.sae.sae import Sae
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.start import CachedBlock
from schemas.intervene import Change
from schemas.refs import ModelRef
from schemas.sae import SaeConfig
from tests.benchmarks.measures import seconds

BATCH, CLASSES, TAU, BLOCK = 8, 1000, 5, 6
CHANGES = [Change(beta=0.0), Change(beta=2.0)]


class ZeroShot:
    """Random class vectors; which of them is the answer costs the same as with real ones."""

    site = "embedding"

    def __init__(self, width: int) -> None:
        self.columns_EC = torch.randn(width, CLASSES, generator=torch.Generator().manual_seed(0))

    def scores(self, tapped_B: Tensor) -> Tensor:
        return tapped_B @ self.columns_EC


def make_sae(d: int, latents: int) -> Sae:
    W = torch.nn.functional.normalize(torch.randn(latents, d, generator=torch.Generator().manual_seed(1)), dim=1)
    config = SaeConfig(arch="topk", d=d, latents=latents, k=32)
    return Sae(config, W, torch.zeros(latents), W, torch.zeros(d))


@pytest.mark.bench
@pytest.mark.parametrize("kind", ["neurons", "features"])
def test_a_sweep_in_units_of_suffix_passes(kind: str) -> None:
    """ViT-B/32 at block 6 of 12: one whole pass, then one end per change (two with other classes), and one encoding."""
    model: VisionModel = load_model(ModelRef.parse("open_clip:ViT-B-32/random(0)"))
    site, width = f"resid_post.{BLOCK}@all", model.facts.width
    sae = make_sae(width, 8192)
    units: UnitKind = Neurons() if kind == "neurons" else Features(sae)
    draw = torch.Generator().manual_seed(2)
    units_CK = torch.stack([torch.randperm(width, generator=draw)[:TAU] for _ in range(CLASSES)])
    images = torch.randn(BATCH, 3, 224, 224, generator=draw)
    labels, ids = torch.randint(CLASSES, (BATCH,), generator=draw), [str(i) for i in range(BATCH)]
    scorer = ZeroShot(model.facts.embed_dim)
    start = f"resid_pre.{BLOCK + 1}"
    cached = CachedBlock(start, model.run(images, [f"{start}@all"])[f"{start}@all"])

    def sweep(off: int | None) -> Sweep:
        return Sweep(model, site, units, scorer, {"random": units_CK}, CHANGES, off)

    on, off = sweep(None), sweep(0)
    took = seconds(
        5,
        {
            "whole": lambda: model.run(images, ["embedding", f"{start}@all"]),
            "suffix": lambda: model.run(None, ["embedding"], start=cached),
            "encode": lambda: sae.encode(cached.value.flatten(0, 1)),
            "on": lambda: on.add(images, labels, ids),
            "off": lambda: off.add(images, labels, ids),
        },
    )
    fixed = took["whole"] + (took["encode"] if kind == "features" else 0)
    for name in ("on", "off"):
        took[f"{name}_passes"] = (took[name] - fixed) / took["suffix"]
    print(
        f"\n{kind}: whole pass {took['whole'] * 1e3:.0f} ms, suffix {took['suffix'] * 1e3:.0f} ms, encoding "
        f"{took['encode'] * 1e3:.0f} ms; beyond the fixed costs two changes take {took['on_passes']:.2f} suffix passes, with "
        f"other classes {took['off_passes']:.2f}; off-class costs {took['off'] / took['on']:.2f}x in all"
    )
