"""From images to effects through every stage: units by two methods, of neurons and of an SAE, changed in one pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline import RunReport
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import SHAPES, Lake, export

MODEL, SITE = "demo:clip-p8", "resid_post.-2@patch"
CLASSES = {"names": list(SHAPES), "templates": ["a {}"]}


class World:
    """A lake over a few labelled images."""

    def __init__(self, folder: Path) -> None:
        self.lake, self.images = Lake(folder / "lake"), export(folder / "world", 48)

    def run(self, **steer: Any) -> RunReport:
        """Every stage, the last with these fields."""
        reads = ["acts", "encoders", "sae"]
        sae = {"latents": 32, "k": 4, "steps": 20, "batch_tokens": 128, "block_images": 8}
        stages: dict[str, Any] = {
            "acts": {"kind": "extract", "sites": [SITE], "outputs": ["activations", "predictions"], "classes": CLASSES},
            "encoders": {"kind": "align", "reads": "acts", "batch": 32},
            "sae": {"kind": "train_sae", "reads": "acts", **sae},
            "units": {"kind": "describe", "reads": reads, "methods": ["miclip", "act_values"], "labels_from": "shape"},
            "steer": {
                "kind": "intervene", "reads": "units", "classes": CLASSES, "labels_from": "shape", "positions": "patch",
                "error": ["keep", "drop"], "tau": 3, **steer,
            },
        }  # fmt: skip
        images = {"ref": f"folder:{self.images}/images", "labels": f"file:{self.images}/labels.parquet"}
        data = {"kind": "pipeline", "name": "test", "images": images, "clip": "demo:clip-rn", "stages": stages}
        return self.lake.run(PipelineSpec.model_validate(data | {"matrix": {"model": [MODEL]}}, strict=False))


@pytest.mark.slow
def test_a_pipeline_goes_from_images_to_effects_and_a_new_change_computes_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    report = world.run()
    assert report.exit_code == 0, report.failures
    rows = world.lake.table(report, "intervention_summary").to_pylist()
    found = {(row["unit_kind"], row["variant"], row["error_mode"], row["beta"]) for row in rows}
    assert found == {
        (kind, variant, error, beta)
        for kind, error in (("neurons", "keep"), ("features", "keep"), ("features", "drop"))
        for variant in ("miclip in+out", "act_values")
        for beta in (2.0, 0.0)
    }
    assert {row["acc_clean"] for row in rows} == {rows[0]["acc_clean"]} and rows[0]["acc_clean"] > 0.3
    kept = [row for row in rows if row["error_mode"] == "keep"]
    assert all(row["acc_ref"] == row["acc_clean"] for row in kept)
    evaluated = world.lake.table(report, "intervention_eval").to_pylist()
    lists = world.lake.table(report, "unit_concepts", direction="localise").to_pylist()
    for row in evaluated:  # the units that were changed are those that were found
        same = [
            other for other in lists
            if all(other[name] == row[name] for name in ("unit_kind", "variant", "sae")) and other["concept"] == row["class_name"]
        ]  # fmt: skip
        assert row["units"] == [other["unit"] for other in sorted(same, key=lambda other: other["rank"])[:3]]
    assert world.run().exit_code == 0 and world.lake.count("shard_done") == 0
    assert world.run(changes=[{"beta": 4.0}], shard_rows=20).exit_code == 0
    assert (
        world.lake.count("shard_done") == world.lake.count("shard_done", "intervene") == 4
    )  # three of images, one merge
