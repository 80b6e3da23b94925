"""Inversions and edits from made-up pairs, against the same by slow steps; what a plan depends on; and what is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cluster.inputs import StoreInputs
from cluster.keep import StoreKeep
from cluster.planned import plan_pipeline
from jobs.invert.plan import estimate
from jobs.invert.work import open_worker
from jobs.protocol import Setting
from miclip_core.generate.generator import as_uint8
from miclip_core.generate.load import load_generator
from miclip_core.generate.seeds import START_SEEDS
from miclip_core.rosetta.edits import edited
from miclip_core.rosetta.image_scores import psnr, ssim
from miclip_core.world.location import parse_location
from miclip_core.world.render import render
from miclip_core.world.scene import HELD_OUT_INDICES
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import UsageError
from schemas.inversion import MOST_STARTS, Edit
from schemas.plans import Resources
from schemas.refs import ImageSetRef, ModelRef
from tests.jobs.invert.lake_of_pairs import (
    BUDDIES,
    COARSE,
    DRAWN,
    FINE,
    GENERATOR,
    GRIDS,
    PHOTOS,
    RESNET,
    STAGE,
    TOKENS,
    VIT,
    Row,
    World,
    statistics,
)

STARTS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world: World) -> list[Row]:
    """An inversion with everything as usual, but short."""
    (found,) = world.run(world.spec(starts=STARTS))
    return found


@cache
def generator() -> Any:
    return load_generator(ModelRef.parse(GENERATOR))


@cache
def get_model(name: str) -> VisionModel:
    return load_model(ModelRef.parse(name))


def photo(index: int) -> torch.Tensor:
    """An image of PHOTOS, uint8 [1, 3, 64, 64]; 64 pixels are what the generator draws and all models see."""
    of, _ = parse_location(ImageSetRef.parse(PHOTOS))
    return torch.from_numpy(np.ascontiguousarray(render(of, HELD_OUT_INDICES.start + index)[0])).permute(2, 0, 1)[None]


def standardised(rows_P: torch.Tensor, site: str, unit: int, target: tuple[int, int]) -> torch.Tensor:
    """One map, enlarged and scaled as the tables say."""
    map_ = interpolate(rows_P.reshape(1, 1, *GRIDS[site]), size=target, mode="bilinear", align_corners=False)
    mean, sd = statistics(site, unit, target[0])
    return (map_.flatten() - mean) / sd


def slow_similarity(latent: torch.Tensor, image: torch.Tensor, models: Sequence[str] = (VIT, RESNET)) -> float:
    """Mean over all buddies of the mean product of their maps, one pair after the other."""
    found = []
    for name in models:
        model = get_model(name)
        for site, unit, site_of, unit_of, _ in BUDDIES[name]:
            own = generator().run(latent, [site])[1][site][0, :, unit]
            value = model.run(model.normalise(image), [site_of])[site_of][0]
            its = value[:, unit_of] if value.ndim == 2 else value[unit_of].flatten()
            a, b = (standardised(*map_, GRIDS[site]) for map_ in ((own, site, unit), (its, site_of, unit_of)))
            found.append(float((a * b).mean()))
    return float(np.mean(found))


# ---------------------------------------------------------------- inversions


def test_every_image_has_a_row_for_each_start_and_one_of_them_is_best(rows: list[Row]) -> None:
    assert [(row["image_index"], row["start"]) for row in rows] == [(i, s) for i in range(5) for s in range(STARTS)]
    for i in range(5):
        of = rows[STARTS * i : STARTS * (i + 1)]
        assert [row["is_best"] for row in of] == [row["loss"][-1] == min(r["loss"][-1] for r in of) for row in of]
    assert {row["edit"] for row in rows} == {row["lpips"] for row in rows} == {None}
    assert {(row["pairs"], row["steps"], len(row["loss"]), len(row["act_sim"])) for row in rows} == {(5, 4, 5, 5)}


def test_each_start_is_drawn_from_its_image_and_number_alone(rows: list[Row]) -> None:
    """The first step of the ramp has rate 0, so what it scores is the start itself."""
    for row in rows[:4]:
        start = generator().latents(START_SEEDS, [row["image_index"] * MOST_STARTS + row["start"]])
        image = photo(row["image_index"]).float() / 255
        error = (generator().synthesize(start) - image).square().mean()
        assert row["pixel_loss"][0] == row["pixel_loss"][1] == pytest.approx(float(error), rel=1e-5)
    assert len({row["pixel_loss"][0] for row in rows}) == len(rows)


def test_maps_are_held_against_those_of_the_buddies_on_the_image(rows: list[Row]) -> None:
    for row in (rows[0], rows[4]):
        start = generator().latents(START_SEEDS, [row["image_index"] * MOST_STARTS + row["start"]])
        image = photo(row["image_index"])
        assert row["act_sim_before"] == row["act_sim"][0] == pytest.approx(slow_similarity(start, image), abs=1e-5)
        end = torch.tensor([row["latent"]])
        assert row["act_sim_after"] == row["act_sim"][-1] == pytest.approx(slow_similarity(end, image), abs=1e-5)
        size = float(end.square().mean())
        loss = 100 * row["pixel_loss"][-1] - row["act_sim_after"] + 0.1 * size
        assert row["loss"][-1] == pytest.approx(loss, rel=1e-5)
        assert row["loss"][-1] < row["loss"][0]


def test_the_picture_is_what_the_latent_draws_and_is_scored_against_the_image(rows: list[Row]) -> None:
    for row in (rows[1], rows[5]):
        drawn = as_uint8(generator().synthesize(torch.tensor([row["latent"]])))
        shown = torch.from_numpy(np.array(Image.open(io.BytesIO(row["picture"])))).permute(2, 0, 1)[None]
        assert (drawn.int() - shown.int()).abs().max() <= 1
        image = photo(row["image_index"])
        assert row["psnr"] == pytest.approx(psnr(shown, image).item())
        assert row["ssim"] == pytest.approx(ssim(shown, image).item())


def test_shards_and_batches_change_nothing_and_have_no_part_in_the_digest(world: World, rows: list[Row]) -> None:
    (whole,) = world.plans(world.spec(starts=STARTS))
    (cut,) = world.plans(world.spec(starts=STARTS, shard_rows=2, samples_at_once=4, batch_size=2))
    assert whole.digest == cut.digest and whole.n_shards == 1 and cut.n_shards == 3
    inputs = StoreInputs(world.lake.store)
    worker, keep = open_worker(Setting((cut,), Resources()), inputs), StoreKeep(world.lake.store, 0)
    parts = [part for shard in cut.all_shards() for part in worker.process(shard, [cut.digest], inputs, keep)]
    found = [row for part in parts for row in part.batch.to_pylist()]
    for row, other in zip(rows, found, strict=True):
        about = ("image_id", "start", "is_best", "pairs", "steps")
        assert [row[name] for name in about] == [other[name] for name in about]
        np.testing.assert_allclose(row["latent"], other["latent"], atol=1e-4)
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=1e-4)


def test_only_some_members_and_the_highest_r_guide_if_so_asked(world: World) -> None:
    first = {"ref": PHOTOS, "limit": 1}
    one, best, none = world.run(
        world.spec(
            [{"images": first, "starts": 1, "pairs": 3}, {"images": first, "starts": 1, "activation": 0.0}],
            images=first,
            members=[VIT],
            starts=1,
        )
    )
    start = generator().latents(START_SEEDS, [0])
    assert one[0]["pairs"] == 3
    assert one[0]["act_sim_before"] == pytest.approx(slow_similarity(start, photo(0), [VIT]), abs=1e-5)
    assert best[0]["pairs"] == 3  # of both: 0.9, 0.8, 0.7
    assert best[0]["act_sim_before"] != pytest.approx(one[0]["act_sim_before"], abs=1e-4)
    row = none[0]  # pixels alone decide, but maps are compared all the same
    assert row["pairs"] == 5 and row["act_sim_before"] == pytest.approx(slow_similarity(start, photo(0)), abs=1e-5)
    size = float(np.mean(np.square(row["latent"])))
    assert row["loss"][-1] == pytest.approx(100 * row["pixel_loss"][-1] + 0.1 * size, rel=1e-5)


# ---------------------------------------------------------------- edits


def test_edits_begin_at_the_latent_that_drew_the_image(world: World) -> None:
    """Each buddy of the generator counts once, on its own grid; the goal is what the edit makes of its maps."""
    zoomed, shifted = world.run(
        world.spec(images={"ref": DRAWN, "limit": 3}, edit=["zoom", "shift_left"], regulariser=10.0, lr=0.01, starts=2)
    )
    units = {FINE: [0, 2, 4], COARSE: [1]}
    for rows, edit in ((zoomed, Edit(name="zoom", amount=2)), (shifted, Edit(name="shift_left", amount=0.25))):
        assert [(row["image_index"], row["start"]) for row in rows] == [(i, s) for i in range(3) for s in range(2)]
        assert {(row["edit"], row["pairs"]) for row in rows} == {(str(edit), 4)}
        own = generator().latents(3, [1])
        found = []
        for site, numbers in units.items():
            maps = generator().run(own, [site])[1][site][:, :, numbers]
            wanted = edited(maps, GRIDS[site], edit)
            for i, unit in enumerate(numbers):
                a, b = (standardised(m[0, :, i], site, unit, GRIDS[site]) for m in (maps, wanted))
                found.append(float((a * b).mean()))
        row, elsewhere = rows[2], rows[3]
        assert row["act_sim_before"] == pytest.approx(np.mean(found), rel=1e-4, abs=1e-5)
        moved = torch.tensor([row["latent"]]) - own
        loss = -row["act_sim_after"] + 10 * float(moved.square().mean())  # towards the latent, and no pixels
        assert row["loss"][-1] == pytest.approx(loss, rel=1e-4, abs=1e-5) and row["pixel_loss"][0] < 1e-9
        assert 0 < moved.abs().max() < 0.1
        start = generator().latents(
            START_SEEDS, [MOST_STARTS + 1]
        )  # the second is random, and counted from there as well
        far = -elsewhere["act_sim_before"] + 10 * float((start - own).square().mean())
        assert elsewhere["loss"][0] == pytest.approx(far, rel=1e-4) and elsewhere["pixel_loss"][0] > 0.001


def test_a_chosen_unit_is_removed_and_copies_start_at_random(world: World) -> None:
    removed, pasted = world.run(
        world.spec(
            [{"images": {"ref": DRAWN, "limit": 2}, "edit": "copy_paste", "starts": 2}],
            images={"ref": DRAWN, "limit": 2}, edit="remove", chosen=[{"site": "act.0", "unit": 7}],
        )
    )  # fmt: skip
    assert {(row["edit"], row["pairs"]) for row in removed} == {("remove", 1)}
    maps = generator().run(generator().latents(3, [0]), [COARSE])[1][COARSE][0, :, 7]
    level = standardised(torch.full_like(maps, maps.min()), COARSE, 7, GRIDS[COARSE])
    expected = float((standardised(maps, COARSE, 7, GRIDS[COARSE]) * level).mean())
    assert removed[0]["act_sim_before"] == pytest.approx(expected, rel=1e-4)
    assert [(row["image_index"], row["start"]) for row in pasted] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert pasted[0]["pixel_loss"][0] > 0.001  # not the image's own latent


def test_maps_that_are_too_small_to_be_shifted_do_not_count_and_are_told(world: World) -> None:
    """0.05 of 16 positions is none, of 32 one."""
    (rows,) = world.run(world.spec(images={"ref": DRAWN, "limit": 1}, edit="shift_up", amount=0.05, starts=1))
    assert [row["pairs"] for row in rows] == [3]
    assert any(f"maps of {COARSE} (16x16) are too small to be shifted" in note for note in world.notes())


def test_an_image_that_the_generator_did_not_draw_is_edited_from_its_best_inversion(world: World) -> None:
    spec = world.spec([{"reads": ["mine", "found"], "edit": "shift_right", "lr": 1e-6, "starts": 1}], starts=STARTS)
    inverted, shifted = world.run(spec)
    best = {row["image_index"]: row["latent"] for row in inverted if row["is_best"]}
    assert [row["image_index"] for row in shifted] == sorted(best)
    for row in shifted:
        np.testing.assert_allclose(row["latent"], best[row["image_index"]], atol=1e-4)
    found, edited_ = world.plans(spec)
    assert edited_.stage.inputs["inversion"] == found.digest


# ---------------------------------------------------------------- images that cannot be used


def test_images_that_the_generator_or_a_guide_cannot_use_are_rows_of_bad_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(photo(i)[0].permute(1, 2, 0).numpy()).save(tmp_path / f"photos/{i}.png")
    world = World(tmp_path, f"folder:{tmp_path}/photos", on_changed="quarantine", on_nonfinite="quarantine")
    found, edit = world.plans(
        world.spec([{"reads": ["mine", "found"], "edit": "zoom", "starts": 1}], starts=1, shard_rows=3)
    )
    (tmp_path / "photos/1.png").write_bytes(b"no image any more")
    (tmp_path / "photos/3.png").unlink()
    run = VisionModel.run

    def broken(self: VisionModel, *args: Any, **more: Any) -> dict[str, torch.Tensor]:
        found = run(self, *args, **more)
        if STAGE in found:
            found[STAGE][0] = torch.nan  # of the first image in the batch
        return found

    monkeypatch.setattr(VisionModel, "run", broken)
    inverted, zoomed = world.run_plans([found, edit])
    assert [row["image_index"] for row in inverted] == [row["image_index"] for row in zoomed] == [2]
    gone = [(1, "checksum", "its bytes differ from the index"), (3, "missing", "it is gone")]
    assert world.bad_inputs(found) == [(0, "nonfinite", f"{RESNET}: {STAGE} is NaN or infinite"), *gone]
    assert world.bad_inputs(edit) == gone
    assert "1 images left out: what is read found no latent for them to begin at" in world.notes()


# ---------------------------------------------------------------- what it takes


def test_the_memory_that_a_plan_states_has_the_maps_of_the_members_that_guide(world: World) -> None:
    def stated(**fields: Any) -> int:
        planned = plan_pipeline(world.spec(**fields), world.lake.store)
        (plan,) = (plan for cell in planned.cells if cell.cell.spec.kind == "invert" for plan in cell.plans)
        return estimate(plan, planned.known).worker_memory

    largest = max(
        64 * get_model(name).facts.site(site.split("@")[0]).width for name, site in ((VIT, TOKENS), (RESNET, STAGE))
    )
    assert stated(batch_size=42) - stated(batch_size=32) == 10 * 3 * 4 * largest  # three times, in float32
    assert stated(images={"ref": DRAWN}, edit="zoom", batch_size=42) == stated(images={"ref": DRAWN}, edit="zoom")
    # 32 x 32 is the largest grid; wanted of 8 images of a shard twice, and thrice beside 64 samples
    assert stated(pairs=12) - stated(pairs=2) == 10 * 32 * 32 * 4 * (2 * 8 + 3 * 64)
    assert stated(pairs=12, shard_rows=9) - stated(pairs=12) == 12 * 32 * 32 * 4 * 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"generator": VIT}, f"generator: {VIT} .* reads images and draws none"),
        ({"generator": "demo:vit-dense"}, "generator: demo:vit-dense was compared with no other model in mine"),
        ({"members": ["demo:siglip-p8"]}, f"members: demo:siglip-p8 was not compared with {GENERATOR}; there are {VIT}, {RESNET}"),
        ({"units": "features"}, "units: no features of .* were compared"),
        ({"k": 6}, "k: the 6 nearest, of which mine mines 5; expected at most 5"),
        ({"edit": "zoom"}, "did not draw these images.*found 0 inversions.*read an invert stage with edit: none"),
        ({"edit": "remove", "chosen": [{"site": "act.0", "unit": 999}]}, r"chosen: unit 999 of act.0@map, which has"),
        ({"edit": "remove", "chosen": [{"site": "act.99", "unit": 0}]}, "chosen: act.99 is not one site of"),
        ({"edit": "remove", "chosen": [{"site": "act.*", "unit": 0}]}, r"chosen: act.\* is not one site of"),
    ],
)  # fmt: skip
def test_what_cannot_be_inverted_is_refused_before_it_starts(world: World, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(world.spec(**fields), world.lake.store)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reads": []}, "no units that models share"),
        ({"edit": "strengthen"}, "edit strengthen needs units"),
        ({"chosen": [{"site": "act.0", "unit": 1}]}, "leave chosen out"),
        ({"edit": "zoom", "amount": 0.5}, "a zoom magnifies"),
        ({"amount": 2.0}, "an amount is of an edit"),
        (
            {"edit": "remove", "chosen": [{"site": "act.0", "unit": 1}], "starts": 2},
            "begins at the latent of the image alone",
        ),
        ({"edit": "zoom", "activation": 0.0}, "nothing is sought"),
        ({"reconstruction": 0.0, "activation": 0.0}, "nothing is sought"),
    ],
)
def test_what_makes_no_sense_is_refused_as_it_is_read(world: World, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        world.spec(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": {"ref": DRAWN, "limit": 1}, "edit": "remove", "chosen": [{"site": "act.0", "unit": 8}]},
         "NothingToGuide: statistics of unit 8 of act.0@map are missing from rosetta_units"),
        ({"images": {"ref": DRAWN, "limit": 1}, "edit": "shift_up", "amount": 0.01}, "NothingToGuide: .* no paired unit"),
    ],
)  # fmt: skip
def test_what_fails_at_work_says_why(world: World, fields: dict[str, Any], said: str) -> None:
    assert re.search(said, world.failure(world.spec(**fields)))
