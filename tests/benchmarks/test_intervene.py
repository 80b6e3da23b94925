"""What interventions cost beside the passes that they cannot do without; run with `make bench`, prints ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from miclip_core.intervene.edits import Features, Neurons, UnitKind
from miclip_core.intervene.sweep import Sweep
from miclip_core.sae.sae import Sae
from miclip_core.zoo.edits import rows_of
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.intervene import Change
from schemas.refs import ModelRef
from schemas.sae import SaeConfig
from tests.benchmarks.measures import turns

BATCH, CLASSES, TAU, BLOCK, ROUNDS = 8, 1000, 5, 6, 7
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


def end_of_vit(model: VisionModel, x_BTD: Tensor) -> Tensor:
    visual: Any = model.module.visual
    for block in visual.transformer.resblocks[BLOCK + 1 :]:
        x_BTD = block(x_BTD)
    return visual.ln_post(x_BTD)[:, 0] @ visual.proj


def end_of_resnet(model: VisionModel, x_BCIJ: Tensor) -> Tensor:
    visual: Any = model.module.visual
    return visual.attnpool(visual.layer4(x_BCIJ))


@pytest.mark.bench
@pytest.mark.parametrize(
    ("name", "site", "kind", "end"),
    [
        ("ViT-B-32", f"resid_post.{BLOCK}@all", "neurons", end_of_vit),
        ("ViT-B-32", f"resid_post.{BLOCK}@all", "features", end_of_vit),
        ("RN50", "stage.3@map", "neurons", end_of_resnet),
    ],
)
def test_a_sweep_in_units_of_suffix_passes(
    name: str, site: str, kind: str, end: Callable[[VisionModel, Tensor], Tensor]
) -> None:
    """One whole pass, then one end per change (two with other classes), and one encoding.

    The unit is the library's own modules after the site, called by hand; all is CPU time, in which other load counts
    little, and a ratio is the median of those of single turns.
    """
    model: VisionModel = load_model(ModelRef.parse(f"open_clip:{name}/random(0)"))
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 3, 224, 224, generator=draw)
    with torch.no_grad():
        cached = model.run(images, [site])[site]
        assert torch.equal(end(model, cached), model.embed_images(images))
    facts = model.facts.site(site.split("@")[0])
    rows_ND = rows_of(facts, cached)[0].flatten(0, 1)
    sae = make_sae(facts.width, 8192)
    units: UnitKind = Neurons() if kind == "neurons" else Features(sae)
    units_CK = torch.stack([torch.randperm(facts.width, generator=draw)[:TAU] for _ in range(CLASSES)])
    labels, ids = torch.randint(CLASSES, (BATCH,), generator=draw), [str(i) for i in range(BATCH)]
    scorer = ZeroShot(model.facts.embed_dim)

    def sweep(off: int | None) -> Sweep:
        return Sweep(model, site, units, scorer, {"random": units_CK}, CHANGES, off)

    on, off = sweep(None), sweep(0)
    steps = {
        "whole": lambda: model.run(images, ["embedding", site]),
        "on": lambda: on.add(images, labels, ids),
        "suffix": lambda: end(model, cached),
        "off": lambda: off.add(images, labels, ids),
        "encode": lambda: sae.encode(rows_ND) if kind == "features" else None,
    }
    with torch.no_grad():
        took = turns(ROUNDS, steps, time.process_time)
    passes = {
        sweep: statistics.median(
            (all_of_it - whole - encode) / suffix
            for all_of_it, whole, encode, suffix in zip(took[sweep], took["whole"], took["encode"], took["suffix"])
        )
        for sweep in ("on", "off")
    }
    middle = {step: statistics.median(some) for step, some in took.items()}
    print(
        f"\n{name} {site} {kind}: whole pass {middle['whole'] * 1e3:.0f} ms, suffix {middle['suffix'] * 1e3:.0f} ms, encoding "
        f"{middle['encode'] * 1e3:.0f} ms; beyond the whole pass and the encoding two changes take {passes['on']:.2f} suffix "
        f"passes, with other classes {passes['off']:.2f}; off-class costs {middle['off'] / middle['on']:.2f}x in all"
    )
    assert passes["on"] <= 2.2 and passes["off"] <= 2 * 2.2
