"""Which tokens features are made from, how the work is cut, what decides a digest, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.protocol import Cell, ImageFacts, Known
from jobs.sae_features.plan import BUCKET_CODES, READ_IMAGES, SHARD_CODES, estimate, make_plans, rank_by
from jobs.sae_tokens import tokens_of
from schemas.cells import Images
from schemas.errors import BadSpec, NotInspected
from schemas.models import Geometry, ModelFacts, SiteFacts
from schemas.plans import Plan, StageSpec
from schemas.sae_specs import SaeFeaturesSpec

MODEL, GRID = "open_clip:ViT-B-16/made-up", (14, 14)


def tokens_site(path: str) -> SiteFacts:
    selectors = ("all", "patch", "map", "cls")
    return SiteFacts(path=path, layout="tokens", shape=(768,), positions=197, prefix=1, grid=GRID, selectors=selectors)


VIT = ModelFacts(
    model=MODEL, family="clip_vit", weights_sha256="0", files_sha256="1", revision=None, library_versions={}, n_blocks=12, width=768,
    embed_dim=512, grid=GRID, input_hw=(224, 224), norm_eps=1e-5, act_kind="gelu", pool="tok", final_norm_position="before_pool",
    geometry=Geometry(
        resize="shortest", resize_hw=(224, 224), crop_hw=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    has_text=True, params=86_000_000, flops=35_000_000_000,
    sites=(tokens_site("resid_post.7"), SiteFacts(path="embedding", layout="vector", shape=(512,), positions=1)),
)  # fmt: skip
IMAGES = Images(ref="folder:/data/imagenet")
ROWS = 50_000
SITE = "resid_post.7@patch"


def sae_stage(
    site: str = SITE, k: int | None = 32, subject: str = MODEL, output: str = "sae", seed: int = 0
) -> StageSpec:
    params: dict[str, Any] = {"site": site, "seed": seed, **({"sae": {"k": k}} if k else {})}
    return StageSpec(kind="train_sae", method=1, subject=subject, output=output, params=params)


def known_of(*stages: StageSpec, rows: int = ROWS) -> Known:
    images = {IMAGES.key: ImageFacts("i" * 20, "content", rows, rows)}
    return Known({MODEL: VIT}, images, {}, {f"sae:{s.digest}": s for s in stages})


def plans_of(*stages: StageSpec, reads: dict[str, tuple[Plan, ...]] | None = None, rows: int = ROWS, **changes: Any):
    known = known_of(*stages, rows=rows)
    spec = SaeFeaturesSpec(saes=tuple(known.stages), **({"reads": tuple(reads)} if reads else {}), **changes)
    cell = Cell(name="features", spec=spec, model=MODEL, images=None if reads else IMAGES, reads=reads or {})
    return make_plans(cell, known), known


def extract_plan(output: str, site: str | None = None) -> Plan:
    """A plan of an extract stage over the same images, made from a live one's forward."""
    ((live,), _) = plans_of(sae_stage())
    forward = tokens_of(live).forward
    params = {**forward.params, **({"site": site} if site else {}), "round_to": "fp16"}
    stage = StageSpec(kind="extract", method=1, subject=MODEL, output=output, params=params, inputs=forward.inputs)
    return Plan(stage=stage, rounds=live.rounds[:1], worker="extract", effort=forward.effort)


def test_tokens_are_live_without_an_extract_stage_and_whole_where_training_sampled():
    ((plan,), _) = plans_of(sae_stage(f"{SITE}:sample(16,0)"))
    assert plan.stage.params["site"] == SITE and not tokens_of(plan).stored
    assert plan.stage.params["positions"] == 196 and plan.stage.params["grid"] == [14, 14]
    assert plan.stage.params["first_patch"] == 0


def test_stored_and_live_tokens_make_one_digest():
    reads = {"acts": (extract_plan("activations", SITE), extract_plan("embeddings"))}
    ((stored,), _), ((live,), _) = plans_of(sae_stage(), reads=reads), plans_of(sae_stage())
    assert tokens_of(stored).stored and not tokens_of(live).stored
    assert stored.digest == live.digest and stored.worker != live.worker
    without = plans_of(sae_stage(), reads={"acts": (extract_plan("activations", SITE),)})[0][0]
    assert "embeddings" in live.stage.inputs and "embeddings" not in without.stage.inputs
    assert without.digest != live.digest


