"""Specs: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.spec_file import json_schema, parse_spec, read_spec_file
from cluster.yaml_text import read_yaml, write_yaml
from jobs.kinds import KINDS
from schemas.errors import BadSpec, UsageError
from schemas.extract_specs import ExtractSpec
from schemas.selftest_specs import SelftestSpec

PIPELINE = """\
kind: pipeline
name: nightly
images: {ref: "folder:/data/photos"}
matrix:
  model: ["demo:clip-p8"]
stages:
  acts:
    kind: extract
    sites: ["resid_post.-2@patch:mean"]
"""


def refusal(text: str, *overrides: str, limit: int | None = None) -> list[str]:
    with pytest.raises(BadSpec) as caught:
        parse_spec(text, "s.yaml", overrides, limit)
    return str(caught.value).splitlines()


def test_a_pipeline_reads_as_it_is_written() -> None:
    file = parse_spec(PIPELINE, "s.yaml")
    acts = file.pipeline.stages["acts"]
    assert isinstance(acts, ExtractSpec)
    assert acts.sites == ("resid_post.-2@patch:mean",)
    assert file.pipeline.matrix == {"model": ("demo:clip-p8",)}
    assert file.text == PIPELINE


def test_a_single_job_is_a_pipeline_of_one_stage_with_its_own_name_and_store() -> None:
    file = parse_spec("kind: selftest\nname: mine\nstore: /lake\nrows: 7\n", "s.yaml")
    assert (file.pipeline.name, file.pipeline.store) == ("mine", "/lake")
    job = file.pipeline.stages["selftest"]
    assert type(job) is SelftestSpec and job.rows == 7


def test_a_single_job_keeps_which_fields_were_given_so_that_defaults_stay_defaults() -> None:
    job = parse_spec("kind: selftest\nrows: 7\n", "s.yaml").pipeline.stages["selftest"]
    assert "resources" not in job.model_fields_set


def test_one_text_is_a_list_of_one_and_lists_stay_lists() -> None:
    text = 'kind: extract\nmodel: "demo:x"\nimages: {ref: "folder:/a"}\noutputs: embeddings\n'
    assert parse_spec(text, "s").pipeline.stages["extract"].outputs == ("embeddings",)  # type: ignore[union-attr]
    text = text.replace("outputs: embeddings", "outputs: [embeddings, activations]\nsites: resid_post.-1@cls")
    acts = parse_spec(text, "s").pipeline.stages["extract"]
    assert acts.sites == ("resid_post.-1@cls",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("    sitez: [a]", "s.yaml:10:5  stages.acts.sitez: unknown field; did you mean 'sites'?"),
        ("    batch_size: many", 's.yaml:10:5  stages.acts.batch_size: found "many", expected a whole number'),
        ("    batch_size: 0", "s.yaml:10:5  stages.acts.batch_size: found 0, expected greater than or equal to 1"),
        ("    dtype: fp8", "stages.acts.dtype: found \"fp8\", expected fp"),
        ("    outputs: [actvations]", "stages.acts.outputs.0: found \"actvations\""),
        ("    outputs: []", "stages.acts.outputs: found [], expected at least 1"),
        ("    resources: {gpu: 1}", "s.yaml:10:17  stages.acts.resources.gpu: unknown field; did you mean 'gpus'?"),
        ("    images: {ref: nowhere}", "s.yaml:10:14  stages.acts.images.ref: images 'nowhere': expected source:location"),
        ("    reads: other", "stages.acts: reads other: extract reads images and models, no stage"),
        ("  more: {kind: selftest, reads: other}", "stages.more.reads: no stage 'other'; there are acts, more"),
        ("  more: {kind: extrac}", 's.yaml:10:10  stages.more.kind: found "extrac", expected extract, train_sae, import_sae, sae_features, probe, align, describe, intervene, trace_errors, attention_maps, geometry, evaluate, mine_rosetta, invert, explain, score_explanations, map_explanations, explorer or selftest; did you mean'),
        ("    top_k: 3\n    top_k: 4", "s.yaml:11:5  stages.acts.top_k: this key stands in line 10 already"),
        ("\ttop_k: 3", "s.yaml:10:1"),
        ("    top_k: .inf", "s.yaml:10:12  stages.acts.top_k: found .inf, expected a finite number"),
        ("    top_k: !!python/object:os.system ls", "tag tag:yaml.org,2002:python/object:os.system is not allowed"),
        ("    5: 6", "key '5' is not text"),
        ("    texts: [yes", "s.yaml:"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_what_was_found_and_what_was_expected(line: str, said: str) -> None:
    assert said in "\n".join(refusal(PIPELINE + line + "\n"))


def test_every_mistake_is_listed_in_the_order_of_the_file() -> None:
    lines = refusal(PIPELINE.replace("nightly", "Nightly One") + "    sitez: 1\n    top_k: 0\n")
    assert [line.split("  ")[0] for line in lines] == ["s.yaml:2:1", "s.yaml:10:5", "s.yaml:11:5"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found nothing, expected fields"),
        ("# only a comment\n", "found nothing"),
        ("- a\n", "found a list, expected fields"),
        ("word", "found a single value"),
        (
            "kind: pipelin\n",
            "kind: found \"pipelin\", expected extract, train_sae, import_sae, sae_features, selftest or pipeline; did you mean 'pipeline'?",
        ),
        ("name: x\n", "field kind is missing"),
        ("kind: extract\noutputs: embeddings\n", "no model; give model:"),
        ("kind: selftest\n---\nkind: selftest\n", "another document"),
        ("a: &a [*a]\n", "an alias contains itself"),
        ("kind: " + "[" * 600, "nested too deeply"),
        ("kind: selftest\nrow: 5\n", "s.yaml:2:1  row: unknown field; did you mean 'rows'?"),
    ],
)
def test_what_is_no_spec_at_all_is_refused_in_one_sentence(text: str, said: str) -> None:
    lines = refusal(text)
    assert len(lines) == 1 and said in lines[0]


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8))
    assert "aliases repeat each other" in refusal(bomb)[0]


def test_yes_no_dates_and_octal_follow_yaml_1_2() -> None:
    data = read_yaml("a: yes\nb: 2020-01-01\nc: 010\nd: 0o10\ne: ~\nf: 1e3\ng: true\n", "s").data
    assert data == {"a": "yes", "b": "2020-01-01", "c": 10, "d": 8, "e": None, "f": 1000.0, "g": True}


def test_anchors_and_merge_keys_are_filled_in() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    assert read_yaml(text, "s").data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_what_is_written_reads_back_the_same(data: object) -> None:
    assert read_yaml(write_yaml({"k": data}), "s").data == {"k": data}


# ---------------------------------------------------------------- overrides


def test_an_override_changes_one_field_and_the_kept_text() -> None:
    file = parse_spec(PIPELINE, "s.yaml", ["stages.acts.batch_size=64", "stages.acts.resources.workers=3"])
    acts = file.pipeline.stages["acts"]
    assert (acts.batch_size, acts.resources.workers) == (64, 3)  # type: ignore[union-attr]
    assert parse_spec(file.text, "again").pipeline == file.pipeline


def test_an_override_reaches_into_lists() -> None:
    assert parse_spec(PIPELINE, "s", ["matrix.model.0=demo:other"]).pipeline.matrix == {"model": ("demo:other",)}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.acts.batchsize=64", "--set stages.acts.batchsize  stages.acts.batchsize: unknown field; did you mean 'batch_size'?"),
        ("stages.acts.batch_size=x", '--set stages.acts.batch_size  stages.acts.batch_size: found "x", expected a whole number'),
        ("stages.actz.batch_size=1", "--set stages.actz.batch_size: the spec has no stages.actz; there are acts"),
        ("stages.acts.batch_size", "expected path.to.field=value"),
        ("matrix.model.7=demo:x", "is a list of 1; there is no item 7"),
        ("name.first=x", "name is a single value and has no field 'first'"),
        ("matrix.model=[3]", "--set matrix.model  matrix.model.0: found 3, expected text"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_as_it_was_typed(override: str, said: str) -> None:
    assert said in refusal(PIPELINE, override)[0]


def test_limit_cuts_every_image_set() -> None:
    text = PIPELINE + '    images: {ref: "folder:/other"}\n'
    pipeline = parse_spec(text, "s", limit=64).pipeline
    assert pipeline.images is not None and pipeline.images.limit == 64
    assert pipeline.stages["acts"].images.limit == 64  # type: ignore[union-attr]


def test_limit_without_images_is_refused_because_it_would_cut_nothing() -> None:
    assert "no stage of s.yaml reads images" in refusal("kind: selftest\n", limit=3)[0]


# ---------------------------------------------------------------- paths and secrets


def test_relative_paths_start_where_the_spec_is(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(PIPELINE.replace("folder:/data/photos", "folder:photos") + "store: lake\n")
    pipeline = read_spec_file(path).pipeline
    assert pipeline.store == str(tmp_path / "lake")
    assert pipeline.images is not None and pipeline.images.ref == f"folder:{tmp_path}/photos"


def test_s3_refs_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(PIPELINE.replace("folder:/data/photos", "glob:s3://b/**/*.jpg") + "store: s3://b/lake\n")
    pipeline = read_spec_file(path).pipeline
    assert pipeline.store == "s3://b/lake"
    assert pipeline.images is not None and pipeline.images.ref == "glob:s3://b/**/*.jpg"


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=re.escape(f"{tmp_path}/no.yaml: no such file")):
        read_spec_file(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "aws_secret_access_key: MARKER",
        "crash_once_dir: /x?token=MARKER",
        "# curl -H 'Authorization: Bearer MARKER1.x' to look at it",
        "store: s3://user:MARKER@bucket/lake",
        "# hub password: MARKER",
        "token: MARKER",
        "resources: {api_key: MARKER}",
        "name: AKIAABCDEFGHIJKLMNOP # MARKER",
    ],
)
def test_what_looks_like_a_credential_is_refused_and_never_repeated(line: str) -> None:
    said = "\n".join(refusal(f"kind: selftest\n{line}\n"))
    assert "looks like a credential" in said and "s.yaml:2:1" in said
    assert "MARKER" not in said and "AKIA" not in said


def test_a_credential_in_an_override_is_refused_too() -> None:
    said = refusal("kind: selftest\n", "store=s3://me:MARKER@bucket")[0]
    assert "looks like a credential" in said and "MARKER" not in said


def test_the_json_schema_knows_every_kind_and_refuses_unknown_fields() -> None:
    schema = json_schema()
    assert set(schema["discriminator"]["mapping"]) == {
        "extract",
        "train_sae",
        "import_sae",
        "sae_features",
        "selftest",
        "pipeline",
    }
    (stages,) = schema["$defs"]["PipelineSpec"]["properties"]["stages"]["patternProperties"].values()
    facts = {"inspect", "index_images", "measure_sae"}  # planned with others, never asked for
    assert set(stages["discriminator"]["mapping"]) == set(KINDS) - facts
    assert schema["$defs"]["ExtractFile"]["additionalProperties"] is False
    json.dumps(schema)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["tokens", "patch-tokens", "cls-token"])
def test_a_stage_may_be_called_like_a_credential(name: str) -> None:
    stages = f"{name}: {{kind: selftest}}"
    assert list(parse_spec(f"kind: pipeline\nname: a\nstages: {{{stages}}}\n", "a.yaml").pipeline.stages) == [name]


def test_fields_of_our_own_are_no_credentials() -> None:
    sae = "{kind: train_sae, model: demo:a, sites: resid_post.1, batch_tokens: 512, dead_tokens: 9}"
    text = f"kind: pipeline\nname: a\nimages: {{ref: folder:/i}}\nstages: {{sae: {sae}}}\n"
    assert list(parse_spec(text, "a.yaml").pipeline.stages) == ["sae"]


def test_a_foreign_sae_is_looked_for_where_the_spec_is(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "kind: import_sae\nmodel: demo:a\nsites: resid_post.1\nimages: {ref: folder:i}\nsaes: saelens:mine/sae\n"
    )
    (stage,) = read_spec_file(path).pipeline.stages.values()
    assert stage.saes == (f"saelens:{tmp_path}/mine/sae",)  # type: ignore[union-attr]


def test_a_field_below_a_stage_may_not(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"stages\.tokens\.token: this looks like a credential"):
        parse_spec("kind: pipeline\nname: a\nstages: {tokens: {kind: selftest, token: x}}\n", "a.yaml")


def test_a_single_job_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "Two Models.v2.yaml"
    path.write_text("kind: selftest\n")
    file = read_spec_file(path)
    assert file.pipeline.name == "two-models-v2"
    assert parse_spec(file.text, "run/spec.yaml").pipeline == file.pipeline  # as `retry` reads it
    path.write_text("kind: selftest\nname: mine\n")
    assert read_spec_file(path).pipeline.name == "mine"
    (tmp_path / "7.yaml").write_text("kind: selftest\n")
    assert read_spec_file(tmp_path / "7.yaml").pipeline.name == "selftest"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("demo:clip-p8: broken", ":3:1  model: "),
        ("n=4: broken", ":4:10  images.ref: "),
        ("images.ref: broken", ":4:10  "),
        (": broken", ""),
        ("d: broken", ""),
        ("demo:clip: broken", ""),
    ],
)
def test_a_late_refusal_finds_its_field_by_the_whole_ref(message: str, line: str) -> None:
    file = parse_spec("kind: extract\noutputs: embeddings\nmodel: demo:clip-p8\nimages: {ref: 'world:n=4'}\n", "a.yaml")
    with pytest.raises(UsageError) as refused, file.placed():
        raise UsageError(message)
    assert str(refused.value) == (f"a.yaml{line}{message}" if line else message)


TWO_STAGES = """\
kind: pipeline
name: two
images: {ref: "world:n=4"}
clip: demo:vit-dense
matrix: {model: [demo:clip-p8]}
stages:
  acts:
    kind: extract
    sites: [embedding]
    outputs: [activations, predictions]
  names:
    kind: describe
    reads: acts
    methods: [act_values]
    concepts: world:shapes
