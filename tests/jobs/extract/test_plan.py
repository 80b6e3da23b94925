"""What makes an extract stage the same stage: the digest each field enters, and what a plan refuses and estimates."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from cluster.events import EventLog
from cluster.executor import StopFlag
from cluster.planned import plan_pipeline
from cluster.run import run_stages
from jobs.extract.plan import estimate
from schemas.cells import Images
from schemas.errors import UsageError
from schemas.extract_specs import ExtractSpec
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from tests.lakes import Lake, export

CLIP, RESNET = "demo:clip-p8", "demo:clip-rn"
ZOO = Path(str(files("miclip_core"))) / "world" / "zoo"
SITES = {"activations", "activation_moments", "top_images"}
OF_IMAGES = {*SITES, "embeddings", "predictions"}
ALL = {*OF_IMAGES, "text_embeddings"}

Digests = dict[str, frozenset[str]]


class World:
    """Two folders of images and a lake that has inspected and indexed whatever was asked for."""

    def __init__(self, folder: Path) -> None:
        self.one, self.two = export(folder / "one", 8), export(folder / "two", 6)
        self.lake = Lake(folder / "lake")

    def spec(self, **changes: Any) -> PipelineSpec:
        images = {"ref": f"folder:{self.one}/images", **changes.pop("images", {})}
        stage = {
            "kind": "extract",
            "model": CLIP,
            "images": images,
            "sites": ["resid_post.0@cls"],
            "outputs": sorted(ALL),
            "classes": {"names": ["circle", "star"], "templates": ["a {}"]},
            "texts": ["a red circle"],
            **changes,
        }
        return PipelineSpec.model_validate({"name": "digests", "stages": {"acts": stage}}, strict=False)

    def plans(self, **changes: Any) -> list[Plan]:
        """Plans of facts and products, after the facts were published."""
        planned = plan_pipeline(self.spec(**changes), self.lake.store)
        facts = planned.facts.freeze(self.lake.store, Resources())
        run_stages(facts, self.lake.store, self.lake.executor, EventLog(), StopFlag())
        planned = plan_pipeline(self.spec(**changes), self.lake.store)
        assert not [cell.error for cell in planned.cells if cell.error]
        return [plan for _, plan, _ in planned.plans()]

    def digests(self, **changes: Any) -> Digests:
        """Digests by what the stages make: products, `models` and `images`."""
        found = defaultdict(set)
        for plan in self.plans(**changes):
            found[plan.stage.output].add(plan.digest)
        return {output: frozenset(digests) for output, digests in found.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def changed(world: World, **changes: Any) -> set[str]:
    """The outputs whose stages are others than without the changes."""
    before, after = world.digests(), world.digests(**changes)
    return {output for output in {*before, *after} if before.get(output) != after.get(output)}


# -- every field of the spec, and the stages that a change of it makes anew

RESULT_FIELDS: dict[str, tuple[Any, set[str]]] = {
    "model": (f"open_clip:clip-p8@file:{ZOO / 'clip-p8'}", {"models", *ALL}),
    "images": ({"limit": 4}, OF_IMAGES),
    "sites": (["resid_post.1@cls"], SITES),
    "outputs": (["activations", "embeddings", "text_embeddings"], {"activation_moments", "top_images", "predictions"}),
    "classes": ({"names": ["circle", "ring"], "templates": ["a {}"]}, {"predictions", "text_embeddings"}),
    "texts": (["a blue star"], {"text_embeddings"}),
    "top_k": (8, {"top_images"}),
    "predictions_k": (1, {"predictions"}),
    "round_to": ("bf16", {"activations", "embeddings", "text_embeddings"}),
    "dtype": ("bf16", ALL),
    "geometry": ("square", OF_IMAGES),
    "on_nonfinite": ("quarantine", OF_IMAGES),
    "on_changed": ("quarantine", OF_IMAGES),
}
EFFORT_FIELDS: dict[str, Any] = {
    "batch_size": 7,
    "shard_rows": 3,
    "resources": {"workers": 5, "cpus": 2.0, "gpus": 1.0, "decode_threads": 3, "memory_gb": 2.0},
}
IMAGES_FIELDS: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "ref": (lambda w: f"folder:{w.two}/images", {"images", *OF_IMAGES}),
    "labels": (lambda w: f"file:{w.one}/labels.parquet", {"images"}),
    "orientation": (lambda w: "as_stored", {"images", *OF_IMAGES}),
    "limit": (lambda w: 4, OF_IMAGES),
}
WITHOUT_CHOICE = {"kind", "reads"}
"""kind has one value; extract reads no stage, so `reads` only orders the pipeline."""


def test_every_field_is_named_above_with_its_role():
    roles = ExtractSpec.roles()
    assert set(roles) == set(ExtractSpec.model_fields)
    assert {name for name, role in roles.items() if role == "result"} == {*RESULT_FIELDS, *WITHOUT_CHOICE}
    assert {name for name, role in roles.items() if role == "effort"} == {*EFFORT_FIELDS, "over"}
    assert set(Images.roles()) == set(Images.model_fields) == set(IMAGES_FIELDS)
    assert set(Images.roles().values()) == {"result"}


@pytest.mark.parametrize("name", RESULT_FIELDS)
def test_a_result_field_changes_the_stages_that_depend_on_it_and_no_others(world, name):
    value, expected = RESULT_FIELDS[name]
    assert changed(world, **{name: value}) == expected


@pytest.mark.parametrize("name", EFFORT_FIELDS)
def test_an_effort_field_changes_no_stage(world, name):
    assert changed(world, **{name: EFFORT_FIELDS[name]}) == set()


@pytest.mark.parametrize("name", IMAGES_FIELDS)
def test_a_field_of_the_image_set_changes_the_stages_that_depend_on_it_and_no_others(world, name):
    value, expected = IMAGES_FIELDS[name]
    assert changed(world, images={name: value(world)}) == expected


def test_the_same_images_elsewhere_are_the_same_stages(world, tmp_path):
    """Digests take what the images are, not where they are."""
    copy = export(tmp_path / "copy", 8)
    assert changed(world, images={"ref": f"glob:{copy}/images/*.png"}) == {"images"}


@pytest.mark.parametrize("file", ["tokenizer.json", "open_clip_config.json"])
def test_a_file_beside_the_weights_is_part_of_the_model(world, tmp_path, file):
    """The same weights with another tokeniser or configuration are another model to every stage that runs it."""
    copy = Path(shutil.copytree(ZOO / "clip-p8", tmp_path / "clip"))
    model = f"open_clip:clip@file:{copy}"
    before = world.digests(model=model)
    content = json.loads((copy / file).read_text())
    content.get("model_cfg", content).get("text_cfg", content)["pool_type"] = "last"
    (copy / file).write_text(json.dumps(content))
    after = world.digests(model=model)
    assert {output for output in before if before[output] != after[output]} == {"models", *ALL}


# -- sites


def test_one_site_written_in_several_ways_is_one_stage(world):
    """The fourth of five blocks: -2, 3, and among `*`."""
    same = [
        world.digests(sites=sites, outputs=["activations"])["activations"]
        for sites in (["resid_post.-2@cls"], ["resid_post.3@cls"], ["resid_post.3@cls", "resid_post.-2@cls"])
    ]
    assert same[0] == same[1] == same[2] and len(same[0]) == 1
    every = world.digests(sites=["resid_post.*@cls"], outputs=["activations"])["activations"]
    assert len(every) == 5 and same[0] < every


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": ["resid_post.5@cls"]}, ["resid_post.5", "blocks 0..4", "-1..-5"]),
        ({"sites": ["resid_pots.0@cls"]}, ["resid_pots", "resid_post"]),
        ({"classes": None, "outputs": ["predictions"], "sites": []}, ["add classes: {names:"]),
        ({"model": "demo:nobody"}, ["no such demo model", "demo:clip-p8"]),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_any_work(world, changes, words):
    with pytest.raises(UsageError) as raised:
        planned = plan_pipeline(world.spec(**changes), world.lake.store)
        raise UsageError("; ".join(cell.error for cell in planned.cells))
    assert [word for word in words if word not in str(raised.value)] == [], raised.value


# -- rounds, siblings, estimates


def test_summaries_have_a_second_round_that_merges_all_shards(world):
    rounds = {p.stage.output: [(r.name, r.n_shards) for r in p.rounds] for p in world.plans(shard_rows=3)}
    assert rounds["activations"] == [("map", 3)]  # 8 images, 3 a shard
    assert rounds["top_images"] == rounds["activation_moments"] == [("map", 3), ("merge", 1)]
    assert rounds["text_embeddings"] == [("texts", 1)]


def test_all_products_of_a_model_that_see_images_share_one_forward_pass(world):
    plans = [p for p in world.plans(sites=["resid_post.*@cls"]) if p.stage.output in OF_IMAGES]
    assert len(plans) == 3 * 5 + 2 and len({plan.worker for plan in plans}) == 1
    others = world.plans(model=[CLIP, RESNET], sites=[], outputs=["embeddings"])
    assert len({plan.worker for plan in others if plan.stage.kind == "extract"}) == 2


def test_estimates_can_be_done_by_hand(world):
    """8 images of 64 patches of 96 channels at fp16: 1.8 bytes a value."""
    changes = {"sites": ["resid_post.0@patch"], "outputs": ["activations"]}
    plans = [p for p in world.plans(**changes) if p.stage.kind == "extract"]
    known = plan_pipeline(world.spec(**changes), world.lake.store).known
    (plan,) = plans
    cost = estimate(plan, known)
    assert (cost.images, cost.bytes) == (8, int(8 * 64 * 96 * 1.8))
    assert cost.shared_flops == 8 * known.models[CLIP].flops
    assert cost.worker_memory > cost.memory > 0
