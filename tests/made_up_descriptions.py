"""Publishes stages of describe, intervene, align and train_sae whose rows and weights a test made up, as the kinds would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from cluster.executor import SerialExecutor
from cluster.inputs import StoreInputs
from cluster.ledger import publish
from cluster.parquet import PartEncoder, sha256
from cluster.stores.base import Store
from jobs.encoders import WEIGHTS as ENCODER
from jobs.sae_files import WEIGHTS as SAE
from miclip_core.align.encoder import NeuronEncoder, save_encoder
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import save_sae
from schemas import layout
from schemas.align import AlignSettings, EncoderConfig
from schemas.plans import DoneMarker, Plan, Resources, Round, StageSpec, StoredArtifact, StoredPart
from schemas.sae import SaeConfig
from schemas.tables import TABLES
from tests.corridor import Ran, run

Row = dict[str, Any]


def publish_rows(
    store: Store, stage: StageSpec, tables: Mapping[str, Sequence[Row]] = {}, artifacts: Mapping[str, bytes] = {}
) -> Plan:
    """Store and publish rows and weights as the one shard of a stage; stage and model are filled in."""
    plan = Plan(stage=stage, rounds=(Round(name="score", rows=1, shard_rows=1),), worker="made up")
    (shard,) = plan.all_shards()
    parts, stored = [], []
    for table, rows in tables.items():
        encoder = PartEncoder(TABLES[table])
        if rows:
            full = [{"stage": stage.digest, "model": stage.subject, **row} for row in rows]
            encoder.add(pa.RecordBatch.from_pylist(full, schema=TABLES[table].schema))
        for n, part in enumerate(encoder.finish()):
            key, data = layout.part_key(table, stage, shard, n), part.read()
            store.create(key, data)
            parts.append(StoredPart(table=table, key=key, rows=part.rows, bytes=len(data), sha256=sha256(data)))
    for name, data in artifacts.items():
        key = layout.artifact_key(stage.digest, 0, name)
        store.create(key, data)
        stored.append(StoredArtifact(name=name, key=key, bytes=len(data), sha256=sha256(data)))
    marker = DoneMarker(shard=0, round=0, parts=tuple(parts), artifacts=tuple(stored))
    store.create(layout.done_key(stage.digest, 0), marker.canonical_json().encode())
    publish(store, plan, list(tables), list(artifacts))
    return plan


def describe_stage(
    variant: str, concepts: Sequence[str], model: str, site: str = "resid_post.3@patch", seed: int | None = None,
    tau: int = 5, sae: str | None = None, **inputs: str,
) -> StageSpec:  # fmt: skip
    """What a describe stage is called; its method is the first word of the variant."""
    return StageSpec(
        kind="describe",
        method=1,
        subject=model,
        output=variant.split()[0],
        params={
            "site": site,
            "unit_kind": "neurons" if sae is None else "features",
            "variant": variant,
            "seed": seed,
            "concepts": list(concepts),
            "tau": tau,
        },
        inputs={**inputs, **({} if sae is None else {"sae": sae})},
    )


def about_units(stage: StageSpec) -> Row:
    """The columns that say whose units by which variant."""
    params, sae = stage.params, stage.inputs.get("sae")
    found = {name: params[name] for name in ("site", "unit_kind", "variant", "seed")}
    return {**found, "method": stage.output, "sae": None if sae is None else f"sae:{sae}"}


def publish_scores(store: Store, stage: StageSpec, scores_UM: Sequence[Sequence[float | None]]) -> Plan:
    """A describe stage whose lists follow from scores of units x concepts, by sorting; None is no score."""
    tau: Any = stage.params["tau"]
    known = {(u, m): s for u, row in enumerate(scores_UM) for m, s in enumerate(row) if s is not None}
    rows = []
    for unit in range(len(scores_UM)):
        best = sorted((-s, m) for (u, m), s in known.items() if u == unit)[:tau]
        rows += [_row(stage, "describe", unit, m, rank, -s) for rank, (s, m) in enumerate(best)]
    for concept in range(len(scores_UM[0])):
        best = sorted((-s, u) for (u, m), s in known.items() if m == concept)[:tau]
        rows += [_row(stage, "localise", u, concept, rank, -s) for rank, (s, u) in enumerate(best)]
    return publish_rows(store, stage, {"unit_concepts": rows})


def _row(stage: StageSpec, direction: str, unit: int, concept: int, rank: int, score: float) -> Row:
    concepts: Any = stage.params["concepts"]
    of_list = {"direction": direction, "unit": unit, "concept_id": concept, "concept": concepts[concept]}
    return {**about_units(stage), **of_list, "rank": rank, "score": score, "is_dead": False}


def publish_encoder(store: Store, model: str, site: str, columns_DE: Sequence[Sequence[float]]) -> str:
    """The digest of an align stage whose encoder puts channel i of a site where row i says."""
    W = torch.tensor(columns_DE, dtype=torch.float32).T.contiguous()
    config = EncoderConfig(
        settings=AlignSettings(), d=W.shape[1], dim=W.shape[0], logit_scale=1.0, steps=1, model=model, site=site
    )
    stage = StageSpec(kind="align", method=1, subject=model, output="encoder", params={"site": site})
    publish_rows(store, stage, artifacts={ENCODER: save_encoder(NeuronEncoder(config, W))})
    return stage.digest


def publish_sae(store: Store, model: str, site: str, decoder_UD: Sequence[Sequence[float]]) -> str:
    """The digest of a train_sae stage with these decoder rows."""
    rows = torch.tensor(decoder_UD, dtype=torch.float32)
    config = SaeConfig(arch="topk", d=rows.shape[1], latents=len(rows), k=1, model=model, site=site)
    sae = Sae(config, rows.clone(), torch.zeros(len(rows)), rows, torch.zeros(rows.shape[1]))
    stage = StageSpec(kind="train_sae", method=1, subject=model, output="sae", params={"site": site})
    publish_rows(store, stage, artifacts={SAE: save_sae(sae)})
    return stage.digest


def run_plans(store: Store, plans: Sequence[Plan]) -> Ran:
    """Run stages to their published tables, in this process."""
    return run([(plan, Resources(workers=1)) for plan in plans], store, SerialExecutor(store.uri))


def rows_of(store: Store, plan: Plan, table: str) -> list[Row]:
    """The rows of a published table of a stage; none if it has published no part of it."""
    return [row for batch in StoreInputs(store).table(plan.digest, table) for row in batch.to_pylist()]
