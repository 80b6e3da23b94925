"""Captions of exciting patches as published stages, against sorting all patches and asking about each by hand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.describe.captioners import open_captioner
from jobs.describe.task import Task
from jobs.protocol import Setting
from miclip_core.concepts.names import world_concepts
from miclip_core.dissect.caption import AskedCaptions, Patch, prompt_hash
from miclip_core.dissect.patches import TopPatches, crop, patch_box
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, World, attributes
from miclip_core.zoo.load import load_model
from schemas.errors import BadLabels, UsageError, WeightsMissing
from schemas.plans import Plan, Resources
from schemas.refs import ModelRef
from tests.jobs.describe.spatial import CLIP, IMAGES, Place, same_rows
from tests.lakes import export
from tests.miclip_core.dissect import tiny_models

TAU, K = 3, 4
ASKED = {"methods": ["v_interp"], "tau": TAU, "patches": K}


@pytest.fixture(scope="module")
def place(of_patches: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return of_patches.copy(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def report(place: Place) -> RunReport:
    return place.run(**ASKED)


def top_patches(a_BPU: Tensor) -> dict[tuple[int, int], tuple[int, int, float]]:
    """(unit, rank) -> (image, patch, activation): the highest patch of the highest images; 0 is no excitation."""
    best, where = a_BPU.max(1)
    first = (a_BPU == best[:, None]).int().argmax(1)
    assert where.shape == first.shape
    found = {}
    for u in range(a_BPU.shape[2]):
        column = [(-value, image) for image, value in enumerate(best[:, u].tolist()) if value != 0]
        for rank, (value, image) in enumerate(sorted(column)[:K]):
            found[u, rank] = (image, int(first[image, u]), -value)
    return found


def similarities(captions: Sequence[tuple[int, str]], units: int) -> Tensor:
    """Cosines [U,M] of the mean of each unit's captions, in the CLIP's text space, with the concepts; NaN without any."""
    clip = load_model(ModelRef.parse(CLIP))
    concepts = normalize(clip.embed_text(world_concepts().phrases), dim=1)
    vectors = {text: normalize(clip.embed_text([text]), dim=1)[0] for text in {text for _, text in captions if text}}
    total = torch.zeros(units, concepts.shape[1])
    for unit, text in captions:
        if text:
            total[unit] += vectors[text]
    return (total / total.norm(dim=1, keepdim=True)) @ concepts.T


def check_lists(place: Place, report: RunReport, kind: str, sims: Tensor) -> None:
    """Published scores are those similarities, and no other pair of a list's row has a larger one."""
    for direction, table, row, column in (
        ("describe", sims, "unit", "concept_id"), ("localise", sims.T, "concept_id", "unit"),
    ):  # fmt: skip
        rows = place.rows(report, "unit_concepts", direction=direction, unit_kind=kind)
        some = ~table.isnan().all(1)
        assert len(rows) == int(some.sum()) * TAU
        for r in rows:
            mine = table[r[row]]
            assert r["score"] == pytest.approx(mine[r[column]].item(), abs=2e-6)
            assert r["score"] == pytest.approx(
                mine.nan_to_num(-2).sort(descending=True).values[r["rank"]].item(), abs=2e-6
            )


@pytest.mark.parametrize("kind", ["neurons", "features"])
def test_captions_are_those_of_the_images_of_the_highest_patches(place: Place, report: RunReport, kind: str) -> None:
    a_BPU = place.activations(report, kind)
    told = {row["image_index"]: row for row in place.rows(report, "images")}
    expected = top_patches(a_BPU)
    rows = place.rows(report, "unit_captions", unit_kind=kind)
    assert {(r["unit"], r["rank"]): (r["image_index"], r["token"], r["value"]) for r in rows} == expected
    for r in rows:
        image = told[r["image_index"]]
        assert (r["text"], r["image_id"], r["captioner"]) == (image["caption"], image["image_id"], "caption")
    sims = similarities([(r["unit"], r["text"]) for r in rows], a_BPU.shape[2])
    check_lists(place, report, kind, sims)
    (summary,) = place.rows(report, "descriptions", unit_kind=kind)
    dead = int((a_BPU == 0).flatten(0, 1).all(0).sum())
    assert (summary["units_dead"], summary["images"], summary["clip"]) == (dead, IMAGES, CLIP)
    assert summary["units_described"] == a_BPU.shape[2] - dead and (dead > 0) == (kind == "features")