"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("stages.acts.outputs: broken", "10:5  stages.acts.outputs: broken"),
        ("stages.acts.clip: broken", "4:1  stages.acts.clip: broken"),  # given for all stages
        ("stages.acts.classes: broken", "7:3  stages.acts.classes: broken"),  # given nowhere: its stage
        ("stages.acts: 4 images: broken", "7:3  stages.acts: 4 images: broken"),
        ("stages.acts: embedding: broken", "9:13  stages.acts.sites.0: embedding: broken"),
        ("stages.names: concepts world:shapes: broken", "15:5  stages.names.concepts: concepts world:shapes: broken"),
        ("stages.names: embedding: broken", "11:3  stages.names: embedding: broken"),  # not the one of another stage
        ("stages.acts: demo:clip-p8: broken", "5:18  matrix.model.0: stages.acts: demo:clip-p8: broken"),
    ],
)
def test_a_refusal_of_a_stage_finds_the_field_or_else_the_stage(message: str, said: str) -> None:
    with pytest.raises(UsageError) as refused, parse_spec(TWO_STAGES, "a.yaml").placed():
        raise UsageError(message)
    assert str(refused.value) == f"a.yaml:{said}"


def test_a_file_of_one_job_is_not_told_of_stages() -> None:
    file = parse_spec("kind: extract\noutputs: embeddings\nmodel: demo:clip-p8\nimages: {ref: 'world:n=4'}\n", "a.yaml")
    for message, said in [
        ("stages.extract.outputs: broken", "a.yaml:2:1  outputs: broken"),
        ("stages.extract: too few: broken", "a.yaml:1:1  too few: broken"),
        ("stages.extract: demo:clip-p8: broken", "a.yaml:3:1  model: demo:clip-p8: broken"),
    ]:
        with pytest.raises(UsageError) as refused, file.placed():
            raise UsageError(message)
        assert str(refused.value) == said


