"""A folder that was planned with is opened wherever it is, and only as long as its files are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.files import hash_tree, open_planned
from schemas.errors import WeightsMissing


def test_what_was_planned_with_is_opened_and_what_changed_since_is_not(tmp_path: Path) -> None:
    folder, inputs = tmp_path / "model", StoreInputs(make_store(str(tmp_path / "lake")))
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    planned = hash_tree(folder)
    for location in (f"file:{folder}", str(folder)):
        assert hash_tree(open_planned(inputs, location, planned)) == planned
    (folder / "config.json").write_text("{ }")
    for location in (f"file:{folder}", str(folder)):
        with pytest.raises(
            WeightsMissing, match=rf"expected sha256 {planned[:12]}..., found [0-9a-f]+...\); run the spec"
        ):
            open_planned(inputs, location, planned)
