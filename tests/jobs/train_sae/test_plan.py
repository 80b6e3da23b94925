"""What makes a train_sae stage the same stage: where its tokens come from does not matter, what decides its weights does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.events import EventLog
from cluster.executor import StopFlag
from cluster.planned import plan_pipeline
from cluster.run import run_stages
from cluster.works import group_siblings
from jobs.protocol import Estimate, Known
from jobs.sae_tokens import tokens_of
from jobs.train_sae.plan import estimate, settings_of, stream_of
from schemas.errors import UsageError
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from schemas.sae_specs import TrainSaeSpec
from tests.lakes import Lake, export

CLIP, RESNET = "demo:clip-p8", "demo:clip-rn"
SITE = "resid_post.3@patch"
CLASSES = {"names": ["circle", "star"], "templates": ["a {}"]}
SAE = {"kind": "train_sae", "latents": [64], "k": [4], "steps": 10, "batch_tokens": 32, "block_images": 4}


class World:
    """Images and a lake that knows models and images; activations are planned, never computed."""

    def __init__(self, folder: Path) -> None:
        self.images = export(folder / "images", 12)
        self.lake = Lake(folder / "lake")

    def known(self) -> Known:
        return plan_pipeline(self.spec(), self.lake.store).known

    def spec(
        self, live: bool = False, model: str = CLIP, acts: dict[str, Any] | None = None, **fields: Any
    ) -> PipelineSpec:
        images = {"ref": f"folder:{self.images}/images", **fields.pop("images", {})}
        shared = {name: fields.pop(name) for name in ("dtype", "round_to", "geometry") if name in fields}
        acts = {"kind": "extract", "sites": [SITE], "outputs": ["activations"], **shared, **(acts or {})}
        if live:
            stages = {"sae": {**SAE, "sites": [SITE], **shared, **fields}}
        else:
            stages = {"acts": acts, "sae": {**SAE, "reads": "acts", **fields}}
        data = {"kind": "pipeline", "name": "t", "images": images, "matrix": {"model": [model]}, "stages": stages}
        return PipelineSpec.model_validate(data, strict=False)

    def plans(self, kind: str = "train_sae", **fields: Any) -> list[Plan]:
        spec = self.spec(**fields)
        planned = plan_pipeline(spec, self.lake.store)
        if any("not inspected" in cell.error or "not indexed" in cell.error for cell in planned.cells):
            facts = planned.facts.freeze(self.lake.store, Resources())
            run_stages(facts, self.lake.store, self.lake.executor, EventLog(), StopFlag())
            planned = plan_pipeline(spec, self.lake.store)
        if errors := [cell.error for cell in planned.cells if cell.error]:
            raise UsageError("; ".join(errors))
        return [plan for _, plan, _ in planned.plans() if plan.stage.kind == kind]

    def measurements(self, **fields: Any) -> list[str]:
        return [plan.digest for plan in self.plans(kind="measure_sae", **fields)]

    def digests(self, **fields: Any) -> list[str]:
        return [plan.digest for plan in self.plans(**fields)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


# -- the digest

RESULT_FIELDS: dict[str, Any] = {
    "arch": ["batchtopk"],
    "latents": [128],
    "k": [8],
    "lr": [1e-3],
    "seed": [1],
    "steps": 11,
    "batch_tokens": 16,
    "buffer_batches": 3,
    "normalise": "none",
    "centre": "mean",
    "betas": [0.9, 0.99],
    "warmup_steps": 3,
    "decay_from": 0.5,
    "grad_clip": 2.0,
    "aux_coefficient": 0.0,
    "aux_k": 5,
    "dead_tokens": 100,
    "precision": "bf16",
    "data_parallel": 2,
    "block_images": 2,
    "holdout": 0.4,
    "order_seed": 1,
    "dtype": "bf16",
    "round_to": "fp32",
    "geometry": "square",
    "images": {"limit": 8},
    "model": RESNET,
}
OF_MEASURING: dict[str, Any] = {"evaluate_images": 2, "classes": CLASSES, "labels_from": "shape"}
OF_AN_ARCH: dict[str, dict[str, Any]] = {
    "l1": {"arch": ["relu"], "l1": [0.5]},
    "levels": {"arch": ["matryoshka"], "levels": [0.25, 0.75]},
    "level_weights": {"arch": ["matryoshka"], "level_weights": "sum"},
    "scope": {"arch": ["batchtopk"], "scope": "local"},
    "bandwidth": {"arch": ["jumprelu"], "bandwidth": 0.1},
    "initial_threshold": {"arch": ["jumprelu"], "initial_threshold": 0.1},
    "sparsity_coefficient": {"arch": ["jumprelu"], "sparsity_coefficient": 0.1},
    "sparsity_warmup_steps": {"arch": ["jumprelu"], "sparsity_warmup_steps": 1},
}
EFFORT_FIELDS: dict[str, Any] = {
    "batch_size": 7,
    "feeders": 1,
    "keep_every": 3,
    "resources": {"workers": 5, "cpus": 2.0},
}
ELSEWHERE = {"kind", "reads", "sites", "on_nonfinite", "on_changed"}
"""kind has one value; where tokens come from is tested below; what is done with bad images is part of the activations."""


def test_every_field_is_named_above_with_its_role() -> None:
    roles = TrainSaeSpec.roles()
    assert set(roles) == set(TrainSaeSpec.model_fields)
    assert {name for name, role in roles.items() if role == "result"} == {
        *RESULT_FIELDS,
        *OF_MEASURING,
        *OF_AN_ARCH,
        *ELSEWHERE,
    }
    assert {name for name, role in roles.items() if role == "effort"} == {*EFFORT_FIELDS, "over"}


@pytest.mark.parametrize("name", RESULT_FIELDS)
def test_a_result_field_makes_another_stage(world: World, name: str) -> None:
    site = "stage.2@map" if name == "model" else SITE
    changed = world.digests(live=True, sites=[site], **{name: RESULT_FIELDS[name]})
    assert len(changed) == 1 and changed != world.digests()


@pytest.mark.parametrize("name", OF_AN_ARCH)
def test_a_field_of_an_arch_makes_another_stage_of_that_arch_alone(world: World, name: str) -> None:
    fields = OF_AN_ARCH[name]
    of_arch = {"arch": fields["arch"]}
    assert world.digests(**fields) != world.digests(**of_arch)
    assert world.digests(**{**fields, "arch": ["topk"]}) == world.digests()


@pytest.mark.parametrize("name", EFFORT_FIELDS)
def test_an_effort_field_makes_the_same_stage(world: World, name: str) -> None:
    assert world.digests(live=True, **{name: EFFORT_FIELDS[name]}) == world.digests()


def test_live_tokens_and_stored_ones_are_the_same_input(world: World) -> None:
    """However extract cuts its work, and however the site is written."""
    stored, live = world.plans(acts={"batch_size": 5, "shard_rows": 3}), world.plans(live=True)
    again = world.digests(live=True, sites=["resid_post.-2@patch"])
    assert [p.digest for p in stored] == [p.digest for p in live] == again
    assert [p.effort["source"] for p in stored + live] == ["table", "live"]


@pytest.mark.parametrize("name", OF_MEASURING)
def test_what_is_measured_on_never_trains_an_sae_again(world: World, name: str) -> None:
    others = {"classes": CLASSES} if name == "labels_from" else {}
    changed = {**others, name: OF_MEASURING[name]}
    assert world.digests(**changed) == world.digests(**others)
    assert world.measurements(**changed) != world.measurements(**others)


def test_labels_are_part_of_the_measurement_only_where_a_loss_needs_them(world: World) -> None:
    labelled = {"labels": f"file:{world.images}/labels.parquet"}
    assert world.measurements(images=labelled) == world.measurements()
    assert world.measurements(images=labelled, classes=CLASSES) != world.measurements(classes=CLASSES)
    assert world.digests(images=labelled, classes=CLASSES) == world.digests()


def test_an_sae_is_measured_once_it_is_trained(world: World) -> None:
    train, measure = (world.plans(seed=[0, 1], kind=kind) for kind in ("train_sae", "measure_sae"))
    assert [plan.stage.inputs["sae"] for plan in measure] == [plan.digest for plan in train]
    assert len(works(measure)) == 1 and {plan.gang for plan in measure} == {1}


# -- sweeps and what runs together


def test_a_sweep_has_every_sae_once_and_its_members_are_those_of_smaller_sweeps(world: World) -> None:
    both = world.digests(k=[4, 8], seed=[0, 1])
    assert len(set(both)) == 4
    assert set(world.digests(k=[4])) < set(world.digests(k=[4], seed=[1, 0])) < set(both)
    assert len(world.digests(arch=["relu"], k=[4, 8])) == 1  # relu has no k


def works(plans: list[Plan]) -> list[list[str]]:
    return [
        [str(p.stage.params["site"]) for p in work.plans] for work in group_siblings((p, Resources()) for p in plans)
    ]


def test_stored_sites_are_works_of_their_own_and_live_sites_share_one_forward(world: World) -> None:
    sites = ["resid_post.1@patch", "resid_post.3@patch"]
    assert works(world.plans(acts={"sites": sites}, seed=[0, 1])) == [[site] * 2 for site in sites]
    assert works(world.plans(live=True, sites=sites, seed=[0, 1])) == [[site for site in sites for _ in "01"]]


def test_sites_choose_among_the_stored_activations(world: World) -> None:
    acts = {"sites": ["resid_post.*@patch", "resid_post.2@cls"]}
    chosen = [p.stage.params["site"] for p in world.plans(acts=acts, sites=["resid_post.-1@patch", "resid_post.*@cls"])]
    assert chosen == ["resid_post.4@patch", "resid_post.2@cls"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sites": ["resid_post.1@patch"]}, ["resid_post.1@patch", "there are resid_post.3@patch"]),
        ({"sites": ["resid_post.9@patch"]}, ["blocks 0..4"]),
        ({"acts": {"outputs": ["activation_moments"]}}, ["acts stores activation_moments", "add activations"]),
        ({"live": True, "sites": ["resid_post.9@patch"]}, ["blocks 0..4"]),
        ({"block_images": 12}, ["12 images make 1 block ", "smaller block_images"]),
    ],
)
def test_tokens_that_are_not_there_are_refused_before_any_work(world: World, fields: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        world.plans(**fields)
    assert [word for word in words if word not in str(raised.value)] == [], raised.value


def test_a_plan_gives_back_what_it_was_made_of(world: World) -> None:
    (plan,) = world.plans(live=True, data_parallel=2, feeders=1)
    tokens = tokens_of(plan)
    assert tokens.stage.digest == plan.stage.inputs["activations"]
    assert (settings_of(plan).latents, settings_of(plan).k, stream_of(plan).batch_tokens) == (64, 4, 32)
    assert (plan.gang, [r.name for r in plan.rounds], plan.n_shards) == (3, ["train"], 1)
    assert tokens_of(world.plans()[0]).stored and not tokens.stored


# -- estimates


def test_estimates_follow_from_the_sizes(world: World) -> None:
    """64 latents of width 48: 2 x 48 x 64 for the encoder and 10 x 48 x 4 for what was kept, over 10 steps of 32 tokens."""
    width = next(site.width for site in world.known().models[CLIP].sites if site.path == "resid_post.3")
    (stored,), (live,) = world.plans(), world.plans(live=True)
    cost, with_forward = estimate(stored, world.known()), estimate(live, world.known())
    assert cost.flops == 320 * (2 * width * 64 + 10 * width * 4)
    per_image = tokens_of(live).per_image(world.known().models[CLIP])
    assert with_forward.shared_flops == 320 * world.known().models[CLIP].flops // per_image
    assert (cost.images, cost.bytes) == (12, 4 * (2 * 64 * width + 2 * 64 + width) + 320)
    params, table = world.known().models[CLIP].params, 256 << 20
    assert cost.memory == with_forward.memory > 0
    assert with_forward.worker_memory - cost.worker_memory == 8 * params - table  # the model instead of row groups
    (dense,) = world.plans(arch=["relu"])
    assert estimate(dense, world.known()).flops == 320 * 12 * width * 64


def test_nothing_is_estimated_of_a_model_that_is_not_inspected(world: World) -> None:
    assert estimate(world.plans()[0], Known({}, {})) == Estimate()
