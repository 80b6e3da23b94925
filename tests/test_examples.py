"""Every example spec is valid as it stands, and what can run here runs."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.catalog import open_catalog
from cluster.cli.app import app
from cluster.spec_file import parse_spec, read_spec_file
from cluster.sql import run_sql
from cluster.stores import make_store
from schemas.extract_specs import ExtractSpec

EXAMPLES = Path(str(files("jobs") / "examples"))
NAMES = sorted(path.name for path in EXAMPLES.glob("*.yaml"))


def test_there_are_examples_for_a_newcomer_real_models_and_a_bucket() -> None:
    assert {"demo.yaml", "selftest.yaml", "zoo.yaml", "sae.yaml", "miclip.yaml", "bucket.yaml"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_valid_spec(name: str) -> None:
    assert read_spec_file(EXAMPLES / name).pipeline.stages


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_what_it_is_in_its_first_line(name: str) -> None:
    assert (EXAMPLES / name).read_text().startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_an_example_exist(name: str) -> None:
    known = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    for verb in re.findall(r"^#\s+miclip (\w+)", (EXAMPLES / name).read_text(), re.MULTILINE):
        assert verb in known


def test_the_selftest_example_runs_and_its_query_answers(tmp_path: Path) -> None:
    from tests.published import run_spec

    text = (EXAMPLES / "selftest.yaml").read_text()
    store = make_store(str(tmp_path))
    assert run_spec(store, text).exit_code == 0
    query = re.search(r'miclip sql .* "(.*)"', text)
    assert query is not None
    count, mean = run_sql(open_catalog(store), query[1]).read_all().to_pylist()[0].values()
    assert count == 20000 and abs(mean - 0.5) < 0.01


def test_the_real_models_example_differs_from_the_demo_by_names_alone() -> None:
    """Real models are one line away: the same fields, other refs."""
    zoo = read_spec_file(EXAMPLES / "zoo.yaml").pipeline
    demo = parse_spec((EXAMPLES / "demo.yaml").read_text(), "demo.yaml").pipeline
    extracts = [stage for spec in (zoo, demo) for stage in spec.stages.values() if stage.kind == "extract"]
    assert len(extracts) == 5
    assert {field for stage in extracts for field in stage.model_fields_set} <= set(ExtractSpec.model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_an_example_can_say_how_alike_their_images_are(name: str) -> None:
    stages = read_spec_file(EXAMPLES / name).pipeline.stages
    for stage in stages.values():
        read = [stages[other] for other in stage.reads] if stage.kind == "sae_features" else []
        assert all("embeddings" in other.outputs for other in read if isinstance(other, ExtractSpec))


def test_explaining_two_published_models_differs_by_the_model_and_where_it_is_kept() -> None:
    gemma, llava = (read_spec_file(EXAMPLES / f"explain-{name}.yaml").pipeline for name in ("gemma", "llava"))
    differing = {name for name in type(gemma).model_fields if getattr(gemma, name) != getattr(llava, name)}
    assert differing == {"name", "store", "matrix"}
    demo = read_spec_file(EXAMPLES / "explain.yaml").pipeline
    assert {name: stage.kind for name, stage in demo.stages.items()} == {n: s.kind for n, s in gemma.stages.items()}


@pytest.mark.slow
def test_explaining_the_demo_world_can_be_planned_to_its_end(tmp_path: Path) -> None:
    few = [
        f"--set={field}=world:seed={seed},n=130"
        for seed, field in enumerate(("images.ref", "stages.others.images.ref"))
    ]
    words = ["plan", str(EXAMPLES / "explain.yaml"), "--store", str(tmp_path), "--inspect", "--json", *few]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert not found["not_planned"]
    kinds = {"train_sae", "sae_features", "explain", "score_explanations", "map_explanations"}
    assert kinds <= {stage["kind"] for stage in found["stages"]}
