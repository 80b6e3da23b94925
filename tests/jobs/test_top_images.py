"""Top images of features: by rank, however their rows lie, and seen as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from cluster.inputs import StoreInputs
from cluster.ledger import load_plan
from jobs.activations import forward_of
from jobs.top_images import read_top_images, read_views
from miclip_core.zoo.load import load_model
from schemas.pipeline_spec import PipelineSpec
from schemas.refs import ModelRef
from tests.lakes import Lake, export


class Rows:
    """The rows of one table, in batches of two."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self.asked: Any = None

    def table(self, stage: str, table: str, columns: Sequence[str], between: Any) -> Iterator[pa.RecordBatch]:
        assert (stage, table) == ("s", "sae_top_images")
        self.asked = between
        (_, ranges) = between
        kept = [row for row in self._rows if any(a <= row["feature"] < b for a, b in ranges)]
        for start in range(0, len(kept), 2):
            yield pa.RecordBatch.from_pylist([{name: row[name] for name in columns} for row in kept[start : start + 2]])


def row(feature: int, rank: int, uri: str | None = "u") -> dict[str, Any]:
    image = 10 * feature + rank
    codes = [float(image), 0.0, 1.0, 2.0, 3.0, 4.0]
    return {
        "feature": feature, "rank": rank, "image_id": f"id{image}", "image_index": image, "uri": uri, "map": codes, "grid_h": 2,
        "grid_w": 3, "value": 0.0,
    }  # fmt: skip


def test_the_first_images_of_a_feature_come_by_rank() -> None:
    rows = Rows([row(4, 2), row(1, 1), row(4, 0), row(1, 0, None), row(2, 0), row(4, 1), row(7, 0)])
    found = read_top_images(rows, "s", [1, 2, 4, 5], 2)  # type: ignore[arg-type]
    assert rows.asked == ("feature", [(1, 3), (4, 6)])
    assert {feature: [image.image_id for image in images] for feature, images in found.items()} == {
        1: ["id10", "id11"],
        2: ["id20"],
        4: ["id40", "id41"],
    }
    assert [image.uri for image in found[1]] == [None, "u"] and found[4][1].image_index == 41
    assert found[4][1].map_IJ.tolist() == [[41, 0, 1], [2, 3, 4]]


def test_views_are_those_of_the_model_and_what_is_gone_is_said(tmp_path: Path) -> None:
    images = export(tmp_path, 6)
    stage = {"kind": "extract", "outputs": ["embeddings"], "batch_size": 4, "on_changed": "quarantine"}
    spec = {
        "kind": "pipeline", "name": "t", "images": {"ref": f"folder:{images}/images"}, "matrix": {"model": ["demo:clip-p8"]},
        "stages": {"acts": stage},
    }  # fmt: skip
    lake = Lake(tmp_path / "lake")
    report = lake.run(PipelineSpec.model_validate(spec, strict=False))
    uris = {row["image_index"]: row["uri"] for row in lake.table(report, "images").to_pylist()}
    (digest,) = [state.digest for state in report.state.stages if state.kind == "extract"]
    model = load_model(ModelRef.parse("demo:clip-p8"))
    forward = forward_of(load_plan(lake.store, digest))
    Path(uris[4]).unlink()
    views, problems = read_views(StoreInputs(lake.store), forward, model.facts.geometry, [4, 1, 3, 1], threads=2)
    assert sorted(views) == [1, 3] and [problem.image.image_index for problem in problems] == [4]
    for index, view in views.items():
        with Image.open(uris[index]) as image:
            assert view.equal(model.geometry(image.convert("RGB")))
