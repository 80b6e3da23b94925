"""The inspect worker: static facts of one model as one row of `models`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from jobs.locate import locate_through
from jobs.protocol import Inputs, Keep, Part, Setting
from miclip_core.zoo.load import inspect_model
from schemas.models import ModelFacts
from schemas.plans import Shard
from schemas.refs import ModelRef
from schemas.tables import TABLES


class InspectWorker:
    """Holds the plans of the models to inspect."""

    def __init__(self, setting: Setting) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """One row per model."""
        for stage in stages:
            params: dict[str, Any] = self._plans[stage].stage.params
            facts = inspect_model(
                ModelRef.parse(params["model"]), locate=locate_through(inputs), modules=tuple(params["modules"])
            )
            yield Part(stage, "models", make_row(stage, facts))


def make_row(stage: str, facts: ModelFacts) -> pa.RecordBatch:
    """The facts as a row; `facts` holds them all as JSON for planning."""
    row = {
        "stage": stage,
        "model": facts.model,
        "family": facts.family,
        "revision": facts.revision,
        "weights_sha256": facts.weights_sha256,
        "files_sha256": facts.files_sha256,
        "library_versions": list(facts.library_versions.items()),
        "n_layers": facts.n_blocks,
        "n_heads": facts.n_heads,
        "head_dim": facts.head_dim,
        "width": facts.width,
        "mlp_width": facts.mlp_width,
        "embed_dim": facts.embed_dim,
        "n_prefix": facts.n_prefix,
        "grid_h": facts.grid[0],
        "grid_w": facts.grid[1],
        "input_h": facts.input_hw[0],
        "input_w": facts.input_hw[1],
        "act_kind": facts.act_kind,
        "pool": facts.pool,
        "has_text": facts.has_text,
        "parameters": facts.params,
        "flops": facts.flops,
        "sites": [site.path for site in facts.sites],
        "facts": facts.canonical_json(),
    }
    return pa.RecordBatch.from_pylist([row], schema=TABLES["models"].schema)


def open_worker(setting: Setting, inputs: Inputs) -> InspectWorker:
    """Models are built one at a time, when their shard comes."""
    return InspectWorker(setting)
