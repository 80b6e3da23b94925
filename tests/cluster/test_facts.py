"""What planning looks up before it plans: contents of files that a spec names, and stages of earlier runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cells import Needs, find_needs
from cluster.executor import SerialExecutor
from cluster.facts import load_known, plan_facts
from cluster.stores.base import make_store
from jobs.files import hash_tree
from schemas.errors import BadRef
from schemas.pipeline_spec import PipelineSpec
from tests.corridor import run, selftest


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_hash_follows_names_and_contents_and_not_the_place(tmp_path):
    one, moved = put(tmp_path / "a", cfg="1", weights="2"), put(tmp_path / "b" / "c", cfg="1", weights="2")
    assert hash_tree(one) == hash_tree(moved)
    others = [
        put(tmp_path / "d", cfg="1", weights="3"),
        put(tmp_path / "e", cfg="1", weight="2"),
        put(tmp_path / "f", cfg="12"),
    ]
    assert len({hash_tree(folder) for folder in [one, *others]}) == 4
    assert hash_tree(one / "cfg") != hash_tree(one / "weights")


def test_files_that_a_spec_names_are_hashed_and_missing_ones_refused(tmp_path):
    store, folder = make_store(str(tmp_path / "lake")), put(tmp_path / "sae", weights="2")
    plans = plan_facts(Needs(files=(str(folder),)), store)
    assert load_known(plans, store).files == {str(folder): hash_tree(folder)}
    assert load_known(plans, store).weights == {str(folder): 0}
    (folder / "model.safetensors").write_bytes(bytes(12))
    assert load_known(plan_facts(Needs(files=(str(folder),)), store), store).weights == {str(folder): 12}
    with pytest.raises(BadRef, match="nothing there"):
        plan_facts(Needs(files=(str(tmp_path / "none"),)), store)


def test_a_stage_is_found_by_its_digest_or_the_first_digits_of_it(tmp_path):
    store, todo = make_store(str(tmp_path)), selftest(rows=5)
    run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    stage = todo[0][0].stage
    whole, short = f"sae:{stage.digest}", f"sae:{stage.digest[:9]}"
    assert load_known(plan_facts(Needs(stages=(whole, short)), store), store).stages == {whole: stage, short: stage}
    other = ("0" if stage.digest[0] != "0" else "1") * 20
    for absent in (f"sae:{other}", f"sae:{other[:8]}"):
        with pytest.raises(BadRef, match="no published stage begins so"):
            plan_facts(Needs(stages=(absent,)), store)


def test_the_saes_of_a_spec_are_needed_as_files_or_as_stages():
    stages = {
        "mine": {
            "kind": "import_sae",
            "saes": ["saelens:/m/a", "sparsify:/m/b"],
            "sites": "resid_post.1",
            "model": "demo:a",
        },
        "features": {"kind": "sae_features", "saes": "sae:01234567", "model": "demo:a"},
    }
    data = {"kind": "pipeline", "name": "p", "images": {"ref": "folder:/i"}, "stages": stages}
    needs = find_needs(PipelineSpec.model_validate(data, strict=False))
    assert needs.files == ("/m/a", "/m/b") and needs.stages == ("sae:01234567",)
    assert list(needs.models) == ["demo:a"] and [i.ref for i in needs.images] == ["folder:/i"]
