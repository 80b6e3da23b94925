"""What a budget allows: images of a block, tiles of SAEs that are wider than was assumed, and what is said where it does not do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.planned import PlannedPipeline, plan_pipeline
from jobs.kinds import get_kind
from jobs.mine_rosetta.members import Member, find_members
from jobs.mine_rosetta.pair import Pair
from jobs.mine_rosetta.plan import member_of, unit_member_of
from schemas.errors import BadSpec
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan
from tests.jobs.mine_rosetta.lake_of_maps import RESNET, VIT, make_spec
from tests.lakes import Lake

SAE_SITE = "mlp_act.-1@patch"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Models that are inspected and an index of 72 images."""
    lake, spec = Lake(tmp_path_factory.mktemp("budget") / "lake"), make_spec().model_dump(mode="json")
    spec["stages"] = {"acts": {"kind": "extract", "outputs": ["embeddings"], "batch_size": 64}}
    lake.run(PipelineSpec.model_validate(spec, strict=False))
    return lake


def planned(lake: Lake, latents: int = 2000, **fields: Any) -> PlannedPipeline:
    """Neurons of both models, and an SAE of the ViT that nobody has trained yet."""
    data = make_spec(anchors=[VIT]).model_dump(mode="json")
    of_vit = {"batch_size": 16, "geometry": "square", "model": [VIT]}
    acts = {"kind": "extract", "sites": [SAE_SITE], "outputs": ["activations"], **of_vit}
    sae = {"kind": "train_sae", "reads": "acts", "model": [VIT], "latents": [latents], "k": [4], "steps": 30}
    shared = {**data["stages"]["shared"], "reads": ["sae"], "model": [VIT, RESNET], **fields}
    data["stages"] = {"acts": acts, "sae": sae, "shared": shared}
    return plan_pipeline(PipelineSpec.model_validate(data, strict=False), lake.store)


def by_output(found: PlannedPipeline, output: str) -> list[Plan]:
    mined = {plan.digest: plan for cell in found.cells for plan in cell.plans if plan.stage.kind == "mine_rosetta"}
    return [plan for plan in mined.values() if plan.stage.output == output]


def test_the_budget_that_is_named_is_enough_and_little_less_is_not(lake: Lake) -> None:
    with pytest.raises(BadSpec, match=r"take .* GiB; expected at most budget_gb: 0.001; give budget_gb") as error:
        planned(lake, budget_gb=0.001)
    named = float(re.findall(r"give budget_gb: ([\d.]+)", str(error.value))[0])
    with pytest.raises(BadSpec, match="give budget_gb"):
        planned(lake, budget_gb=0.3 * named)
    for _ in range(3):  # of each pair that does not fit
        try:
            return assert_planned(planned(lake, budget_gb=named))
        except BadSpec as refused:
            larger = float(re.findall(r"give budget_gb: ([\d.]+)", str(refused))[0])
            assert larger > named
            named = larger
    pytest.fail("no budget that was named was enough")


def assert_planned(found: PlannedPipeline) -> None:
    assert len(by_output(found, "pair")) == 4


@pytest.mark.parametrize("budget", [2.0, 0.6])
def test_maps_of_neurons_and_latents_that_are_seen_together_are_stated_and_within_their_share(
    lake: Lake, budget: float
) -> None:
    found = planned(lake, latents=65_536, budget_gb=budget, batch_size=16)
    plans = [plan for plan in by_output(found, "units") if plan.stage.subject == VIT]
    members: list[Member] = [unit_member_of(plan) for plan in plans]
    assert [member.width for member in members] == [384, 65_536]
    (block,) = {int(str(plan.effort["images_at_once"])) for plan in plans}
    numbers = 3 * sum(member.width * 64 for member in members)
    assert 4 * block * numbers <= 0.3 * budget * 2**30 < 8 * block * numbers
    estimates = [get_kind("mine_rosetta").estimate(plan, found.known) for plan in plans]
    assert sum(e.memory for e in estimates) >= 4 * block * numbers
    assert estimates[1].bytes == 100 * 65_536


class Latents:
    """The units of an SAE of so many latents, as its stage would publish them."""

    def __init__(self, site: str, latents: int) -> None:
        self._site, self._latents = site, latents

    def table(self, stage: str, table: str, *args: Any) -> Iterator[pa.RecordBatch]:
        n = self._latents
        numbers = {name: np.ones(n) for name in ("mean", "sd", "kurtosis", "active")}
        never = {name: np.zeros(n, bool) for name in ("is_dead", "is_rare")}
        yield pa.record_batch({"site": pa.repeat(self._site, n), "unit": np.arange(n), **numbers, **never})


def test_an_sae_that_is_wider_than_was_assumed_is_refused_where_it_does_not_fit_with_the_budget_that_would(
    lake: Lake,
) -> None:
    def opened(**fields: Any) -> Pair:
        pairs = by_output(planned(lake, **fields), "pair")
        (plan,) = [p for p in pairs if member_of(p).sae and p.stage.inputs["a"] == p.stage.inputs["b"]]
        inputs: Any = Latents(member_of(plan).sites[0].site, 6000)
        return Pair.of(plan, inputs)

    with pytest.raises(BadSpec, match=r"has 6000 latents, and 2000 were assumed .* expected at most 0.20") as error:
        opened(budget_gb=0.2)
    (named,) = re.findall(r"give budget_gb: ([\d.]+)", str(error.value))
    assert len(opened(budget_gb=float(named)).a) == 6000
    assert len(opened(budget_gb=0.2, latents=6000).a) == 6000  # cut as small as it takes


def test_models_that_resize_differently_share_no_view_but_the_square(lake: Lake) -> None:
    found = planned(lake, geometry="square")
    cell = next(c.cell for c in found.cells if c.cell.zoo and c.cell.model == RESNET)
    mixed = dict(found.known.models)
    other = "squash" if mixed[VIT].geometry.resize != "squash" else "shortest"
    cell = replace(cell, spec=cell.spec.model_copy(update={"geometry": "model"}))
    assert find_members(cell, found.known, RESNET)
    mixed[VIT] = mixed[VIT].model_copy(update={"geometry": mixed[VIT].geometry.model_copy(update={"resize": other})})
    known = replace(found.known, models=mixed)
    with pytest.raises(BadSpec, match=f"{RESNET} resizes by .*, {VIT} by {other}, .* use geometry: square"):
        find_members(cell, known, RESNET)
    square = replace(cell, spec=cell.spec.model_copy(update={"geometry": "square"}))
    assert find_members(square, known, RESNET)
