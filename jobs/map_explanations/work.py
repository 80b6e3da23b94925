"""The map_explanations worker: reads the texts about an SAE's features, embeds each once, and publishes the map and its clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.blame import blaming
from jobs.explained import Variant, about
from jobs.map_explanations.plan import asked_of, needs, texts_of
from jobs.map_explanations.topics import ask_topic
from jobs.models import open_vlm
from jobs.protocol import Inputs, Keep, Part, Setting
from jobs.rows import make_batch, make_vectors
from jobs.sentences import Sentences, open_sentences
from jobs.text_encoders import encoder_of
from jobs.threads import use_cpus
from miclip_core.explain.clusters import cluster_texts, name_topics, sample_members
from miclip_core.explain.layout import lay_out
from miclip_core.explain.vlm import Vlm
from schemas.plans import Plan, Shard

TEXT_COLUMNS = ("feature", *Variant._fields, "sequence", "text")
BATCH_ROWS = 1 << 13
MOST_SAMPLED = 20
"""Texts of a cluster that are kept beside its topic, and that a model is shown to name it."""


class MapWorker:
    """Serves the maps of one model, which share the encoder of texts; `notes` says what people should know."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._device = setting.device
        self._sentences: Sentences | None = None
        self._asked: Vlm | None = None
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """Both tables of every stage."""
        self.notes.clear()
        for plan in (self._plans[stage] for stage in stages):
            with blaming(plan):
                yield from self._map(plan, inputs)

    def _map(self, plan: Plan, inputs: Inputs) -> Iterator[Part]:
        params: Any = plan.stage.params
        for extra in needs(plan):
            extra.require()
        rows = read_texts(plan, inputs)
        if not len(rows):
            self.notes.append(f"no feature of sae:{plan.stage.inputs['sae']} has a text, so its map is empty")
            return
        vectors = self._embed(plan, rows["text"].to_pylist(), inputs)
        clusters = cluster_texts(vectors, params["clusters"], params["restarts"], params["random_seed"])
        umap = {name: params[name] for name in ("neighbours", "min_dist") if name in params}
        places = lay_out(vectors, params["layout"], **umap, seed=params["random_seed"])
        yield from _map_parts(plan, rows, clusters, places, vectors)
        yield Part(plan.digest, "explanation_clusters", self._describe(plan, rows, clusters, inputs))

    def _embed(self, plan: Plan, texts: list[str], inputs: Inputs) -> np.ndarray:
        """Embeddings float32 [N, E] of unit length."""
        if self._sentences is None:
            self._sentences = open_sentences(encoder_of(plan), inputs, self._device)
        self.notes += self._sentences.notes(texts)
        return self._sentences.embed(texts).numpy()

    def _describe(self, plan: Plan, rows: pa.Table, clusters: np.ndarray, inputs: Inputs) -> pa.RecordBatch:
        """The rows of explanation_clusters; a cluster that the model has no name for is called by its words."""
        texts, features = rows["text"].to_pylist(), rows["feature"].to_numpy()
        topics = name_topics(texts, clusters)
        seed = int(plan.stage.params["random_seed"])  # type: ignore[arg-type]
        samples = [sample_members(clusters, cluster, MOST_SAMPLED, seed) for cluster in range(len(topics))]
        sampled = [[texts[place] for place in sample] for sample in samples]
        if (vlm := self._get_asked(plan, inputs)) is not None:
            topics = [ask_topic(vlm, some) or words for some, words in zip(sampled, topics, strict=True)]
        columns = {
            **about(plan.stage),
            "cluster": np.arange(len(topics), dtype=np.int32),
            "topic": topics,
            "size": np.bincount(clusters).astype(np.int32),
            "sample": [features[sample].tolist() for sample in samples],
            "sample_texts": sampled,
        }
        return make_batch("explanation_clusters", columns)

    def _get_asked(self, plan: Plan, inputs: Inputs) -> Vlm | None:
        forward = asked_of(plan)
        if forward is not None and self._asked is None:
            self._asked = open_vlm(forward, inputs, self._device)
        return self._asked


def read_texts(plan: Plan, inputs: Inputs) -> pa.Table:
    """The texts that a map shows, each way to explain a feature once: those of two votes may be one; sorted."""
    table, stages = texts_of(plan)
    found = [batch for stage in stages for batch in inputs.table(stage, table, TEXT_COLUMNS)]
    if not found:
        return pa.table({name: [] for name in TEXT_COLUMNS})
    rows = pa.Table.from_batches(found)
    rows = rows.filter(pc.is_valid(rows["text"]))
    return rows.group_by(list(TEXT_COLUMNS)).aggregate([]).sort_by([(name, "ascending") for name in TEXT_COLUMNS])


def _map_parts(
    plan: Plan, rows: pa.Table, clusters: np.ndarray, places: np.ndarray, vectors: np.ndarray
) -> Iterator[Part]:
    encoder = encoder_of(plan)
    for start in range(0, len(rows), BATCH_ROWS):
        some = slice(start, start + BATCH_ROWS)
        of_texts = rows.slice(start, BATCH_ROWS)
        columns = {
            **about(plan.stage),
            **{name: of_texts[name].combine_chunks() for name in TEXT_COLUMNS},
            "encoder": encoder.name,
            "encoder_revision": encoder.revision,
            "cluster": clusters[some].astype(np.int32),
            "x": places[some, 0],
            "y": places[some, 1],
            "embedding": make_vectors(vectors[some]),
        }
        yield Part(plan.digest, "explanation_map", make_batch("explanation_map", columns))


def open_worker(setting: Setting, inputs: Inputs) -> MapWorker:
    """Nothing is loaded before there is work."""
    return MapWorker(setting)
