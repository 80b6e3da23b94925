"""What a model does not have is refused with the place in the spec, before any work."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app

TEXT = """\
kind: pipeline
name: refused
store: lake
images: {ref: "world:seed=0,n=6"}
matrix:
  model: ["demo:clip-p8", "demo:clip-rn"]
stages:
  acts:
    kind: extract
    model: "demo:clip-p8"
    sites: ["resid_post.-1@cls", "SITE"]
    outputs: [activations]
"""


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store knows two demo models and six images."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "good.yaml").write_text(TEXT.replace(', "SITE"', "").replace('    model: "demo:clip-p8"\n', ""))
    good = folder / "good.yaml"
    result = miclip("plan", good, "--inspect", "--set", "stages.acts.sites=[embedding]")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("resid_pots.1", "has no site resid_pots"),
        ("resid_pots.1", "did you mean resid_post?"),
        ("resid_post.9@cls", "has blocks 0..4 at resid_post; count from the end with -1..-5, or write * for all"),
        ("resid_post.-6@cls", "has blocks 0..4"),
        ("resid_post.1@reg", "has no reg here; resid_post.1 takes @"),
        ("embedding@cls", "embedding takes no @tokens: it is one vector per image"),
        ("resid_post.1@cls:mean", "has one position there; leave the reduction away"),
        ("resid_post.1@patch:sample(65,0)", "has 64 positions there; sample at most 64"),
        ("stage.1", "has no site stage"),
    ],
)
@pytest.mark.parametrize("verb", ["validate", "plan", "run"])
def test_a_site_that_the_model_lacks_is_refused_at_its_line(inspected: Path, verb: str, site: str, said: str) -> None:
    spec = inspected / "bad.yaml"
    spec.write_text(TEXT.replace("SITE", site))
    result = miclip(verb, spec)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: {spec}:11:34  stages.acts.sites.1: ") and said in result.stderr
    assert not (inspected / "lake" / "runs").exists()


def test_a_selector_of_another_family_is_refused(inspected: Path) -> None:
    spec = inspected / "family.yaml"
    spec.write_text(
        TEXT.replace("SITE", "embedding")
        .replace('    model: "demo:clip-p8"\n', "")
        .replace("resid_post.-1@cls", "stage.1@cls")
    )
    result = miclip("validate", spec)
    assert result.exit_code == 2 and f"{spec}:10:13  stages.acts.sites.0" in result.stderr


STAGES = {
    "": ("outputs: [activations, predictions]", "12:5  stages.acts.outputs: predictions of demo:clip-p8 need classes"),
    "  sae: {kind: train_sae, reads: acts, latents: 8, k: 2, steps: 1}\n": (
        "outputs: [activations]",
        "13:3  stages.sae: 6 images make 1 block of 64; expected at least 2",
    ),
    "  names: {kind: describe, reads: acts, methods: [auroc], concepts: world:shapes}\n": (
        "outputs: [activations]",
        "13:58  stages.names.concepts: concepts world:shapes: found category 'shapes'",
    ),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_what_planning_refuses_has_the_line_of_its_field_or_else_of_its_stage(inspected: Path, stage: str) -> None:
    outputs, said = STAGES[stage]
    spec = inspected / "late.yaml"
    spec.write_text(TEXT.replace(', "SITE"', "").replace("outputs: [activations]", outputs) + stage)
    result = miclip("validate", spec)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {spec}:{said}"), result.stderr


def test_an_unknown_tag_of_a_known_library_is_refused_before_extraction(
    inspected: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    spec = inspected / "tag.yaml"
    spec.write_text(
        TEXT.replace(', "SITE"', "").replace(
            '    model: "demo:clip-p8"', '    model: "open_clip:ViT-B-32/lion400m_e31"'
        )
    )
    result = miclip("run", spec, "--executor", "serial", "--store", tmp_path / "lake")
    assert result.exit_code == 2
    assert f"{spec}:10:5  stages.acts.model: " in result.stderr and "did you mean laion400m_e31?" in result.stderr
    assert not (tmp_path / "lake" / "tables" / "activations").exists()


def test_what_is_not_known_yet_is_said_once_with_how_to_look_it_up(inspected: Path) -> None:
    spec = inspected / "unknown.yaml"
    more = "  names: {kind: describe, reads: acts, methods: [auroc], concepts: [red]}\n"
    text = TEXT.replace(', "SITE"', "").replace('    model: "demo:clip-p8"\n', "").replace("clip-rn", "vit-dense")
    spec.write_text(text + more)
    lines = miclip("validate", spec).stdout.splitlines()
    assert lines[0].startswith("valid  refused: 2 stages")
    assert lines[-3:] == [
        "not checked yet  acts/demo:vit-dense: demo:vit-dense is not inspected yet",
        "not checked yet  1 cell that reads these",
        f"to look them up: miclip plan {spec} --inspect",
    ]


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_how_to_look_up_what_is_not_known_names_all_that_was_given(inspected: Path, verb: str) -> None:
    words = [
        inspected / "good.yaml",
        "--set",
        "stages.acts.sites=[embedding]",
        "--limit",
        3,
        "--store",
        inspected / "new",
    ]
    said = miclip(verb, *words).stdout
    command = (
        f"miclip plan {words[0]} --inspect --set 'stages.acts.sites=[embedding]' --limit 3 --store {inspected / 'new'}"
    )
    assert command in said
    done = miclip(*shlex.split(command)[1:])
    assert done.exit_code == 0 and "not inspected" not in done.stdout
    shutil.rmtree(inspected / "new")


def test_a_stage_that_suits_one_of_two_models_is_invalid_as_a_spec_and_planned_for_the_one(inspected: Path) -> None:
    """`validate` wants all of a spec; a night does what can be done, and says what cannot."""
    spec = inspected / "mixed.yaml"
    spec.write_text(TEXT.replace(', "SITE"', "").replace('    model: "demo:clip-p8"\n', ""))
    lines = miclip("plan", spec).stdout.splitlines()
    assert miclip("validate", spec).exit_code == 2
    assert any("acts/demo:clip-rn" in line and "cannot be planned" in line for line in lines)
    assert any(line.startswith("acts/demo:clip-rn: ") and line.endswith("go on without it") for line in lines)
    assert not any("not inspected" in line for line in lines)
