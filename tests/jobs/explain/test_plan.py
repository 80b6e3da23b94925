"""Which stages a cell of explanations becomes, what decides their digests, what they cost, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from jobs.explain.asked import Asked
from jobs.explain.plan import estimate, make_plans
from jobs.protocol import Cell, ImageFacts, Known
from jobs.sae_features import plan as sae_features
from miclip_core.explain.prompts import HEATMAPS, MASKS, STEERING
from schemas.cells import Images
from schemas.errors import BadSpec, EditNotRead, NoLanguageModel, NotInspected, NotTheTower
from schemas.explain_specs import ExplainSpec
from schemas.models import Geometry, LanguageFacts, ModelFacts, SiteFacts
from schemas.plans import Plan, StageSpec
from schemas.sae_specs import SaeFeaturesSpec

VLM, ALONE = "hf:a/vlm", "hf:a/tower"
BLOCKS, LATENTS = 24, 4096
IMAGES, WORLD = Images(ref="folder:/data/imagenet"), Images(ref="world:seed=0,n=100")


def site_of(block: int, width: int = 1024) -> SiteFacts:
    return SiteFacts(
        path=f"resid_post.{block}", layout="tokens", shape=(width,), positions=577, prefix=1, grid=(24, 24),
        selectors=("all", "patch", "cls"),
    )  # fmt: skip


LANGUAGE = LanguageFacts(
    model_type="llava", reads_block=22, reads="resid_post.22", image_tokens=576, width=4096, layers=32, params=7 * 10**9
)
TOWER = ModelFacts(
    model=ALONE, family="clip_vit", weights_sha256="0", files_sha256="1", revision=None, library_versions={}, n_blocks=BLOCKS,
    width=1024, embed_dim=None, n_prefix=1, grid=(24, 24), input_hw=(336, 336), norm_eps=1e-5, act_kind="gelu", pool="tok",
    final_norm_position="before_pool", has_text=False, params=3 * 10**8, flops=24 * 10**10,
    geometry=Geometry(
        resize="shortest", resize_hw=(336, 336), crop_hw=(336, 336), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    sites=(*(site_of(block) for block in range(BLOCKS)), SiteFacts(path="mlp_act.3", layout="tokens", shape=(1024,), positions=577,
    prefix=1, grid=(24, 24), selectors=("all", "patch", "cls"))),
)  # fmt: skip
WHOLE = TOWER.model_copy(update={"model": VLM, "language": LANGUAGE, "files_sha256": "2"})


def changed(facts: ModelFacts, **fields: Any) -> ModelFacts:
    """Facts of another model, of which nothing is worked out yet: a copy would keep the sites that it was asked for."""
    return ModelFacts(**{**{name: getattr(facts, name) for name in ModelFacts.model_fields}, **fields})


def sae_stage(site: str = "resid_post.16@patch", model: str = VLM, latents: int | None = LATENTS) -> StageSpec:
    settings: Any = {} if latents is None else {"sae": {"latents": latents, "k": 32}}
    return StageSpec(kind="train_sae", method=1, subject=model, output="sae", params={"site": site, **settings})


def known_of(*models: ModelFacts, sae: StageSpec, files: Mapping[str, str] = MappingProxyType({})) -> Known:
    images = {one.key: ImageFacts(name * 20, name, 1000, 1000) for one, name in ((IMAGES, "i"), (WORLD, "w"))}
    return Known({m.model: m for m in models}, images, files, {f"sae:{sae.digest}": sae})


def plans_of(
    *,
    sae: StageSpec | None = None,
    models: tuple[ModelFacts, ...] = (WHOLE, TOWER),
    images: Images = IMAGES,
    described: Mapping[str, Any] = MappingProxyType({}),
    files: Mapping[str, str] = MappingProxyType({}),
    **changes: Any,
) -> list[Plan]:
    """described: fields of the sae_features stage; changes: of the explain stage."""
    sae = sae or sae_stage()
    known = known_of(*models, sae=sae, files=files)
    spec = SaeFeaturesSpec(saes=(f"sae:{sae.digest}",), **{"tables": ("features", "top_images"), **described})
    read = sae_features.make_plans(Cell(name="features", spec=spec, model=sae.subject, images=images), known)
    spec = ExplainSpec(**{"reads": ("features",), "alpha": (1.0,), **changes})
    return list(make_plans(Cell(name="texts", spec=spec, model=sae.subject, reads={"features": read}), known))


def variants(plans: list[Plan]) -> list[str]:
    return [f"{plan.stage.output} {plan.stage.params['variant']}" for plan in plans]


def test_every_method_masking_direction_and_alpha_is_a_stage() -> None:
    plans = plans_of(masking=("masks", "heatmaps"), direction=("sae", "random"), alpha=(0.0, 1.5), alpha_unit="p90")
    assert variants(plans) == [
        "explanations topk masks",
        "explanations topk heatmaps",
        *(f"explanations steering all {d} alpha {a} p90" for d in ("sae", "random") for a in ("0", "1.5")),
        *(
            f"explanations informed {m} active {d} alpha {a} p90"
            for m in ("masks", "heatmaps")
            for d in ("sae", "random")
            for a in ("0", "1.5")
        ),
    ]
    names = ("method", "masking", "direction", "positions", "alpha_asked", "alpha_unit")
    found = [tuple(plan.stage.params[name] for name in names) for plan in plans]
    assert found[0] == ("topk", "masks", "sae", "none", "0", "activation")
    assert found[3] == ("steering", "none", "sae", "all", "1.5", "p90")
    assert found[-1] == ("informed", "heatmaps", "random", "active", "1.5", "p90")
    assert [plan.stage.params["prompt"] for plan in plans[:3]] == [MASKS, HEATMAPS, STEERING]
    assert len({plan.digest for plan in plans}) == len(plans) and {plan.stage.params["vlm"] for plan in plans} == {VLM}
    assert [Asked(plan).seed for plan in plans if plan.stage.params["seed"] is not None] == [0] * 6  # of random ones


def test_stages_of_one_sae_have_one_worker() -> None:
    plans = plans_of(masking=("masks", "heatmaps"), direction=("sae", "permuted"))
    assert len({(plan.worker, str(plan.effort), plan.rounds) for plan in plans}) == 1
    other = plans_of(sae=sae_stage("resid_post.8@patch"))
    assert other[0].worker != plans[0].worker


def test_stages_that_show_images_in_one_way_and_in_two_share_a_worker() -> None:
    one, two = plans_of(methods=("topk",)), plans_of(methods=("topk",), masking=("masks", "heatmaps"))
    assert len({(plan.worker, str(plan.effort), plan.rounds) for plan in (*one, *two)}) == 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_how_many_features_go_together_decides_texts_of_short_numbers_alone(dtype: str) -> None:
    """Sums of another shape are rounded differently, and a token may flip."""
    assert digests(batch_features=3) == digests()
    before, after = (
        digests(dtype=dtype, alpha="auto", images=WORLD),
        digests(dtype=dtype, alpha="auto", images=WORLD, batch_features=3),
    )
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())


def digests(**changes: Any) -> dict[str, str]:
    return {f"{plan.stage.output} {plan.stage.params['method']}": plan.digest for plan in plans_of(**changes)}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"masks_prompt": "what?"}, {"topk", "informed"}),
        ({"steering_prompt": "what?"}, {"steering"}),
        ({"blank": "black"}, {"steering"}),
        ({"seed": 3}, set()),
        ({"blank": "noise"}, {"steering"}),
        ({"alpha": (2.0,)}, {"steering", "informed"}),
        ({"operation": "replace"}, {"steering", "informed"}),
        ({"steered": "patches"}, {"steering"}),
        ({"informed": "all"}, {"informed"}),
        ({"k": 4}, {"topk", "informed"}),
        ({"max_new_tokens": 51}, {"topk", "steering", "informed"}),
        ({"most": 7}, {"topk", "steering", "informed"}),
        ({"dtype": "bf16"}, {"topk", "steering", "informed"}),
        ({"validation": 9}, set()),
        ({"batch_features": 3, "shard_features": 5}, set()),
    ],
)
def test_a_setting_changes_the_digests_of_those_that_use_it(changes: dict[str, Any], changed: set[str]) -> None:
    before, after = digests(), digests(**changes)
    assert {name.split()[1] for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize("alpha", [(2.0,), "auto"])
@pytest.mark.parametrize(
    "more",
    [
        {"direction": ("random", "sae", "permuted")},
        {"masking": ("heatmaps", "masks")},
        {"methods": ("informed", "topk", "steering")},
        {"alpha": (1.0, 2.0)},
    ],
)
def test_one_way_to_explain_more_leaves_all_others_as_they_are(more: dict[str, Any], alpha: Any) -> None:
    """Random directions too, which are drawn by seed and feature."""
    few: dict[str, Any] = {"methods": ("topk", "steering"), "direction": ("sae", "random"), "images": WORLD}
    before, after = plans_of(**few, alpha=alpha), plans_of(**{**few, "alpha": alpha, **more})
    known = {plan.digest for plan in before}
    if alpha == "auto" and "alpha" in more:
        known = {plan.digest for plan in before if plan.stage.params["method"] == "topk"}
    assert known < {plan.digest for plan in after}


def test_alphas_are_chosen_once_for_the_features_and_their_controls() -> None:
    plans = plans_of(alpha="auto", direction=("sae", "random"), images=WORLD, validation=100, shard_features=64)
    of = dict(zip(variants(plans), plans, strict=True))
    assert len(of) == 7 and [name.split()[0] for name in of].count("alphas") == 2
    for method, where in (("steering", "all"), ("informed", "masks active")):
        alphas = of[f"alphas {method} {where} sae alpha auto token_norm"]
        read = {
            of[f"explanations {method} {where} {d} alpha auto token_norm"].stage.inputs["alphas"]
            for d in ("sae", "random")
        }
        assert read == {alphas.digest} and variants(plans).index(f"alphas {alphas.stage.params['variant']}") < 7
        assert [(r.name, r.rows, r.shard_rows) for r in alphas.rounds] == [("try", 100, 64), ("choose", 1, 1)]
    assert "alphas" not in of["explanations topk masks"].stage.inputs
    named = plans_of(alpha="auto", segmenter="file:/seg", files={"/seg": "5e9"})
    assert {plan.stage.params["segmenter"] for plan in named if plan.stage.output == "alphas"} == {"5e9"}


def test_alphas_are_compared_on_half_of_the_features_at_most() -> None:
    small, large = (plans_of(alpha="auto", images=WORLD, sae=sae_stage(latents=n)) for n in (24, 4096))
    for plans, rows in ((small, 12), (large, 500)):
        assert {p.rounds[0].rows for p in plans if p.stage.output == "alphas"} == {rows}


def test_rows_are_the_features_that_there_may_be() -> None:
    assert plans_of()[0].rounds[0].rows == LATENTS
    assert plans_of(sae=sae_stage(latents=None))[0].rounds[0].rows == 16 * 1024
    assert plans_of(most=100)[0].rounds[0].rows == 100
    known = plans_of(most=2, sae=sae_stage(latents=7))[0]
    assert known.rounds[0].rows == 2


@pytest.mark.parametrize("n", [0, 1, 63, 100, 128, 129, 1000])
def test_shards_are_about_all_features_each_once_however_many_there_are(n: int) -> None:
    asked = Asked(plans_of(sae=sae_stage(latents=128), shard_features=40)[0])
    places = [asked.places(shard, n) for shard in asked.plan.shards(0)]
    assert [place for some in places for place in some] == list(range(n))
    if n <= 128:  # whole shards, so that no batch is cut short but the last
        assert all(len(one) == 40 or not len(other) for one, other in pairwise(places))


def test_costs_follow_from_tokens_and_the_part_of_the_tower() -> None:
    spec: dict[str, Any] = {"k": 4, "max_new_tokens": 50, "masking": ("masks", "heatmaps"), "described": {"top_k": 4}}
    plans = plans_of(**spec)
    topk, steering = plans[0], next(plan for plan in plans if plan.stage.params["method"] == "steering")
    known = known_of(WHOLE, TOWER, sae=sae_stage())
    shown, blank = estimate(topk, known), estimate(steering, known)
    tokens = 4 * 576 + len(MASKS) // 4 + 50
    behind = (22 - 16) / 24 * 24 * 10**10
    assert shown.flops == LATENTS * (2 * 7 * 10**9 * tokens + 4 * behind) and shown.images == 4 * LATENTS
    assert shown.shared_flops == pytest.approx(LATENTS * 4 * 17 * 10**10)
    assert blank.flops == LATENTS * (2 * 7 * 10**9 * (576 + len(STEERING) // 4 + 50) + behind)
    assert (blank.images, blank.shared_flops) == (0, pytest.approx(17 * 10**10))
    assert "4096 texts" in shown.note and "once" in shown.note and "blank" in blank.note
    fp32, bf16 = (estimate(plans_of(**spec, dtype=d)[0], known).worker_memory for d in ("fp32", "bf16"))
    assert 28e9 < 1.6 * bf16 < fp32 < 100e9
    tried = plans_of(alpha="auto", images=WORLD, validation=10, alpha_grid=(1.0, 2.0, 4.0), methods=("steering",))[0]
    assert estimate(tried, known).flops == 10 * 3 * (blank.flops // LATENTS)
    heavier = replace(known, weights={str(tried.effort["segmenter"]).removeprefix("file:"): 1 << 30})
    assert estimate(tried, heavier).worker_memory == estimate(tried, known).worker_memory + (1 << 30)
    assert estimate(steering, heavier) == estimate(steering, known)


@pytest.mark.parametrize(
    ("error", "said", "changes"),
    [
        (NoLanguageModel, "model: hf:a/tower .* writes no text", {"sae": sae_stage(model=ALONE)}),
        (NoLanguageModel, "vlm: hf:a/tower .* writes no text", {"vlm": ALONE}),
        (NotInspected, "hf:other is not inspected yet", {"vlm": "hf:other"}),
        (EditNotRead, "reads resid_post.22; take an SAE of block 22 or earlier", {"sae": sae_stage("resid_post.23@patch")}),
        (BadSpec, "the SAE is of mlp_act.3@patch", {"sae": sae_stage("mlp_act.3@patch")}),
        (BadSpec, "the SAE is of resid_post.3@cls", {"sae": sae_stage("resid_post.3@cls"), "methods": ("steering",)}),
        (BadSpec, "no patch grid", {"sae": sae_stage("resid_post.3@patch:mean"), "methods": ("topk",)}),
        (BadSpec, "features: 4096, but sae:.* has 4096: 0 to 4095", {"features": (1, 4096)}),
        (BadSpec, "k: 5 images of a feature, but the sae_features stage keeps 4", {"described": {"top_k": 4}}),
        (BadSpec, "top_images is needed", {"described": {"tables": ("features",)}}),
        (BadSpec, "makes tables top_images; features is needed", {"described": {"tables": ("top_images",)}, "methods": ("steering",)}),
        (BadSpec, "steered: block:25 of 24 x 24 patches", {"steered": "block:25"}),
        (BadSpec, "segmenter: truth knows the images of world:... alone, found folder:/data", {"alpha": "auto"}),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_is_refused_at_once(
    error: type[Exception], said: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(error, match=said):
        plans_of(**changes)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "found nothing in it"),
        ('{"model_type": "llava"}', "found model_type 'llava' in config.json"),
    ],
)
def test_a_folder_that_holds_no_segmenter_is_refused_where_alphas_are_chosen(
    config: str | None, said: str, tmp_path: Path
) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
    named: dict[str, Any] = {"segmenter": f"file:{tmp_path}", "files": {str(tmp_path): "5e9"}}
    with pytest.raises(BadSpec, match=rf"stages\.texts\.segmenter: {tmp_path}: {said}; expected .* a CLIPSeg model"):
        plans_of(alpha="auto", **named)
    assert plans_of(**named)  # nobody asks it where alpha is a number
    (tmp_path / "config.json").write_text('{"model_type": "clipseg"}')
    assert plans_of(alpha="auto", **named)


def test_methods_that_steer_nothing_take_features_from_anywhere() -> None:
    for site in ("mlp_act.3@patch", "resid_post.23@patch"):
        (plan,) = plans_of(sae=sae_stage(site), methods=("topk",))
        assert plan.stage.params["site"] == site
    without = {"tables": ("features",), "top_k": 1}
    assert variants(plans_of(described=without, methods=("steering",))) == [
        "explanations steering all sae alpha 1 token_norm"
    ]


def test_a_cut_view_has_no_truth_but_a_square_one() -> None:
    cut = WHOLE.model_copy(update={"geometry": WHOLE.geometry.model_copy(update={"resize_hw": (400, 400)})})
    with pytest.raises(BadSpec, match=r"sees a cut of them; .* geometry: square"):
        plans_of(models=(cut,), alpha="auto", images=WORLD)
    assert len(plans_of(models=(cut,), alpha="auto", images=WORLD, described={"geometry": "square"})) == 5


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"grid": (12, 24)}, "patch grid 12 x 24, expected 24 x 24"),
        ({"prefix": 0}, "tokens before the patches 0, expected 1"),
        ({"shape": (1152,)}, "width 1152, expected 1024"),
    ],
)
def test_another_tower_is_told_by_its_shape(update: dict[str, Any], said: str) -> None:
    sites = tuple(site_of(block).model_copy(update=update) for block in range(BLOCKS))
    other = changed(WHOLE, model="hf:b/vlm", sites=sites)
    with pytest.raises(NotTheTower, match=said):
        plans_of(models=(WHOLE, other), vlm="hf:b/vlm")


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"input_hw": (448, 448)}, "image size 448 x 448, expected 336 x 336"),
        ({"sites": TOWER.sites[:5]}, "hf:b/vlm has no resid_post.16"),
        ({"geometry": TOWER.geometry.model_copy(update={"std": (0.2,) * 3})}, "mean and std of pixels"),
    ],
)
def test_another_tower_is_told_by_its_images(update: dict[str, Any], said: str) -> None:
    other = changed(WHOLE, **{"model": "hf:b/vlm", **update})
    with pytest.raises(NotTheTower, match=said):
        plans_of(models=(WHOLE, other), vlm="hf:b/vlm")


def test_a_tower_alone_is_explained_through_the_model_that_holds_it() -> None:
    own, other = plans_of(methods=("topk",)), plans_of(sae=sae_stage(model=ALONE), vlm=VLM, methods=("topk",))
    assert (own[0].stage.subject, other[0].stage.subject) == (VLM, ALONE)
    assert own[0].stage.inputs["vlm"] == other[0].stage.inputs["vlm"] and Asked(other[0]).forward.model == ALONE


def test_features_of_another_model_are_not_read() -> None:
    sae = sae_stage()
    known = known_of(WHOLE, TOWER, sae=sae)
    cell = Cell(name="texts", spec=ExplainSpec(reads=("features",)), model=VLM, reads={"features": ()})
    with pytest.raises(BadSpec, match="reads: no features of hf:a/vlm"):
        make_plans(cell, known)
    with pytest.raises(NotInspected, match="hf:a/vlm is not inspected yet"):
        make_plans(cell, replace(known, models={}))
