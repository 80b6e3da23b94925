"""A night with one checkpoint changed: that model's cells are made again and no others, and drift says how it moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cluster.catalog import Scope, open_catalog, verify
from cluster.changes import MADE_FROM, Changes
from cluster.gc import sweep
from cluster.nightly import Evening, conclude
from cluster.retention import Policy
from cluster.sql import run_sql
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake, export
from tests.paces import fast

ZOO = Path(__file__).parent.parent.parent / "miclip_core" / "world" / "zoo"
OTHER = "demo:clip-rn"

pytestmark = pytest.mark.slow


def spec(world: Path, model: str) -> PipelineSpec:
    acts = {
        "kind": "extract",
        "sites": ["resid_post.-2@patch"],
        "outputs": ["activations", "predictions"],
        "classes": {"names": ["circle", "square", "star"], "templates": ["a {}"]},
        "model": model,
    }
    sae = {"reads": "acts", "latents": 32, "k": 4, "steps": 30, "batch_tokens": 128, "block_images": 8}
    stages = {
        "acts": acts,
        "embeds": {"kind": "extract", "outputs": ["embeddings"], "model": [model, OTHER]},
        "sae": {"kind": "train_sae", **sae},
        "features": {"kind": "sae_features", "reads": ["sae", "acts"]},
    }
    data = {
        "kind": "pipeline",
        "name": "zoo",
        "images": {"ref": f"folder:{world}/images", "labels": f"file:{world}/labels.parquet"},
        "stages": stages,
    }
    return PipelineSpec.model_validate(data, strict=False)


class Nights:
    """Two nights, between which the weights of a copied model are nudged, and how many shards each computed."""

    def __init__(self, folder: Path) -> None:
        world, copied = export(folder / "world", 40), shutil.copytree(ZOO / "clip-p8", folder / "model")
        self.model = f"open_clip:clip-p8@file:{copied}"
        self.lake = Lake(folder / "lake")
        self.evenings: list[Evening] = []
        self.made: list[set[Any]] = []
        self.night(world)
        weights = load_file(copied / "open_clip_model.safetensors")
        nudged = {name: value + 0.3 * value.std() if value.ndim == 2 else value for name, value in weights.items()}
        nudged["visual.proj"] = -nudged["visual.proj"]  # every image is now least like its class
        (copied / "open_clip_model.safetensors").unlink()
        save_file(nudged, copied / "open_clip_model.safetensors")
        self.night(world)

    def night(self, world: Path) -> None:
        report = self.lake.run(spec(world, self.model))
        assert report.exit_code == 0, report.failures
        self.made.append({(e["kind"], e["subject"]) for e in self.lake.events if e["event"] == "published"})
        self.evenings.append(conclude(self.lake.store, report.state.run, None, fast()))

    @property
    def changes(self) -> Changes:
        found = self.evenings[1].changes
        assert found is not None
        return found


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights(tmp_path_factory.mktemp("zoo"))


def test_only_the_changed_model_is_computed_again(nights: Nights) -> None:
    assert (OTHER in {subject for _, subject in nights.made[0]}) and nights.made[1]
    assert {subject for _, subject in nights.made[1]} == {nights.model}
    assert [(c.subject, c.change, c.why) for c in nights.changes.subjects] == [(nights.model, "changed", ("weights",))]


def test_files_that_were_only_touched_change_no_figures(nights: Nights, tmp_path: Path) -> None:
    lake = Lake(shutil.copytree(nights.lake.uri, tmp_path / "lake"))
    world = Path(nights.lake.uri).parent / "world"
    for file in (*world.rglob("*.png"), *(Path(nights.lake.uri).parent / "model").iterdir()):
        file.touch()
    report = lake.run(spec(world, nights.model))
    assert lake.count("published", "inspect") == lake.count("published", "index_images") == 1
    assert lake.count("published", "extract") == 0
    changes = conclude(lake.store, report.state.run, None, fast()).changes
    assert changes is not None
    found = {(change.cells[0].split("/")[0], change.why) for change in changes.subjects}
    assert found <= {("features", (MADE_FROM,))}  # which name the index itself, not what is in it


def test_drift_has_its_figures_its_agreement_and_its_features(nights: Nights) -> None:
    catalog = open_catalog(nights.lake.store)
    rows = run_sql(catalog, "SELECT * FROM drift").read_all().to_pylist()
    assert {row["subject"] for row in rows} == {nights.model}
    (agreement,) = [row for row in rows if row["item"] == "agreement"]
    assert 0 <= agreement["after"] < 1.0
    features = [row for row in rows if row["aspect"] == "feature"]
    assert {row["item"] for row in features} == {"decoder_cosine", "code_correlation"}
    assert sum(row["item"] == "decoder_cosine" for row in features) == 32
    assert all(-1.0001 <= row["similarity"] <= 1.0001 for row in features)
    assert nights.evenings[1].drift.notes == []


def test_images_are_read_through_an_index_whose_leftovers_were_swept(nights: Nights, tmp_path: Path) -> None:
    """Other stages find rows of an index by what its own rounds left, so that is no leftover."""
    lake = Lake(shutil.copytree(nights.lake.uri, tmp_path / "lake"))
    found = sweep(lake.store, Policy(keep_runs=1), fast())
    assert found.dropped == ("zoo-00001",) and found.doomed
    assert not [trash for trash in found.leftovers if trash.about.startswith("index_images")]
    assert [verdict for verdict in verify(open_catalog(lake.store, Scope(all=True))) if verdict.problem] == []
    world = Path(nights.lake.uri).parent / "world"
    more = spec(world, nights.model)
    embeds = more.stages["embeds"].model_copy(update={"dtype": "bf16"})
    report = lake.run(more.model_copy(update={"stages": {**more.stages, "embeds": embeds}}))
    assert report.exit_code == 0, report.failures
    assert lake.count("published", "extract") == 2
