"""Methods on made-up tables of many units stay within the memory that a plan states, each in a process of its own."""

from __future__ import annotations

import pytest

from jobs.describe.sizes import Sizes, method_bytes
from tests.benchmarks.measures import run_child

ROWS, SHARD, UNITS, CONCEPTS, DIM = 3072, 1024, 12_288, 400, 64

CHILD = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
import pyarrow as pa
import torch
from jobs.activations import Forward
from jobs.describe.plan import METHOD
from jobs.describe.sizes import READ_IMAGES
from jobs.describe.work import open_worker
from jobs.protocol import Part, Setting
from jobs.rows import make_vectors
from jobs.sae_tokens import SiteTokens
from schemas.errors import KeyMissing
from schemas.plans import Plan, Resources, Round, StageSpec
from tests.benchmarks.measures import peak

method, similarity, rows, shard_rows, units, concepts, dim = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
names = [f"class {m}" for m in range(concepts)]


class MadeUp:
    def __init__(self):
        self.folder = Path(tempfile.mkdtemp())

    def table(self, stage, table, columns=None, between=None):
        ranges = between[1] if between else [(0, rows)]
        if table == "text_embeddings":
            yield self.cut({"text_id": np.arange(concepts), "embedding": self.vectors(concepts, dim, 0)}, columns)
            return
        for start, stop in ranges:
            index = np.arange(start, min(stop, rows))
            made = {"image_index": index, "image_id": [f"{i:032x}" for i in index]}
            if table == "activations":
                made |= {"token": np.zeros(len(index), np.int32), "act": self.vectors(len(index), units, start + 1)}
            if table == "embeddings":
                made["embedding"] = self.vectors(len(index), dim, start + 2)
            if table == "images":
                made |= {"label": [f"class {i % concepts}" for i in index], "attributes": [[("side", str(i % 2))] for i in index]}
            yield self.cut(made, columns)

    def vectors(self, n, width, seed):
        return make_vectors(np.random.default_rng(seed).standard_normal((n, width), np.float32))

    def cut(self, made, columns):
        kinds = {"attributes": pa.map_(pa.string(), pa.string())}
        return pa.record_batch({name: pa.array(made[name], kinds[name]) if name in kinds else made[name] for name in columns})

    def keep(self, shard, made):
        (self.folder / f"{shard}-{made.name}").write_bytes(made.data)

    def artifact(self, stage, shard, name):
        try:
            return (self.folder / f"{shard}-{name}").read_bytes()
        except FileNotFoundError:
            raise KeyMissing(name) from None


inputs = MadeUp()
effort = {"index": "index", "batch_size": 1, "files": "", "revision": None}
forward = Forward(model="demo:made-up", inputs={}, params={"rows": rows}, effort=effort)
tokens = SiteTokens(forward=forward, site="logits", round_to="fp32", stored=True)
params = {
    "site": "logits", "unit_kind": "neurons", "variant": method, "seed": None, "concepts": names, "tau": 5, "pool": "mean",
    "clip": "demo:clip", "templates": ["{}"], "labels_from": ["label"], "min_positives": 2, "permutation_seed": 0,
}
if similarity != "-":
    params["similarity"] = similarity
stage = StageSpec(
    kind="describe", method=METHOD, subject="demo:made-up", output=method, params=params,
    inputs={"activations": tokens.stage.digest, "labels": "index", "texts": "texts", "embeddings": "embeddings"},
)
rounds = (Round(name="map", rows=rows, shard_rows=shard_rows), Round(name="score", rows=1, shard_rows=1))
plan = Plan(stage=stage, rounds=rounds, worker="made up", effort={
    "tokens": tokens.model_dump(mode="json"), "per_image": 1, "width": units, "grid": None, "first_patch": 0,
    "clip": None,
})
table = next(inputs.table("", "activations", ["act"], ("image_index", [(0, READ_IMAGES)])))
base = peak()
worker = open_worker(Setting((plan,), Resources()), inputs)
lists = 0
for shard in plan.all_shards():
    for made in worker.process(shard, [plan.digest], inputs, None):
        if isinstance(made, Part):
            lists += made.batch.num_rows
        else:
            inputs.keep(shard.number, made)
        del made
print(json.dumps({"taken": peak() - base, "rows": lists}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "similarity"),
    [("act_values", "-"), ("auroc", "-"), *(("clip_dissect", s) for s in ("cos", "cos_cubed", "wpmi", "soft_wpmi"))],
)
def test_a_method_takes_no_more_than_its_plan_states(method: str, similarity: str) -> None:
    found = run_child(CHILD, method, similarity, ROWS, SHARD, UNITS, CONCEPTS, DIM, timeout=900)
    stated = sum(
        method_bytes(
            method, None if similarity == "-" else similarity, Sizes(ROWS, SHARD, 1, UNITS, UNITS, CONCEPTS, DIM, 5)
        )
    )
    print(f"\n{method} {similarity}: peak {found['taken'] >> 20} MiB, stated {stated >> 20} MiB, {found['rows']} rows")
    assert found["rows"] > 5 * UNITS * 0.9 and found["taken"] < stated
