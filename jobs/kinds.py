"""Which module plans and which works, per kind: one literal dict, loaded only when used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from jobs.protocol import Kind, OpenWorker
from schemas.plans import Plan

KINDS: dict[str, str] = {
    "selftest": "jobs.selftest",
    "inspect": "jobs.inspect",
    "index_images": "jobs.index_images",
    "extract": "jobs.extract",
    "train_sae": "jobs.train_sae",
    "import_sae": "jobs.import_sae",
    "measure_sae": "jobs.measure_sae",
    "sae_features": "jobs.sae_features",
    "probe": "jobs.probe",
    "align": "jobs.align",
    "geometry": "jobs.geometry",
    "evaluate": "jobs.evaluate",
    "describe": "jobs.describe",
    "intervene": "jobs.intervene",
    "trace_errors": "jobs.trace_errors",
    "attention_maps": "jobs.attention_maps",
    "mine_rosetta": "jobs.mine_rosetta",
    "invert": "jobs.invert",
    "explain": "jobs.explain",
    "score_explanations": "jobs.score_explanations",
    "map_explanations": "jobs.map_explanations",
    "explorer": "jobs.make_explorer",
}
SEVERAL = frozenset({"mine_rosetta"})
"""Kinds whose works do different things with one subject, which their titles tell apart: the units of a model, and the model
with itself."""
READ_ACROSS = frozenset({"index_images"})
"""Kinds whose unpublished artifacts are read by stages of other kinds too (`cluster/image_reader.py`), so that they stay."""


@cache
def get_kind(kind: str) -> Kind:
    """The planning side of a kind; loads no torch."""
    return cast(Kind, import_module(f"{KINDS[kind]}.plan"))


def get_opener(kind: str) -> OpenWorker:
    """What opens a worker of this kind; may load torch."""
    return cast(OpenWorker, import_module(f"{KINDS[kind]}.work").open_worker)


def get_tables(plan: Plan, round_number: int) -> tuple[str, ...]:
    """Tables that one round of a plan writes."""
    return get_kind(plan.stage.kind).TABLES[plan.stage.output].get(plan.rounds[round_number].name, ())


def get_all_tables(plan: Plan) -> tuple[str, ...]:
    """Tables that a plan publishes, without repeats."""
    rounds = get_kind(plan.stage.kind).TABLES[plan.stage.output].values()
    return tuple(dict.fromkeys(table for tables in rounds for table in tables))


def get_artifacts(plan: Plan) -> tuple[str, ...]:
    """Artifacts that a plan publishes."""
    return get_kind(plan.stage.kind).ARTIFACTS[plan.stage.output]
