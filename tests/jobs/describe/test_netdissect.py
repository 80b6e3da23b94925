"""Network dissection as published stages against sorting and counting pixels of all images at once; every cut gives the same."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.describe.segmenters import open_segmenter
from jobs.describe.spatial import check_spatial
from jobs.describe.task import Task
from jobs.protocol import Known, Setting
from jobs.sae_tokens import planned_tokens
from miclip_core.concepts.names import make_concepts, world_concepts
from miclip_core.dissect.segment import TextSegmenter
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, PLANTED, World, attributes
from schemas.errors import BadSpec, UsageError, WeightsMissing
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from tests.jobs.describe.spatial import IMAGES, MODEL, SAE, SITE, Place, same_rows
from tests.lakes import Lake, export
from tests.miclip_core.dissect import tiny_models

TAU, SHARE = 3, 0.01
ASKED = {"methods": ["netdissect"], "tau": TAU, "on_share": SHARE}


@pytest.fixture(scope="module")
def place(of_patches: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return of_patches.copy(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def report(place: Place) -> RunReport:
    return place.run(**ASKED)


def truth() -> Tensor:
    """What the demo world draws where: bool [images, values, 64, 64], by loops over images, objects and values."""
    scenes = attributes(World(seed=0), HELD_OUT_INDICES.start + np.arange(IMAGES))
    labels = torch.from_numpy(render_scenes(scenes)[1])
    names = [(category, value) for category, values in PLANTED.items() for value in range(len(values))]
    masks = torch.zeros(IMAGES, len(names), 64, 64, dtype=torch.bool)
    for m, (category, value) in enumerate(names):
        for b in range(IMAGES):
            if category == "background":
                masks[b, m] = (labels[b] == 0) & bool(scenes.background[b] == value)
                continue
            for k in range(4):
                if getattr(scenes, category)[b, k] == value:
                    masks[b, m] |= labels[b] == k + 1
    return masks


def dissect(a_BPU: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Thresholds [U], whether anything is above [U], intersections and unions [U,M]: by sorting, then by a product over all pixels."""
    flat = a_BPU.flatten(0, 1)
    value = flat.sort(0, descending=True).values[int(Fraction(str(SHARE)) * len(flat))]
    side = round(a_BPU.shape[1] ** 0.5)
    excess = (a_BPU - value).transpose(1, 2).unflatten(2, (side, side))
    pixels_NM = masks.transpose(0, 1).flatten(1).T.float()  # counts below 2^24 are exact
    inter, union = [], []
    for part in excess.split(16, 1):
        on = interpolate(part, masks.shape[2:], mode="bilinear", align_corners=False).transpose(0, 1).flatten(1) > 0
        inter.append((on.float() @ pixels_NM).long())
        union.append(on.sum(1)[:, None] + pixels_NM.sum(0).long() - inter[-1])
    return value, (flat > value).any(0), torch.cat(inter), torch.cat(union)


def lists(iou: Tensor) -> dict[tuple[int, int], tuple[int, float]]:
    """(row, rank) -> (column, score) of the best columns with a score above 0, of equal ones the lower."""
    out = {}
    for row, scores in enumerate(iou.tolist()):
        best = sorted((-score, column) for column, score in enumerate(scores) if score > 0)[:TAU]
        out |= {(row, rank): (column, -score) for rank, (score, column) in enumerate(best)}
    return out


