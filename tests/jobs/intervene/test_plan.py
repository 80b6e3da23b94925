"""Which stages a cell becomes, what decides their digests, what they cost, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.described import units_of
from jobs.intervene.plan import changes_of, classes_of, estimate, make_plans, pass_of, suffix_share
from jobs.protocol import Cell, ImageFacts, Known
from schemas.cells import Images
from schemas.errors import BadSpec, NotInspected, UnknownSite
from schemas.intervene import Change
from schemas.intervene_specs import InterveneSpec
from schemas.models import Geometry, ModelFacts, SiteFacts
from schemas.plans import Plan, Round, StageSpec
from tests.made_up_descriptions import describe_stage

VIT, RESNET = "open_clip:ViT-B-16/made-up", "timm:resnet50.made-up"
IMAGES, ROWS = Images(ref="folder:/data/imagenet"), 50_000
CONCEPTS = ("cat", "dog", "cow", "hen", "fox", "owl")
SAE = "5ae" + "0" * 17


def make_facts(model: str, sites: tuple[SiteFacts, ...], **more: Any) -> ModelFacts:
    geometry = Geometry(
        resize="shortest", resize_hw=(224, 224), crop_hw=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )  # fmt: skip
    return ModelFacts(
        model=model, family="f", weights_sha256="0", files_sha256="1", revision=None, library_versions={}, n_blocks=12, width=768,
        embed_dim=512, grid=(14, 14), input_hw=(224, 224), norm_eps=1e-5, act_kind="gelu", pool="tok",
        final_norm_position="before_pool", geometry=geometry, params=86_000_000, flops=36_000_000_000, sites=sites, **more,
    )  # fmt: skip


def tokens(path: str, cls: bool = True) -> SiteFacts:
    selectors: Any = ("all", "patch", "map", *(["cls"] if cls else []))
    positions = 196 + cls
    return SiteFacts(
        path=path, layout="tokens", shape=(768,), positions=positions, prefix=int(cls), selectors=selectors
    )


def vector(path: str, width: int) -> SiteFacts:
    return SiteFacts(path=path, layout="vector", shape=(width,), positions=1)


def feature_map(path: str) -> SiteFacts:
    return SiteFacts(path=path, layout="map", shape=(256,), positions=49, grid=(7, 7), selectors=("map",))


BLOCKS = tuple(tokens(f"{name}.{block}") for block in range(12) for name in ("resid_pre", "mlp_act", "resid_post"))
STEPS = (
    *(feature_map(f"conv.{stage}.{block}.out") for stage in range(4) for block in range(2)),
    feature_map("stage.3"),
)
CLIP_FACTS = make_facts(VIT, (*BLOCKS, vector("pooled", 768), vector("embedding", 512)), has_text=True)
RESNET_FACTS = make_facts(
    RESNET,
    (feature_map("stem"), *STEPS, vector("embedding", 256), vector("logits", 3)),
    has_text=False,
    classes=("cat ", "dog", "cow"),
)
KNOWN = Known({VIT: CLIP_FACTS, RESNET: RESNET_FACTS}, {IMAGES.key: ImageFacts("i" * 20, "content", ROWS, ROWS)})
CLASSES: dict[str, Any] = {"names": ["fox", "cat"], "templates": "plain"}


def units(
    variant: str = "act_values",
    model: str = VIT,
    site: str = "resid_post.7@patch",
    concepts: Any = CONCEPTS,
    **more: Any,
) -> Plan:
    stage = describe_stage(variant, concepts, model, site=site, **more)
    return Plan(stage=stage, rounds=(Round(name="score", rows=1, shard_rows=1),), worker="describe")


def plans_of(*read: Plan, model: str = VIT, known: Known = KNOWN, **fields: Any) -> tuple[Plan, ...]:
    fields = {"classes": CLASSES, "positions": "patch", **fields}
    spec = InterveneSpec.model_validate({"reads": ["units"], **fields}, strict=False)
    return make_plans(Cell(name="steer", spec=spec, model=model, images=IMAGES, reads={"units": read}), known)


# ---------------------------------------------------------------- stages


def test_there_is_one_stage_for_every_list_of_units_and_error_but_neurons_have_none() -> None:
    read = [units(), units("clip_dissect soft_wpmi"), units(sae=SAE), units("miclip in+out", sae=SAE, seed=1)]
    found = plans_of(*read, error=["keep", "drop"])
    about = {(p.stage.params["unit_kind"], p.stage.params["variant"], p.stage.params["error"]) for p in found}
    assert about == {
        ("neurons", "act_values", "keep"), ("neurons", "clip_dissect soft_wpmi", "keep"),
        ("features", "act_values", "keep"), ("features", "miclip in+out", "keep"),
        ("features", "act_values", "drop"), ("features", "miclip in+out", "drop"),
    }  # fmt: skip
    assert {plan.stage.inputs["units"] for plan in found} == {plan.digest for plan in read}
    assert all(("sae" in p.stage.inputs) == (p.stage.params["unit_kind"] == "features") for p in found)
    # all images are decoded once; those of one site, SAE and error run once
    assert len({plan.worker for plan in found}) == 1 and all(plan.effort == found[0].effort for plan in found)
    assert len({pass_of(plan.stage) for plan in found}) == 3


def test_classes_are_concepts_by_name_wherever_they_stand_in_the_list() -> None:
    (plan,) = plans_of(units())
    assert classes_of(plan) == ("fox", "cat") and plan.stage.params["concept_ids"] == [4, 0]
    (head,) = plans_of(units(model=RESNET, site="stage.3@map"), model=RESNET)
    assert classes_of(head) == ("cat", "dog", "cow") and head.stage.params["concept_ids"] == [0, 1, 2]
    assert head.stage.params["classes"] == "head"  # it has no text tower; classes are for the CLIPs of the matrix
    assert changes_of(plan) == (Change(beta=2.0), Change(beta=0.0))


def test_units_of_reduced_and_sampled_sites_are_changed_at_all_tokens_of_the_kind() -> None:
    (neurons,) = plans_of(units(site="resid_post.7@patch:mean"), positions="cls")
    assert neurons.stage.params["at"] == "resid_post.7@cls"
    (features,) = plans_of(units(site="resid_post.7@patch:sample(16,0)", sae=SAE))
    assert features.stage.params["at"] == "resid_post.7@patch"
    assert [p.stage.params["site"] for p in (neurons, features)] == [
        "resid_post.7@patch:mean", "resid_post.7@patch:sample(16,0)",
    ]  # fmt: skip


def test_units_found_at_two_sites_of_one_path_stay_apart_and_are_changed_in_the_same_passes() -> None:
    sites = ["resid_post.7@cls", "resid_post.7@patch:mean"]
    found = plans_of(*[units(site=site) for site in sites], positions=None)
    assert sorted(str(units_of(p.stage)) for p in found) == [f"neurons at {site}" for site in sites]
    assert {p.stage.params["at"] for p in found} == {"resid_post.7@all"}
    assert len({p.digest for p in found}) == 2 and len({pass_of(p.stage) for p in found}) == 1
    assert found[0].effort["passes_per_stage"] == 0.5
    # the tokens that are changed decide the memory, not those that units were found at
    batch, width = 64, 768
    assert estimate(found[0], KNOWN).worker_memory == estimate(found[1], KNOWN).worker_memory
    (at_cls,) = plans_of(units(site=sites[0]), positions="cls", batch_size=batch)
    (at_all,) = plans_of(units(site=sites[0]), positions="all", batch_size=batch)
    more = estimate(at_all, KNOWN).worker_memory - estimate(at_cls, KNOWN).worker_memory
    assert more == 4 * batch * 6 * 196 * width  # six copies of fp32 tokens


def test_positions_that_are_left_out_are_all_for_neurons_and_those_of_its_sae_for_a_feature() -> None:
    found = plans_of(units(), units(sae=SAE), units(sae=SAE, site="resid_post.7@cls"), positions=None)
    about = {(str(p.stage.params["unit_kind"]), p.stage.params["at"], p.stage.params["positions"]) for p in found}
    assert about == {
        ("neurons", "resid_post.7@all", "all"),
        ("features", "resid_post.7@patch", "patch"),
        ("features", "resid_post.7@cls", "cls"),
    }


def test_what_cannot_change_a_result_changes_no_digest() -> None:
    (plan,) = plans_of(units())
    same = [
        plans_of(units(), **fields)[0]
        for fields in ({"shard_rows": 7}, {"tau": 5}, {"batch_size": 4}, {"error": "drop"})
    ]
    assert {other.digest for other in same} == {plan.digest}
    maps = {
        plans_of(units(site="stage.3@map", model=RESNET), model=RESNET, positions=p)[0].digest for p in ("all", "cls")
    }
    assert len(maps) == 1
    changed: list[dict[str, Any]] = [
        {"tau": 4}, {"positions": "all"}, {"off_class_seed": 1}, {"off_class_seed": None}, {"labels_from": "kind"},
        {"changes": [{"beta": 2.0}]}, {"dtype": "bf16"}, {"classes": {**CLASSES, "templates": "openai80"}},
    ]  # fmt: skip
    assert len({plan.digest, *(plans_of(units(), **fields)[0].digest for fields in changed)}) == 1 + len(changed)


# ---------------------------------------------------------------- cost


def test_flops_are_one_pass_for_all_methods_and_the_ends_of_two_for_every_change_of_each() -> None:
    """After block 7 of 12 a third of the pass is left. Two methods: 1 + 2 * (2 changes * 2) / 3 passes per image."""
    found = plans_of(units(), units("auroc"))
    whole = ROWS * CLIP_FACTS.flops
    assert sum(estimate(plan, KNOWN).flops for plan in found) == pytest.approx(whole * (1 + 8 / 3))
    assert estimate(found[0], KNOWN).images == ROWS
    (on_class,) = plans_of(units(), off_class_seed=None)
    assert estimate(on_class, KNOWN).flops == pytest.approx(whole * (1 + 2 / 3))
    kept, dropped = plans_of(units(sae=SAE), error=["keep", "drop"])
    more = estimate(dropped, KNOWN).flops - estimate(kept, KNOWN).flops
    assert more == pytest.approx(whole / 3)  # the reference: reconstructions as they are
    assert estimate(found[0], Known({}, {})).flops == 0


@pytest.mark.parametrize(
    ("facts", "site", "share"),
    [
        (CLIP_FACTS, "resid_pre.0", 1), (CLIP_FACTS, "mlp_act.6", 0.5), (CLIP_FACTS, "resid_post.5", 0.5),
        (CLIP_FACTS, "pooled", 1 / 12), (RESNET_FACTS, "stem", 1), (RESNET_FACTS, "conv.1.1.out", 0.5),
        (RESNET_FACTS, "stage.3", 0), (make_facts("demo:odd", (vector("embedding", 5),), has_text=True), "embedding", 1),
    ],
)  # fmt: skip
def test_what_is_left_of_a_pass_after_a_site(facts: ModelFacts, site: str, share: float) -> None:
    assert suffix_share(facts, site) == pytest.approx(share)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("read", "fields", "said"),
    [
        (units(), {"classes": {"names": ["fox", "elk", "gnu"]}}, "elk, gnu not among the 6 concepts of resid_post.7@patch act_"),
        (units(), {"classes": {"names": ["fox", "fox "]}}, "fox is there twice"),
        (units(), {"classes": None}, "has no classes of its own; add classes"),
        (units(), {"tau": 6}, "stages.steer.tau: 6 units of a concept, but lists of resid_post.7@patch act_values.* have 5"),
        (units(sae=SAE), {"positions": "all"}, "SAE of the tokens @patch; leave positions out"),
        (units(sae=SAE, site="resid_post.7@patch:mean"), {}, "of an SAE of the mean of tokens"),
        (units(model=RESNET, site="stage.3@map"), {}, "no units of open_clip:ViT-B-16/made-up were described"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_what_to_change(read: Plan, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        plans_of(read, **fields)


def test_classes_of_a_head_cannot_be_exchanged_so_units_must_be_described_with_them() -> None:
    said = r"dog, cow not among the 2 concepts of .* \(cat, owl\); describe .*, they are those of .*'s own head"
    with pytest.raises(BadSpec, match=said):
        plans_of(units(model=RESNET, site="stage.3@map", concepts=("cat", "owl")), model=RESNET)


def test_sites_without_such_tokens_or_behind_the_answer_are_refused() -> None:
    no_cls = make_facts(VIT, (tokens("resid_post.7", cls=False), vector("embedding", 512)), has_text=True)
    with pytest.raises(UnknownSite, match="no cls here"):
        plans_of(units(), positions="cls", known=Known({VIT: no_cls}, KNOWN.images))
    late = make_facts(VIT, (*BLOCKS, vector("embedding", 512), vector("logits", 3)), has_text=True)
    with pytest.raises(BadSpec, match="logits comes after the embedding that classes are told from"):
        plans_of(units(site="logits"), known=Known({VIT: late}, KNOWN.images))
    with pytest.raises(NotInspected):
        plans_of(units(), known=Known({}, {}))


@pytest.mark.parametrize("beta", [float("nan"), float("inf")])
def test_a_change_by_no_number_is_refused_when_the_spec_is_read(beta: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        plans_of(units(), changes=[{"beta": beta}])


def test_only_stages_of_units_are_read() -> None:
    text = StageSpec(kind="extract", method=1, subject=VIT, output="text_embeddings", params={})
    beside = Plan(stage=text, rounds=(), worker="extract")
    assert [p.digest for p in plans_of(beside, units())] == [p.digest for p in plans_of(units())]
