"""Columns of a table: in its order and types, and one value stands for all rows."""

from __future__ import annotations

import pyarrow as pa

from jobs.rows import make_batch
from schemas.tables import TABLES


def test_one_text_number_or_nothing_is_repeated_on_every_row() -> None:
    schema = TABLES["geometry_points"].schema
    columns = {
        "unit": [3, 4], "x": [0.5, None], "y": 1, "sae": None, "seed": 7, "stage": "a" * 20, "model": "demo:vit",
        "site": "logits", "unit_kind": "neurons", "method": "miclip", "variant": "miclip in", "group": "colour", "concept": ["red", "blue"],
    }  # fmt: skip
    batch = make_batch("geometry_points", columns)
    assert batch.schema == schema and batch["x"].type == pa.float32()
    both = {"y": 1.0, "sae": None, "seed": 7, "site": "logits", "group": "colour"}
    assert [{name: row[name] for name in (*both, "unit", "concept")} for row in batch.to_pylist()] == [
        {**both, "unit": 3, "concept": "red"}, {**both, "unit": 4, "concept": "blue"},
    ]  # fmt: skip