@pytest.mark.parametrize("kind", ["neurons", "features"])
def test_counts_thresholds_and_lists_are_those_of_all_images_at_once(
    place: Place, report: RunReport, kind: str
) -> None:
    value, some, inter, union = dissect(place.activations(report, kind), truth())
    iou = (inter.double() / union).float() * some[:, None]
    concepts = world_concepts()
    for direction, table, row, column in (
        ("describe", iou, "unit", "concept_id"), ("localise", iou.T, "concept_id", "unit"),
    ):  # fmt: skip
        found = place.rows(report, "unit_concepts", direction=direction, unit_kind=kind)
        assert {(r[row], r["rank"]): (r[column], r["score"]) for r in found} == lists(table)
        assert all(r["concept"] == concepts.names[r["concept_id"]] and not r["is_dead"] for r in found)
    listed = {(r["unit"], r["concept_id"]) for r in place.rows(report, "unit_concepts", unit_kind=kind)}
    pairs = {(r["unit"], r["concept_id"]): r for r in place.rows(report, "unit_iou", unit_kind=kind)}
    assert set(pairs) == listed and len(pairs) > 100
    for (u, m), r in pairs.items():
        assert (r["intersection"], r["union"]) == (inter[u, m], union[u, m])
        assert r["iou"] == inter[u, m].item() / union[u, m].item() and r["is_detector"] == (r["iou"] > 0.04)
        assert r["threshold"] == value[u] and r["concept"] == concepts.names[m]
    (summary,) = place.rows(report, "descriptions", unit_kind=kind)
    assert (summary["units"], summary["units_dead"]) == (len(some), int((~some).sum()))
    assert (summary["images"], summary["variant"], summary["sae"] is None) == (IMAGES, "netdissect", kind == "neurons")
    assert (kind == "neurons") == bool(some.all())  # so the SAE has units that are dead, and nothing is said of them
    dead = set((~some).nonzero()[:, 0].tolist())
    assert not dead & {unit for unit, _ in listed}


def plans(place: Place, **describe: Any) -> list[Plan]:
    planned = plan_pipeline(place.spec(**describe), place.lake.store).plans()
    return [plan for _, plan, _ in planned if plan.stage.kind == "describe"]


def test_any_number_of_shards_gives_the_same_tables(
    place: Place, of_patches: Place, report: RunReport, tmp_path: Path
) -> None:
    other = of_patches.copy(tmp_path)
    cut = other.run(**ASKED, shard_rows=32)
    for table in ("unit_iou", "unit_concepts", "descriptions"):
        assert same_rows(place.rows(report, table), other.rows(cut, table))
    shards = {
        plan.stage.params["unit_kind"]: [(r.name, r.n_shards) for r in plan.rounds]
        for plan in plans(place, **ASKED, shard_rows=32)
    }
    passes = [(name, n) for i in (1, 2, 3) for name, n in ((f"pass{i}", 3), (f"close{i}", 1))]
    assert shards["neurons"] == [*passes[:4], ("overlaps", 3), ("score", 1)]  # half precision is exact after two
    assert shards["features"] == [*passes, ("overlaps", 3), ("score", 1)]


def test_a_concept_without_masks_has_no_score(place: Place, report: RunReport) -> None:
    few = place.run(**ASKED, concepts=["unicorn", "red", "word=star", "size=large"], units="neurons")
    found = place.rows(few, "unit_concepts", direction="localise")
    assert {r["concept"] for r in found} == {"red", "word=star", "size=large"}
    red = [
        r
        for r in place.rows(report, "unit_concepts", direction="localise", unit_kind="neurons")
        if r["concept"] == "red"
    ]
    keys = ("unit", "rank", "score")
    assert [[r[k] for k in keys] for r in found if r["concept"] == "red"] == [[r[k] for k in keys] for r in red]
    (summary,) = place.rows(few, "descriptions")
    assert (summary["concepts"], summary["concepts_located"]) == (4, 3)


