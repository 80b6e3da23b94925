"""A pipeline spread over its matrix: which cells there are, what each inherits and reads, what must be known first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.cells import CellPlans, cells_read, find_needs, spread, with_reads
from jobs.protocol import Known
from jobs.selftest.plan import make_plans
from schemas.cells import Images
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Resources
from schemas.selftest_specs import SelftestSpec

A, B, C = "demo:clip-p8", "demo:clip-rn", "demo:resnet-sup"
ACTS = {"kind": "extract", "sites": ["resid_post.0@cls"], "outputs": ["activations"]}
PHOTOS = {"ref": "folder:/photos"}


def pipeline(stages: dict[str, Any], **fields: Any) -> PipelineSpec:
    return PipelineSpec.model_validate({"name": "x", "stages": stages, **fields}, strict=False)


def test_a_stage_without_a_model_has_a_cell_for_each_model_of_the_matrix():
    spec = pipeline({"acts": ACTS}, matrix={"model": [A, B]}, images=PHOTOS)
    assert [cell.model for cell in spread(spec, "acts")] == [A, B]


def test_the_models_of_a_stage_win_over_the_matrix():
    stages = {"one": {**ACTS, "model": C}, "two": {**ACTS, "model": [C, B]}}
    spec = pipeline(stages, matrix={"model": [A, B]}, images=PHOTOS)
    assert [cell.model for cell in spread(spec, "one")] == [C]
    assert [cell.model for cell in spread(spec, "two")] == [C, B]


def test_a_kind_without_models_is_one_cell_whatever_the_matrix():
    spec = pipeline({"check": {"kind": "selftest"}}, matrix={"model": [A, B]})
    assert [cell.model for cell in spread(spec, "check")] == [None]


def test_images_and_resources_are_inherited_unless_the_stage_states_its_own():
    stages = {"acts": ACTS, "own": {**ACTS, "images": {"ref": "folder:/mine"}, "resources": {"workers": 1}}}
    spec = pipeline(stages, matrix={"model": [A]}, images=PHOTOS, resources={"workers": 8, "cpus": 2.0})
    (acts,), (own,) = spread(spec, "acts"), spread(spec, "own")
    assert (acts.images, acts.resources) == (Images(ref="folder:/photos"), Resources(workers=8, cpus=2.0))
    assert (own.images, own.resources) == (Images(ref="folder:/mine"), Resources(workers=1))


def test_resources_are_inherited_whole_and_never_mixed():
    spec = pipeline({"check": {"kind": "selftest", "resources": {"cpus": 0.5}}}, resources={"workers": 8})
    (cell,) = spread(spec, "check")
    assert cell.resources == Resources(cpus=0.5)


def test_a_cell_reads_all_stages_of_what_it_names_and_its_digest_follows_them():
    stages = {
        "first": {"kind": "selftest", "variants": ["a", "b"]},
        "second": {"kind": "selftest", "subject": "second", "reads": "first"},
    }

    def digests(seed: int) -> tuple[list[str], dict[str, str], str]:
        spec = pipeline({**stages, "first": {**stages["first"], "seed": seed}})
        (first,), (second,) = spread(spec, "first"), spread(spec, "second")
        made = make_plans(first, Known({}, {}))
        second = with_reads(second, {"first": [CellPlans(first, made)]})
        (plan,) = make_plans(second, Known({}, {}))
        return [p.digest for p in made], dict(plan.stage.inputs), plan.digest

    first, inputs, digest = digests(seed=0)
    assert inputs == {"first.0": first[0], "first.1": first[1]}
    assert digests(seed=0)[2] == digest != digests(seed=1)[2]


def test_a_cell_reads_the_stage_of_its_own_model_where_there_is_one_per_model():
    (check,) = spread(pipeline({"check": {"kind": "selftest"}}), "check")
    (one,) = make_plans(check, Known({}, {}))
    acts = {"acts": [CellPlans(replace(check, model=A)), CellPlans(replace(check, model=B), (one,))]}
    reader = replace(check, spec=SelftestSpec(reads=("acts",)))
    of_a, of_b, of_all = (with_reads(replace(reader, model=model), acts) for model in (A, B, None))
    assert of_a.reads == {"acts": ()} and of_b.reads == of_all.reads == {"acts": (one,)}
    assert [c.cell.model for c in cells_read(replace(reader, model=A), acts)] == [A]  # which is not planned


# -- needs


def test_every_model_is_inspected_once_and_every_image_set_indexed_once():
    stages = {"acts": ACTS, "again": {**ACTS, "model": A}, "own": {**ACTS, "model": C, "images": {"ref": "folder:/b"}}}
    needs = find_needs(pipeline(stages, matrix={"model": [A, B]}, images=PHOTOS))
    assert list(needs.models) == [A, B, C]
    assert [images.ref for images in needs.images] == ["folder:/photos", "folder:/b"]


def test_module_sites_are_recorded_by_their_path_whatever_is_selected_and_reduced():
    sites = ["module:visual.ln_post", "module:visual.conv1@map:max", "module:visual.ln_post@all:sample(4,0)"]
    needs = find_needs(
        pipeline({"acts": {**ACTS, "sites": [*sites, "resid_post.0@cls"]}}, matrix={"model": [A]}, images=PHOTOS)
    )
    assert needs.models == {A: ("module:visual.conv1", "module:visual.ln_post")}


def test_text_embeddings_need_no_images():
    texts = {"kind": "extract", "outputs": ["text_embeddings"], "texts": ["a red circle"]}
    assert find_needs(pipeline({"texts": texts}, matrix={"model": [A]}, images=PHOTOS)).images == ()


def zoo(*models: str, **fields: Any) -> PipelineSpec:
    return pipeline({"shared": {"kind": "mine_rosetta", **fields}}, matrix={"model": list(models)}, images=PHOTOS)


def test_a_stage_over_a_zoo_has_a_cell_per_model_per_pair_and_for_all():
    cells = list(spread(zoo(A, B, C), "shared"))
    assert [cell.models for cell in cells] == [(A,), (B,), (C,), (A, B), (A, C), (B, C), (A, B, C)]
    assert all(cell.zoo == (A, B, C) for cell in cells)
    assert [cell.model for cell in cells] == [A, B, C, None, None, None, None]
    assert [cell.pair for cell in cells[3:]] == [(A, B), (A, C), (B, C), None]


def test_all_models_of_a_zoo_are_needed_once():
    assert find_needs(zoo(A, B, C)).models == {A: (), B: (), C: ()}


def test_a_pair_reads_the_cells_of_both_models_and_the_zoo_those_of_all():
    spec = pipeline(
        {
            "sae": {"kind": "train_sae", "sites": ["resid_post.0@patch"], "latents": 8, "k": 2},
            "shared": {"kind": "mine_rosetta", "reads": "sae"},
        },
        matrix={"model": [A, B, C]},
        images=PHOTOS,
    )
    planned = {"sae": [CellPlans(cell) for cell in spread(spec, "sae")]}
    read = [[other.cell.model for other in cells_read(cell, planned)] for cell in spread(spec, "shared")]
    assert read == [[A], [B], [C], [A, B], [A, C], [B, C], [A, B, C]]


def test_pages_of_a_model_do_without_pairs_that_cannot_be_planned_but_not_without_their_own_features():
    """B cannot be looked at: pages of A read what is there; those of B wait for its features."""
    stages = {
        "sae": {"kind": "train_sae", "sites": ["resid_post.0@patch"], "latents": 8, "k": 2},
        "features": {"kind": "sae_features", "reads": "sae"},
        "shared": {"kind": "mine_rosetta", "reads": "sae"},
        "pages": {"kind": "explorer", "reads": ["features", "shared"]},
    }
    spec = pipeline(stages, matrix={"model": [A, B]}, images=PHOTOS)
    (check,) = spread(pipeline({"check": {"kind": "selftest"}}), "check")
    plans = make_plans(check, Known({}, {}))
    planned = {
        name: [CellPlans(cell, plans if B not in cell.models else ()) for cell in spread(spec, name)]
        for name in ("features", "shared")
    }
    read = {
        cell.model: [(other.cell.name, other.cell.models) for other in cells_read(cell, planned)]
        for cell in spread(spec, "pages")
    }
    assert read == {A: [("features", (A,)), ("shared", (A,))], B: [("features", (B,)), ("shared", (B,))]}
