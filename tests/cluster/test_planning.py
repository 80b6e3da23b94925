"""What `miclip plan` counts: of stages that were begun, with the cut that they were begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.cli.planning import lines_of, make_report
from cluster.cost import Terms
from cluster.cost_log import COSTS, OPEN, Rate, RunCosts
from cluster.ledger import freeze_plan
from cluster.planned import plan_pipeline
from cluster.stores.base import Store, make_store
from schemas import layout
from schemas.job_files import as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import DoneMarker
from schemas.selftest_specs import SelftestSpec
from tests.corridor import selftest

PAST = {"map": ("row", 2.0), "merge": ("row", 5.0), OPEN: ("worker", 10.0)}
"""Seconds that a row of each round took, and a worker to open."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A past run that took so long, and a stage of 100 rows that was begun in shards of one row, 30 of which are done."""
    store = make_store(str(tmp_path))
    fields: dict[str, Any] = {"kind": "selftest", "subject": "selftest", "on_gpu": False, "shards": 7}
    rates = tuple(Rate(round=name, per=per, seconds=took, **fields) for name, (per, took) in PAST.items())
    store.create(layout.run_key("past-00001", COSTS), RunCosts(rates=rates).canonical_json().encode())
    ((plan, _),) = selftest(rows=100, shard_rows=1)
    freeze_plan(store, plan)
    for shard in range(30):
        marker = DoneMarker(shard=shard, round=0, parts=(), artifacts=())
        store.create(layout.done_key(plan.digest, shard), marker.canonical_json().encode())
    return store


@pytest.mark.parametrize("shard_rows", [1, 10, 100])
def test_what_is_left_of_a_stage_costs_the_same_whatever_the_spec_cuts_by_now(store: Store, shard_rows: int) -> None:
    """Thirty shards of one row are done, however few shards the spec would make of it today."""
    spec = as_pipeline(SelftestSpec(rows=100, shard_rows=shard_rows))
    report = make_report(plan_pipeline(spec, store), store, Terms())
    (stage,) = report["stages"]
    assert (stage["shards"], stage["shards_left"]) == (101, 71)
    assert report["total"]["cpu_hours"] == pytest.approx((70 * 2 + 5 + 10 * stage["workers"]) / 3600)


def test_what_reads_a_cell_that_can_never_be_planned_can_never_be_either(tmp_path: Path) -> None:
    """And does not count among those that an inspection would bring on."""
    stages = {
        "acts": {"kind": "extract", "sites": ["resid_post.3@patch"], "outputs": ["activations"]},
        "sae": {"kind": "train_sae", "reads": "acts", "latents": 64, "k": 4},
        "features": {"kind": "sae_features", "reads": "sae"},
    }
    data = {"kind": "pipeline", "name": "p", "images": {"ref": "world:seed=0,n=400"}, "stages": stages}
    spec = PipelineSpec.model_validate({**data, "matrix": {"model": ["demo:clip-p8", "demo:nope"]}}, strict=False)
    store = make_store(str(tmp_path))
    report = make_report(plan_pipeline(spec, store), store, Terms())
    states = {line["name"]: line["state"] for line in lines_of(report, by_stage=False)}
    for stage in stages:
        assert states[f"{stage}/demo:clip-p8"] == "not inspected yet"
        assert states[f"{stage}/demo:nope"] == "cannot be planned"
    assert [cell["cell"] for cell in report["not_planned"] if cell["refused"]] == ["acts/demo:nope"]
