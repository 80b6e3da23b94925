"""How long a search by meaning takes over a hundred thousand texts; run with `make bench`, prints seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.catalog import open_catalog
from cluster.search import search
from cluster.stores.base import Store, make_store
from jobs.explained import about
from miclip_core.zoo.load import inspect_model
from schemas.plans import StageSpec
from schemas.refs import ModelRef
from tests.benchmarks.measures import seconds
from tests.made_up_descriptions import publish_rows
from tests.made_up_explanations import MODEL, SAE, SITE, STEERING
from tests.made_up_saes import save_run

TEXTS = 100_000
CLIP = "demo:clip-p8"
WORDS = ("red", "green", "circle", "striped", "object", "grey", "background", "small", "dotted", "star")


def publish_map(store: Store) -> None:
    """A finished run with a map of so many made-up texts, each somewhere on the sphere."""
    facts = inspect_model(ModelRef.parse(CLIP))
    params = {"site": SITE, "encoder": facts.files_sha256}
    stage = StageSpec(
        kind="map_explanations", method=1, subject=MODEL, output="map", params=params, inputs={"sae": SAE}
    )  # fmt: skip
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((TEXTS, facts.embed_dim or 0)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = {
        **about(stage),
        **STEERING._asdict(),
        "sequence": 0,
        "encoder": CLIP,
        "encoder_revision": None,
        "cluster": 0,
        "x": 0.0,
        "y": 0.0,
    }
    rows = [
        {**same, "feature": n, "text": " ".join(words), "embedding": vector}
        for n, (words, vector) in enumerate(zip(rng.choice(WORDS, (TEXTS, 8)), vectors, strict=True))
    ]
    of_cluster = {**about(stage), "cluster": 0, "topic": "all", "size": TEXTS, "sample": [], "sample_texts": []}
    publish_rows(store, stage, {"explanation_map": rows, "explanation_clusters": [of_cluster]})
    save_run(store, "demo-00001", [stage])


@pytest.mark.bench
def test_a_search_next_to_what_it_loads(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    publish_map(store)
    env = {**os.environ, "PYTHONPATH": "."}

    def call(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=env)

    verb = ("-m", "cluster.cli", "search", "red stripes", "--store", store.uri)
    libraries = "import miclip_core.zoo.openclip, cluster.search, typer"
    taken = seconds(3, {"libraries": lambda: call("-c", libraries), "verb": lambda: call(*verb)})
    started, cpu = time.perf_counter(), time.process_time()
    search(open_catalog(store), "red stripes")
    print(
        f"\nmiclip search over {TEXTS:,} texts: {taken['verb']:.2f} s, of which its libraries {taken['libraries']:.2f} s"
    )
    print(f"with libraries loaded: {time.perf_counter() - started:.2f} s, CPU {time.process_time() - cpu:.2f} s")
