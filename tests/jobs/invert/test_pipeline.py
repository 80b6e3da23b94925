"""From mining to an inversion and its edit in one run: what is found follows the units that were really mined."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.pipeline import RunReport
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake

GENERATOR, VIT = "demo:generator", "demo:clip-p8"
STAGES: dict[str, Any] = {
    "mine": {
        "kind": "mine_rosetta", "images": {"ref": f"generated:{GENERATOR},seed=0,n=64"}, "model": [GENERATOR, VIT],
        "sites": ["act.4", "mlp_act.1"], "entries": 0,
    },
    "found": {
        "kind": "invert", "generator": GENERATOR, "reads": "mine", "images": {"ref": "world:seed=4,n=2"}, "steps": 30,
        "reconstruction": 0.0, "similarity": "image_cosine", "starts": 2,
    },
    "moved": {
        "kind": "invert", "generator": GENERATOR, "reads": ["mine", "found"], "images": {"ref": "world:seed=4,n=2"},
        "steps": 5, "edit": "zoom", "starts": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, RunReport]:
    lake = Lake(tmp_path_factory.mktemp("lake"))
    spec = {"kind": "pipeline", "name": "whole", "resources": {"workers": 1}, "stages": STAGES}
    report = lake.run(PipelineSpec.model_validate(spec, strict=False))
    assert report.exit_code == 0, report.failures
    return lake, report


@pytest.mark.slow
def test_maps_of_mined_buddies_become_more_alike_and_an_edit_goes_on_from_there(ran: tuple[Lake, RunReport]) -> None:
    lake, report = ran
    buddies = [b for b in lake.table(report, "rosetta_buddies").to_pylist() if b["model_a"] != b["model_b"]]
    first = [b for b in buddies if b["rank_ab"] == b["rank_ba"] == 0 and not b["is_below_null"]]
    rows = lake.table(report, "rosetta_inversions").to_pylist()
    inverted, zoomed = ([row for row in rows if (row["edit"] is None) == none] for none in (True, False))
    assert len(inverted) == 4 and len(zoomed) == 2
    assert {row["pairs"] for row in inverted} == {len(first)} and len(first) > 3
    assert all(row["act_sim_after"] > row["act_sim_before"] + 0.1 for row in inverted)
    units = {b["unit_a"] if b["model_a"] == GENERATOR else b["unit_b"] for b in first}
    assert {row["pairs"] for row in zoomed} == {len(units)}
    assert {row["edit"] for row in zoomed} == {"zoom 2"}


@pytest.mark.slow
def test_running_it_again_computes_nothing(ran: tuple[Lake, RunReport]) -> None:
    lake, _ = ran
    spec = {"kind": "pipeline", "name": "again", "resources": {"workers": 2}, "stages": STAGES}
    report = lake.run(PipelineSpec.model_validate(spec, strict=False))
    assert report.exit_code == 0 and lake.count("shard_done") == 0