def test_masks_that_a_model_finds_are_compared_at_their_own_size(place: Place, report: RunReport) -> None:
    """A CLIPSeg of a seed, whose masks have 32 x 32 pixels where the images have 64 x 64."""
    folder = place.folder / "clipseg"
    tiny_models.clipseg(folder)
    found = place.run(**ASKED, concepts=["a star", "red"], units="neurons", segmenter=f"file:{folder}", shard_rows=32)
    scenes = attributes(World(seed=0), HELD_OUT_INDICES.start + np.arange(IMAGES))
    pixels = torch.from_numpy(render_scenes(scenes)[0]).permute(0, 3, 1, 2)
    masks = TextSegmenter(folder, ["a star", "red"]).segment(pixels, torch.arange(IMAGES))
    assert masks.mask.shape[1:] == (32, 32) and 0.1 < masks.mask.float().mean() < 0.9
    dense = torch.zeros(IMAGES, 2, 32, 32, dtype=torch.bool)
    dense[masks.image, masks.concept] = masks.mask
    _, _, inter, union = dissect(place.activations(report, "neurons"), dense)
    rows = place.rows(found, "unit_iou")
    assert len(rows) > 90
    assert all(
        (r["intersection"], r["union"]) == (inter[r["unit"], r["concept_id"]], union[r["unit"], r["concept_id"]])
        for r in rows
    )


def test_concepts_of_the_same_names_are_looked_for_by_their_own_phrases(place: Place, tmp_path: Path) -> None:
    """One worker serves both stages: `red` is "a red object" among the values of the world, and itself in a list."""
    tiny_models.clipseg(tmp_path / "clipseg")
    asked = {**ASKED, "units": "neurons", "segmenter": f"file:{tmp_path}/clipseg"}
    (world,) = plans(place, **asked, concepts="world:colour")
    (listed,) = plans(place, **asked, concepts=list(PLANTED["colour"]))
    assert world.worker == listed.worker and world.stage.params["concepts"] == listed.stage.params["concepts"]
    scenes = attributes(World(seed=0), HELD_OUT_INDICES.start + np.arange(4))
    pixels = torch.from_numpy(render_scenes(scenes)[0]).permute(0, 3, 1, 2)
    held: dict[Any, Any] = {}
    shard, inputs, setting = next(world.all_shards()), StoreInputs(place.lake.store), Setting((world,), Resources())
    found = []
    for plan in (world, listed):
        found.append(open_segmenter(Task(plan, shard, inputs, setting, None, [], held)).find(range(4)).packed.cut(0, 4))
        phrases: Any = plan.stage.params["phrases"]
        alone = TextSegmenter(tmp_path / "clipseg", phrases).segment(pixels, torch.arange(4))
        assert torch.equal(found[-1].mask, alone.mask) and torch.equal(found[-1].concept, alone.concept)
    assert found[0].mask.shape != found[1].mask.shape or not torch.equal(found[0].mask, found[1].mask)


def test_of_all_tokens_only_patches_count(place: Place, report: RunReport) -> None:
    """The class token comes before the patches at @all."""
    whole = place.run(acts={"sites": ["resid_post.-2@all"]}, **ASKED, units="neurons")
    own = {"stage", "site"}
    for table in ("unit_iou", "unit_concepts"):
        one, other = (
            [{k: v for k, v in row.items() if k not in own} for row in place.rows(found, table, unit_kind="neurons")]
            for found in (report, whole)
        )
        assert same_rows(one, other)


def test_an_image_of_which_nothing_is_known_is_left_out(place: Place, tmp_path: Path) -> None:
    """Its file is gone after its activations were stored, so that no mask of it can be found."""
    tiny_models.clipseg(tmp_path / "clipseg")
    folder = export(tmp_path / "files", 40)
    files = Place(tmp_path, {"ref": f"folder:{folder}/images"}, sae=False)
    acts = {"on_changed": "quarantine"}
    asked = {**ASKED, "concepts": ["star"], "segmenter": f"file:{tmp_path}/clipseg"}
    files.run(acts=acts)
    sorted((folder / "images").rglob("*.png"))[7].unlink()
    (summary,) = files.rows(files.run(acts=acts, **asked), "descriptions")
    assert summary["images"] == 39


