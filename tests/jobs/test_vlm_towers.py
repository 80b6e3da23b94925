"""The tower of a vision-language model goes through inspect, extract, train_sae and sae_features as any other model does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.activations import forward_of
from jobs.models import open_vlm
from miclip_core.explain.vlm import Vlm, load_vlm
from miclip_core.world.render import render
from miclip_core.world.scene import HELD_OUT_INDICES, World
from schemas.errors import NoLanguageModel, UnknownSite, WeightsMissing
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan
from schemas.refs import ModelRef
from tests.lakes import Lake
from tests.miclip_core.explain import vlms

pytestmark = pytest.mark.slow
N, SITE = 24, "resid_post.1@patch"
ACTS = {"kind": "extract", "sites": [SITE], "outputs": ["activations"], "round_to": "fp32", "batch_size": 8}
SAE = {
    "kind": "train_sae", "latents": [48], "k": [4], "steps": 20, "batch_tokens": 64, "block_images": 4, "round_to": "fp32",
}  # fmt: skip
FEATURES = {"kind": "sae_features", "top_k": 2, "min_positives": 3, "round_to": "fp32"}
STORED = {"acts": ACTS, "sae": {**SAE, "reads": "acts"}, "features": {**FEATURES, "reads": ["sae", "acts"]}}
LIVE = {"sae": {**SAE, "sites": [SITE]}, "features": {**FEATURES, "reads": "sae"}}


def spec(model: str, **stages: Any) -> PipelineSpec:
    data = {
        "kind": "pipeline", "name": "t", "images": {"ref": f"world:seed=0,n={N}"}, "matrix": {"model": [model]},
        "stages": stages,
    }  # fmt: skip
    return PipelineSpec.model_validate(data, strict=False)


def run(lake: Lake, ref: ModelRef, stages: dict[str, Any]) -> RunReport:
    report = lake.run(spec(str(ref), **stages))
    assert report.exit_code == 0, report.failures
    return report


def plans(lake: Lake, ref: ModelRef, **stages: Any) -> list[Plan]:
    return [plan for _, plan, _ in plan_pipeline(spec(str(ref), **stages), lake.store).plans()]


@pytest.fixture(scope="module", params=vlms.KINDS)
def ref(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return vlms.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def lake(ref: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def report(lake: Lake, ref: ModelRef) -> RunReport:
    return run(lake, ref, STORED)


def tokens(vlm: Vlm) -> torch.Tensor:
    """Patches of block 1 by a hook of the library's own pass; the demo world's images, of 64 pixels, resized."""
    rendered = [render(World(seed=0), HELD_OUT_INDICES.start + index)[0] for index in range(N)]
    images = [vlm.tower.preprocess(Image.fromarray(pixels)) for pixels in rendered]
    blocks = next(part for part in vlm.tower.module.modules() if isinstance(part, torch.nn.ModuleList))
    seen: list[torch.Tensor] = []
    handle = blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    vlm.module.get_image_features(pixel_values=torch.stack(images))
    handle.remove()
    return seen[0][:, vlm.tower.facts.n_prefix :].flatten(0, 1)


def test_activations_are_what_the_librarys_whole_model_computes(lake: Lake, ref: ModelRef, report: RunReport) -> None:
    rows = lake.table(report, "activations")
    ours = np.array(rows["act"].to_pylist(), np.float32)
    np.testing.assert_allclose(ours, tokens(load_vlm(ref)).numpy(), atol=1e-4)


def test_features_are_described_from_stored_tokens_and_from_live_ones(
    lake: Lake, ref: ModelRef, report: RunReport
) -> None:
    stored, live = report, run(lake, ref, LIVE)
    for table in ("sae_top_images", "sae_codes"):
        found = [lake.table(which, table).drop_columns(["stage"]) for which in (stored, live)]
        assert found[0].equals(found[1]) and len(found[0]) >= 48, table


def test_the_row_of_the_model_tells_all_that_was_found(lake: Lake, ref: ModelRef, report: RunReport) -> None:
    (row,) = lake.table(report, "models").to_pylist()
    facts = load_vlm(ref).tower.facts
    assert json.loads(row["facts"]) == facts.model_dump(mode="json") and row["embed_dim"] == facts.embed_dim


def test_a_worker_gets_the_whole_model_or_none_that_changed(lake: Lake, ref: ModelRef, report: RunReport) -> None:
    (acts,) = [plan for plan in plans(lake, ref, **STORED) if plan.stage.output == "activations"]
    vlm = open_vlm(forward_of(acts), StoreInputs(lake.store), "cpu")
    assert vlm.tower.facts == load_vlm(ref).tower.facts and vlm.dtype == torch.float32
    changed = forward_of(acts).model_copy(update={"effort": {**acts.effort, "files": "0" * 64}})
    with pytest.raises(WeightsMissing, match="changed since it was inspected"):
        open_vlm(changed, StoreInputs(lake.store), "cpu")
    other = forward_of(acts).model_copy(update={"model": "demo:clip-p8", "effort": {**acts.effort, "revision": None}})
    with pytest.raises(NoLanguageModel):
        open_vlm(other, StoreInputs(lake.store), "cpu")


def test_image_embeddings_are_refused_at_planning_where_there_are_none(
    lake: Lake, ref: ModelRef, report: RunReport
) -> None:
    asked = {"acts": {"kind": "extract", "sites": [], "outputs": ["embeddings"]}}
    if load_vlm(ref).tower.facts.embed_dim is not None:
        assert "embeddings" in [plan.stage.output for plan in plans(lake, ref, **asked)]
        return
    with pytest.raises(UnknownSite, match="pools nothing, so it has no image embedding"):
        plans(lake, ref, **asked)


def test_sites_says_who_reads_the_tower(lake: Lake, ref: ModelRef, report: RunReport) -> None:
    language = load_vlm(ref).language
    shown = CliRunner().invoke(app, ["sites", str(ref), "--store", lake.uri])
    said = " ".join(shown.stdout.split())
    assert f"of a {language.model_type}, whose language model (2 blocks" in said, shown.output
    assert f"reads {language.reads} as {language.image_tokens} tokens an image" in said
    found = json.loads(CliRunner().invoke(app, ["sites", str(ref), "--store", lake.uri, "--json"]).stdout)
    assert found["language"] == language.model_dump(mode="json") and found["sites"][0]["path"] == "embed"
