"""What the command line makes without a run is held while it is made, and has its time afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.gc import sweep
from cluster.hold import load_visit
from cluster.retention import Policy
from cluster.stores import make_store
from schemas import layout
from tests.paces import fast


@pytest.mark.slow
@pytest.mark.parametrize("words", [["sites", "demo:clip-p8"], ["plan", "--inspect"]])
def test_an_inspection_holds_what_it_makes(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = make_store(str(tmp_path / "lake"))
    store.create("made/before", b"")
    if words[0] == "plan":
        spec = tmp_path / "spec.yaml"
        spec.write_text(
            "kind: extract\nmodel: demo:clip-p8\nimages: {ref: 'world:seed=1,n=4'}\nsites: [resid_post.0]\n"
        )
        words = [*words, str(spec)]
    done = CliRunner().invoke(app, [*words, "--store", store.uri])
    assert done.exit_code == 0, done.output
    stages = {key.split("/")[1] for key in store.list("stages")}
    (visit,) = store.list("visits")
    assert load_visit(store, visit).names >= stages and load_visit(store, visit).ended
    found = sweep(store, Policy(keep_runs=1), fast())
    assert found.doomed == set() and found.young.keys() >= stages and store.list("visits") == []
    assert all(store.exists(layout.published_key(stage)) for stage in stages)