def test_what_cannot_be_dissected_is_refused_at_planning(place: Place, report: RunReport, tmp_path: Path) -> None:
    for changes, said in (
        ({"concepts": ["unicorn", "griffin"]}, "none of the concepts unicorn, griffin is a value of the demo world"),
        ({"segmenter": f"file:{tmp_path}/nowhere"}, "nowhere"),
        ({"acts": {"sites": ["resid_post.-2@patch:mean"]}, "units": "neurons"}, "has no patch grid; it needs sites with @patch"),
        ({"acts": {"sites": ["resid_post.-2@cls"]}, "units": "neurons"}, "has no patch grid"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            plans(place, **{**ASKED, **changes})


def test_truth_is_known_of_whole_images_of_the_demo_world_alone(place: Place, tmp_path: Path) -> None:
    folder = export(tmp_path / "files", 40)
    files = Place(tmp_path, {"ref": f"folder:{folder}/images"}, sae=False)
    files.run()
    with pytest.raises(UsageError, match=r"knows the images of world:... alone, found folder:"):
        plans(files, **ASKED)
    (plan,) = plans(place, **ASKED, units="neurons")
    spec: Any = place.spec(**ASKED).stages["names"]
    cut = {**plan.stage.params, "whole_view": False}
    with pytest.raises(BadSpec, match="demo:clip-p8 sees a cut of them; give the extract stage geometry: square"):
        check_spatial("netdissect", spec, Known({}, {}), make_concepts(["red"]), planned_tokens(plan), cut)
    assert plan.stage.subject == MODEL and plan.stage.params["whole_view"]


def test_a_folder_that_changed_since_it_was_planned_with_is_not_opened(place: Place, tmp_path: Path) -> None:
    """Its content names the stage, so masks of another one must not come under that name."""
    tiny_models.clipseg(tmp_path / "clipseg")
    (plan,) = plans(place, **ASKED, units="neurons", concepts=["star"], segmenter=f"file:{tmp_path}/clipseg")
    shard, inputs = next(plan.all_shards()), StoreInputs(place.lake.store)
    open_segmenter(Task(plan, shard, inputs, Setting((plan,), Resources()), None))
    (tmp_path / "clipseg/notes.txt").write_text("trained on")
    with pytest.raises(WeightsMissing, match="clipseg: its files changed since the run was planned"):
        open_segmenter(Task(plan, shard, inputs, Setting((plan,), Resources()), None))


@pytest.mark.slow
def test_selective_features_of_the_demo_zoo_are_named_as_the_planted_truth_has_it(tmp_path: Path) -> None:
    """Truth: the value by which a feature tells patches apart with an AUROC of at least 0.9; chance is 1 in 28."""
    lake = Lake(tmp_path / "lake")
    report = lake.run(truth_spec())
    assert report.exit_code == 0, report.failures
    best = [
        row for row in lake.table(report, "sae_selectivity", level="patch").to_pylist() if row["rank_in_feature"] == 0
    ]
    truth = {row["feature"]: row["concept"].partition("=")[2] for row in best if row["auroc"] >= 0.9}
    described = lake.table(report, "unit_concepts", direction="describe", unit_kind="features").to_pylist()
    right = {
        within: {row["unit"] for row in described if row["rank"] < within and row["concept"] == truth.get(row["unit"])}
        for within in (1, 5)
    }
    print(f"{len(truth)} selective features: {len(right[1])} named right, {len(right[5])} within five names")
    assert len(truth) > 20 and len(right[1]) >= 0.85 * len(truth) and len(right[5]) >= 0.95 * len(truth)


def truth_spec() -> PipelineSpec:
    sae = {**SAE, "arch": "topk", "latents": 256, "k": 8, "lr": 2e-3, "steps": 800, "batch_tokens": 1024}
    stages = {
        "acts": {"kind": "extract", "sites": [SITE], "outputs": ["activations"]},
        "sae": sae,
        "truth": {"kind": "sae_features", "reads": ["sae", "acts"]},
        "names": {"kind": "describe", "reads": ["sae", "acts"], "concepts": "world", "methods": ["netdissect"], "units": "features"},
    }  # fmt: skip
    data = {
        "kind": "pipeline",
        "name": "t",
        "images": {"ref": "world:seed=0,n=800"},
        "matrix": {"model": [MODEL]},
        "stages": stages,
    }
    return PipelineSpec.model_validate(data, strict=False)