def test_any_number_of_shards_gives_the_same_tables(
    place: Place, of_patches: Place, report: RunReport, tmp_path: Path
) -> None:
    other = of_patches.copy(tmp_path)
    cut = other.run(**ASKED, shard_rows=32)
    for table in ("unit_captions", "unit_concepts", "descriptions"):
        assert same_rows(place.rows(report, table), other.rows(cut, table))


def test_a_model_is_asked_once_about_every_patch_of_a_bucket(
    place: Place, report: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LLaVA of a seed is shown what is cut out of the images; its answers are those it gives by hand."""
    folder = place.folder / "tiny-llava"
    tiny_models.llava(folder)
    monkeypatch.setattr("jobs.describe.spatial.BUCKET_PATCHES", 32)
    asked: list[int] = []
    answer = AskedCaptions.caption

    def count(self: AskedCaptions, patches: Sequence[Patch], prompt: str) -> list[str]:
        asked.append(len(patches))
        return answer(self, patches, prompt)

    monkeypatch.setattr(AskedCaptions, "caption", count)
    prompt = "describe this"
    settings = {
        **ASKED,
        "units": "neurons",
        "captioner": f"file:{folder}",
        "prompt": prompt,
        "context": 3.0,
        "patches": 1,
    }
    found = place.run(**settings)
    monkeypatch.undo()
    rows = place.rows(found, "unit_captions")
    buckets: list[set[tuple[int, int]]] = [set(), set(), set()]
    for r in rows:
        buckets[r["unit"] // 32].add((r["image_index"], r["token"]))
    assert sum(asked) == sum(map(len, buckets)) < len(rows) == 96  # some patches excite several units
    captioner = AskedCaptions(folder)
    scenes = attributes(World(seed=0), HELD_OUT_INDICES.start + np.arange(IMAGES))
    pixels = torch.from_numpy(render_scenes(scenes)[0]).permute(0, 3, 1, 2)
    some = rows[::9]
    patches = [
        Patch(r["image_index"], crop(pixels[r["image_index"]], patch_box(r["token"], (8, 8), (64, 64), 3.0)))
        for r in some
    ]
    assert [r["text"] for r in some] == captioner.caption(patches, prompt)
    assert {r["prompt_hash"] for r in rows} == {prompt_hash(captioner, prompt)}
    assert {r["captioner"] for r in rows} == {"tiny-llava"} and len({r["text"] for r in rows}) > 3
    check_lists(place, found, "neurons", similarities([(r["unit"], r["text"]) for r in rows], 96))


def with_captions(folder: Path, keep: set[int], n: int = 40, behind: str = "") -> Place:
    """Files of the demo world of which only these still have a caption, and something `behind` it."""
    files = export(folder / "files", n)
    labels = pq.read_table(files / "labels.parquet")
    texts = [
        text + behind if i in keep else ("  " if i % 2 else None)
        for i, text in enumerate(labels["caption"].to_pylist())
    ]
    place_of = labels.schema.get_field_index("caption")
    pq.write_table(labels.set_column(place_of, "caption", [texts]), folder / "labels.parquet")
    return Place(folder, {"ref": f"folder:{files}/images", "labels": f"file:{folder}/labels.parquet"}, sae=False)


def test_empty_captions_are_no_evidence(tmp_path: Path) -> None:
    files = with_captions(tmp_path, {3, 4, 5, 6, 7, 30})
    found = files.run(**ASKED)
    rows = files.rows(found, "unit_captions")
    assert len(rows) == 96 * K and 0 < sum(r["text"] == "" for r in rows) < len(rows)
    sims = similarities([(r["unit"], r["text"]) for r in rows], 96)
    assert 0 < int(sims.isnan().all(1).sum()) < 90  # units with nothing but empty ones have no list
    check_lists(files, found, "neurons", sims)
    (summary,) = files.rows(found, "descriptions")
    assert (summary["units_dead"], summary["units_described"]) == (0, int((~sims.isnan().all(1)).sum()))


def test_captions_that_the_text_tower_does_not_see_to_their_end_are_counted(tmp_path: Path) -> None:
    files = with_captions(tmp_path, {3, 4, 5, 6, 7, 30}, behind=" beside a red star" * 30)
    files.run(**ASKED)
    notes = [note for event in files.lake.events for note in event.get("notes", ())]
    (cut,) = [note for note in notes if "lose their end" in note]
    assert "6 of 6 texts are longer than the context of demo:clip-rn" in cut


def test_images_without_captions_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    files = with_captions(tmp_path, set())
    failed = files.lake.run(files.spec(**ASKED))
    assert failed.exit_code == 1 and BadLabels.__name__ in failed.failures[0]
    assert "give images with captions" in failed.failures[0] and "captioner: file:/folder" in failed.failures[0]


def plans(place: Place, **describe: Any) -> list[Plan]:
    planned = plan_pipeline(place.spec(**describe), place.lake.store).plans()
    return [plan for _, plan, _ in planned if plan.stage.kind == "describe"]


def test_what_decides_captions_decides_the_stage_and_nothing_else(
    place: Place, report: RunReport, tmp_path: Path
) -> None:
    tiny_models.llava(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    given = [plans(place, **ASKED, units="neurons", prompt=prompt)[0] for prompt in ("one", "two")]
    assert given[0].digest == given[1].digest and [r.n_shards for r in given[0].rounds] == [1, 1, 1]
    asked = [
        plans(place, **ASKED, units="neurons", prompt=prompt, captioner=f"file:{tmp_path}/{folder}")[0]
        for prompt, folder in (("one", "a"), ("two", "a"), ("one", "b"))
    ]
    assert asked[0].digest != asked[1].digest and asked[0].digest == asked[2].digest  # a folder is what is in it
    features = plans(place, **ASKED, units="features", captioner=f"file:{tmp_path}/a")[0]
    assert [(r.name, r.n_shards) for r in features.rounds] == [("map", 1), ("caption", 64), ("score", 1)]


def test_a_folder_that_changed_since_it_was_planned_with_is_not_opened(
    place: Place, report: RunReport, tmp_path: Path
) -> None:
    tiny_models.llava(tmp_path / "llava")
    (plan,) = plans(place, **ASKED, units="neurons", captioner=f"file:{tmp_path}/llava")
    shard, inputs, none = next(plan.all_shards()), StoreInputs(place.lake.store), TopPatches(1, 1).distinct()
    open_captioner(Task(plan, shard, inputs, Setting((plan,), Resources()), None), none)
    (tmp_path / "llava/notes.txt").write_text("trained on")
    with pytest.raises(WeightsMissing, match="llava: its files changed since the run was planned"):
        open_captioner(Task(plan, shard, inputs, Setting((plan,), Resources()), None), none)


def test_what_cannot_be_captioned_is_refused_at_planning(place: Place, report: RunReport, tmp_path: Path) -> None:
    for changes, said in (
        ({"captioner": f"file:{tmp_path}/nowhere"}, "nowhere"),
        ({"acts": {"sites": ["resid_post.-2@patch:mean"]}, "units": "neurons"}, "has no patch grid"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            plans(place, **{**ASKED, **changes})
