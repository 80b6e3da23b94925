"""From images to scores through every stage: figures recomputed from the published lists, and reruns that compute nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.pipeline import RunReport
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import SHAPES, Lake, export

MODEL, SITE = "demo:clip-p8", "resid_post.-2@patch"
CLASSES = {"names": list(SHAPES), "templates": ["a {}"]}
TAU, MIN_TRUTH = 3, 0.65


class World:
    """A lake over a few labelled images."""

    def __init__(self, folder: Path) -> None:
        self.lake, self.images = Lake(folder / "lake"), export(folder / "world", 96)

    def run(self, **judge: Any) -> RunReport:
        """Every stage, the last with these fields."""
        sae = {"latents": 32, "k": 4, "steps": 20, "batch_tokens": 128, "block_images": 8}
        methods = ["miclip", "act_values", "auroc", "clip_dissect"]
        stages: dict[str, Any] = {
            "acts": {"kind": "extract", "sites": [SITE], "outputs": ["activations", "predictions"], "classes": CLASSES},
            "encoders": {"kind": "align", "reads": "acts", "batch": 32, "seed": [0, 1]},
            "sae": {"kind": "train_sae", "reads": "acts", **sae},
            "units": {
                "kind": "describe", "reads": ["acts", "encoders", "sae"], "methods": methods, "similarity": "cos",
                "tau": TAU,
                "concepts": "world:shape,colour", "labels_from": ["shape", "colour"], "min_positives": 5,
            },
            "steer": {"kind": "intervene", "reads": "units", "classes": CLASSES, "labels_from": "shape"},
            "near": {"kind": "geometry", "reads": "units", "permutations": 20, "neighbours": 3},
            "judge": {"kind": "evaluate", "reads": ["units", "steer"], "min_truth": MIN_TRUTH, **judge},
        }  # fmt: skip
        images = {"ref": f"folder:{self.images}/images", "labels": f"file:{self.images}/labels.parquet"}
        data = {"kind": "pipeline", "name": "test", "images": images, "clip": "demo:clip-rn", "stages": stages}
        return self.lake.run(PipelineSpec.model_validate(data | {"matrix": {"model": [MODEL]}}, strict=False))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["unit_kind"], row["variant"], row["seed"]


@pytest.mark.slow
def test_a_pipeline_goes_from_images_to_scores_that_follow_from_its_lists(tmp_path: Path) -> None:
    world = World(tmp_path)
    report = world.run()
    assert report.exit_code == 0, report.failures

    def rows(table: str) -> list[dict[str, Any]]:
        return world.lake.table(report, table).to_pylist()

    lists = rows("unit_concepts")
    best = {
        (*key(row), row["unit"]): (row["concept"], row["score"])
        for row in lists
        if row["direction"] == "describe" and row["rank"] == 0
    }
    truth = {(k[0], k[3]): name for k, (name, score) in best.items() if k[1] == "auroc" and score >= MIN_TRUTH}
    methods = {key(row) for row in lists} - {("neurons", "auroc", None), ("features", "auroc", None)}
    assert len(methods) == 2 * 4 and len(truth) > 6
    scores = {(*key(row), row["measure"]): row for row in rows("method_scores")}
    for kind, variant, seed in methods:
        units = [unit for k, unit in truth if k == kind]
        right = [best.get((kind, variant, seed, unit), (None,))[0] == truth[kind, unit] for unit in units]
        row = scores[kind, variant, seed, "accuracy"]
        assert (row["n"], row["value"]) == (len(units), pytest.approx(np.mean(right)))
        count = Counter(name for (k, _), name in truth.items() if k == kind)
        hits = Counter(
            row["concept"]
            for row in lists
            if key(row) == (kind, variant, seed) and row["direction"] == "localise"
            and truth.get((kind, row["unit"])) == row["concept"]
        )  # fmt: skip
        row = scores[kind, variant, seed, "precision"]
        assert (row["n"], row["value"]) == (len(count), pytest.approx(np.mean([hits[c] / TAU for c in count])))
        assert (row["ceiling"] or 1) == pytest.approx(np.mean([min(n, TAU) / TAU for n in count.values()]))
    for row in rows("intervention_summary"):
        for name in ("dacc", "offclass_dacc"):
            found = scores[(*key(row), f"{name} x{row['beta']:g} {row['error_mode']}")]
            assert found["value"] == pytest.approx(row[name]) and found["site"] == row["site"]
    tests = rows("method_tests")
    assert {row["seeds"] for row in tests if row["variant"] == "miclip in+out"} == {2}
    assert max(row["p_holm"] / row["p_value"] for row in tests if row["p_value"]) <= len(tests)
    summaries = rows("geometry_summary")
    assert {key(row) for row in summaries} == {m for m in methods if m[1] == "miclip in+out"}
    assert all(row["groups"] == 2 and row["concepts_ungrouped"] == 0 for row in summaries)

    assert world.run().exit_code == 0 and world.lake.count("shard_done") == 0
    assert world.run(min_truth=0.7).exit_code == 0
    assert world.lake.count("shard_done") == world.lake.count("shard_done", "evaluate") == 1