def test_a_site_that_is_not_stored_is_computed_over_the_images_of_the_stage_that_is_read():
    reads = {"acts": (extract_plan("activations", f"{SITE}:sample(16,0)"),)}
    ((plan,), _) = plans_of(sae_stage(f"{SITE}:sample(16,0)"), reads=reads)
    assert not tokens_of(plan).stored and plan.stage.params["site"] == SITE and tokens_of(plan).forward.rows == ROWS


@pytest.mark.parametrize(
    ("site", "positions", "first", "grid"),
    [("resid_post.7@cls", 1, 0, None), ("resid_post.7@all", 197, 1, [14, 14]), ("resid_post.7@patch:mean", 1, 0, None)],
)
def test_positions_and_grids_are_those_of_the_site(site: str, positions: int, first: int, grid: list[int] | None):
    ((plan,), _) = plans_of(sae_stage(site))
    found = plan.stage.params
    assert (found["positions"], found["first_patch"], found["grid"]) == (positions, first, grid)


def test_buckets_and_shards_hold_what_they_are_meant_for_and_siblings_are_cut_alike():
    plans, _ = plans_of(sae_stage(k=32), sae_stage(k=64, seed=1), sae_stage(k=None, site="resid_post.7@cls"))
    codes = [ROWS * 196 * 32, ROWS * 196 * 64, ROWS * 64]
    assert [plan.rounds[1].rows for plan in plans] == [-(-c // BUCKET_CODES) for c in codes]
    assert len({plan.worker for plan in plans}) == 1 and all(plan.effort == plans[0].effort for plan in plans)
    (shard_rows,) = {plan.rounds[0].shard_rows for plan in plans}
    assert (
        shard_rows % READ_IMAGES == 0 and shard_rows * 196 * 64 <= SHARD_CODES < (shard_rows + READ_IMAGES) * 196 * 64
    )
    ((small,), _) = plans_of(sae_stage(), shard_rows=1)
    assert small.rounds[0].shard_rows == READ_IMAGES and small.digest == plans[0].digest


def test_without_selectivity_nothing_is_ranked():
    ((plan,), _) = plans_of(sae_stage(), tables=("codes", "features"))
    assert [r.name for r in plan.rounds] == ["map", "merge"]


def test_what_top_images_go_by_decides_a_digest_and_its_default_keeps_those_from_before_it():
    ((by_max,), _), ((by_mean,), _) = plans_of(sae_stage(), rank_by="max"), plans_of(sae_stage(), rank_by="mean")
    assert "rank_by" not in by_max.stage.params and by_mean.stage.params["rank_by"] == "mean"
    assert by_max.digest != by_mean.digest and (rank_by(by_max), rank_by(by_mean)) == ("max", "mean")


def test_memory_is_bounded_whatever_the_number_of_images():
    found = []
    for rows in (50_000, 1_280_000):
        ((plan,), known) = plans_of(sae_stage(), rows=rows)
        found.append(estimate(plan, known))
    few, many = found
    assert few.memory < 1.5 * 2**30 and many.memory - few.memory < 700 * (1_280_000 - 50_000)
    assert few.shared_flops == 50_000 * VIT.flops and many.bytes > 20 * few.bytes


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(BadSpec, match="none of the SAEs is of"):
        plans_of(sae_stage(subject="demo:other"))
    with pytest.raises(BadSpec, match="is a stage of kind train_sae; expected"):
        plans_of(sae_stage(output="features"))
    with pytest.raises(BadSpec, match="neither activations nor embeddings"):
        plans_of(sae_stage(), reads={"acts": (extract_plan("predictions"),)})
    cell = Cell(name="f", spec=SaeFeaturesSpec(saes=("sae:01234567",)), model=MODEL, images=IMAGES)
    with pytest.raises(NotInspected):
        make_plans(cell, Known({}, {}))
