"""SAEs trained on made-up tables without models or images: plans by hand, a worker that can be stopped, and what it gave."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from cluster.inputs import StoreInputs
from cluster.keep import StoreKeep
from cluster.stores.base import Store
from jobs.activations import Forward
from jobs.protocol import Artifact, Part, Setting
from jobs.sae_tokens import SiteTokens
from jobs.train_sae.plan import ROUNDS
from jobs.train_sae.work import TrainSaeWorker
from schemas.plans import Plan, Resources, StageSpec
from schemas.sae import SaeSettings, StreamSettings
from tests.activations import ImageRows, make_images, publish_activations

WIDTH, IMAGES, TOKENS = 12, 40, 5
STREAM = StreamSettings(batch_tokens=16, buffer_batches=3, block_images=4, holdout=0.1, seed=0)


class Stopped(Exception):
    """Stands for the death of a process at this point."""


class Keeping(StoreKeep):
    """A keep that ends the process, so to speak, before or after its n-th save; remembers which steps were saved."""

    def __init__(self, store: Store, stop_at: int | None = None, after: bool = True) -> None:
        super().__init__(store, shard=0)
        self.saved: list[tuple[str, int]] = []
        self._stop_at, self._after = stop_at, after

    def save(self, stage: str, step: int, pieces: Iterable[tuple[str, bytes]]) -> None:
        stops = len(self.saved) + 1 == self._stop_at
        if stops and not self._after:
            list(pieces)
            raise Stopped
        super().save(stage, step, pieces)
        self.saved.append((stage, step))
        if stops:
            raise Stopped


def store_tokens(
    store: Store,
    images: Iterable[ImageRows] | None = None,
    site: str = "resid_post.0@patch",
    rows: int = IMAGES,
    seed: int = 0,
) -> SiteTokens:
    """Publish rows as the activations of a site."""
    forward = Forward(
        model="demo:made-up",
        inputs={"model": "m", "images": f"i{seed}"},
        params={"rows": rows},
        effort={"index": "none", "batch_size": 4},
    )
    tokens = SiteTokens(forward=forward, site=site, round_to="fp16", stored=True)
    publish_activations(
        store, tokens.stage, list(make_images(rows, TOKENS, WIDTH, seed) if images is None else images), shard_rows=15
    )
    return tokens


def make_plan(
    tokens: SiteTokens, keep_every: int = 3, width: int = WIDTH, stream: StreamSettings = STREAM, **sae: Any
) -> Plan:
    """The plan of one SAE on such tokens."""
    settings = {
        "arch": "topk",
        "latents": 24,
        "k": 3,
        "lr": 3e-3,
        "steps": 12,
        "warmup_steps": 2,
        "dead_tokens": 64,
        **sae,
    }
    return Plan(
        stage=StageSpec(
            kind="train_sae",
            method=1,
            subject=tokens.forward.model,
            output="sae",
            params={
                "sae": SaeSettings(**settings).model_dump(mode="json"),
                "stream": stream.model_dump(mode="json"),
                "site": tokens.site,
                "round_to": tokens.round_to,
                "data_parallel": 1,
            },
            inputs={"activations": tokens.stage.digest},
        ),
        rounds=ROUNDS,
        worker="made up",
        effort={
            "forward": tokens.forward.model_dump(mode="json"),
            "source": tokens.source,
            "keep_every": keep_every,
            "width": width,
        },
    )


class Trained:
    """What the train round of some plans gave, by stage, and what was said of it."""

    def __init__(self, made: Sequence[Part | Artifact], keep: Keeping, notes: Sequence[str]) -> None:
        self.files = {a.stage: a.data for a in made if isinstance(a, Artifact)}
        self.curves = {p.stage: p.batch for p in made if isinstance(p, Part)}
        self.keep, self.notes = keep, list(notes)

    def weights(self, plan: Plan) -> dict[str, torch.Tensor]:
        """The tensors of one SAE."""
        return load(self.files[plan.digest])

    def same(self) -> dict[str, tuple[str, list[dict[str, Any]]]]:
        """Everything that must be equal: sha256 of the weights, and the curve without NaN."""
        return {
            stage: (hashlib.sha256(data).hexdigest(), self.curves[stage].to_pylist())
            for stage, data in self.files.items()
        }


def train(store: Store, *plans: Plan, stop_at: int | None = None, after: bool = True) -> Trained:
    """One try of the train round; raises Stopped where it was told to."""
    keep, inputs = Keeping(store, stop_at, after), StoreInputs(store)
    worker = TrainSaeWorker(Setting(plans, Resources()), inputs)
    made = list(worker.process(next(plans[0].shards(0)), [plan.digest for plan in plans], inputs, keep))
    return Trained(made, keep, worker.notes)


def with_nan(images: Iterable[ImageRows], image: int) -> list[ImageRows]:
    """The same rows with one NaN."""
    changed = [(index, values.copy()) for index, values in images]
    dict(changed)[image][2, 3] = np.nan
    return changed