def test_a_list_of_concepts_is_looked_for_where_the_spec_is(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(TWO_STAGES.replace("world:shapes", "file:names.txt"))
    assert getattr(read_spec_file(path).pipeline.stages["names"], "concepts", None) == f"file:{tmp_path}/names.txt"


# -- axes, exclusions and overrides


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("    over: width\n", "s.yaml:10:5  stages.acts.over: no axis 'width'; matrix has no axis but that of models"),
        (
            "    over: top_k\nmatrix:\n  top_k: [4, 0]\n",
            "s.yaml:13:14  matrix.top_k.1: stages.acts: top_k: found 0, expected greater than or equal to 1",
        ),
        ("exclude:\n  - {stage: act}\n", "s.yaml:11:6  exclude.0.stage: no stage 'act'; there are acts"),
        ("exclude:\n  - {stagee: acts}\n", "s.yaml:11:6  exclude.0.stagee: unknown field; did you mean 'stage'?"),
        (
            "overrides:\n  - {stage: acts, set: {topk: 3}}\n",
            "s.yaml:11:25  overrides.0.set.topk: stages.acts: unknown field; did you mean 'top_k'?",
        ),
        (
            "overrides:\n  - stage: acts\n    set: {resources: {workers: 0}}\n",
            "s.yaml:12:23  overrides.0.set.resources.workers: stages.acts: found 0, expected greater than or equal to 1",
        ),
        (
            "overrides:\n  - {stage: acts, set: {outputs: [embeddings]}}\n",
            "s.yaml:11:19  overrides.0.set: stages.acts: sites are given but no output uses them",
        ),
        (
            "exclude:\n  - {model: demo:clip-p9}\n",
            "s.yaml:11:6  exclude.0.model: found \"demo:clip-p9\", expected demo:clip-p8: the models of this pipeline; did you mean 'demo:clip-p8'?",
        ),
        ("exclude:\n  - {model: demo:clip-p8}\n", "s.yaml:10:1  exclude: nothing is left of stages.acts"),
    ],
)
def test_what_no_cell_can_be_is_named_with_its_place(lines: str, said: str) -> None:
    text = PIPELINE.replace('matrix:\n  model: ["demo:clip-p8"]', "# two\n# lines") if "\nmatrix" in lines else PIPELINE
    text = text.replace("kind: extract", "model: demo:clip-p8\n    kind: extract") if "\nmatrix" in lines else text
    assert said in refusal(text + lines)[0]


def test_paths_and_limits_of_overrides_are_those_of_stages(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        PIPELINE + "overrides:\n  - {stage: acts, set: {images: {ref: 'folder:mine'}}}\nexclude: []\n"
    )
    pipeline = read_spec_file(tmp_path / "s.yaml", limit=5).pipeline
    assert pipeline.overrides[0].set == {"images": {"ref": f"folder:{tmp_path}/mine", "limit": 5}}
