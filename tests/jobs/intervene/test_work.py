"""Right answers with units changed, against whole passes of one class at a time; siblings, shards and failures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.inputs import StoreInputs
from jobs.evaluate.plan import make_plans as plan_evaluation
from jobs.intervene.work import open_worker
from jobs.protocol import Cell, Setting
from miclip_core.intervene.sweep import Sweep
from miclip_core.sae.sae import Sae
from miclip_core.zoo.model import VisionModel
from schemas.evaluate_specs import EvaluateSpec
from schemas.plans import Resources
from tests.jobs.intervene.lake_of_units import CHANGES, CLIP, HEAD, IMAGES, SITE, World, moved, only
from tests.jobs.sae_features.lake_of_saes import publish_sae
from tests.lakes import SHAPES

TEXTURES = ("solid", "checkered", "dotted", "striped")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("intervene"))


# ---------------------------------------------------------------- against the slow loop


@pytest.mark.parametrize(
    "positions", ["all", pytest.param("patch", marks=pytest.mark.slow), pytest.param("cls", marks=pytest.mark.slow)]
)
def test_edits_row_by_row_count_as_one_class_at_a_time(world: World, positions: str) -> None:
    read = world.describe("act_values", 96, draw=1)
    (rows,) = world.effects(read, positions=positions)
    expected = world.slowly(read, f"{SITE}@{positions}", SHAPES, "shape")
    assert only(rows, expected) == expected
    assert {(row["site"], row["positions"]) for row in rows} == {
        (f"{SITE}@patch", positions)
    }  # found there, changed here
    if positions == "all":
        assert min(moved(rows).values()) > 5  # the changes matter, or nothing would be tested


def test_units_found_at_two_sites_of_one_path_are_judged_apart(world: World) -> None:
    """Both are changed at all tokens, in the same passes; tables and evaluate say where each was found."""
    sites = [f"{SITE}@cls", f"{SITE}@patch:mean"]
    read = [world.describe("act_values", 96, draw=draw, site=site) for draw, site in enumerate(sites)]
    plans = world.plans(*read)
    assert not world.run(plans).failed
    changed = {world.rows(plan)[0]["site"]: world.rows(plan) for plan in plans}
    assert set(changed) == set(sites)
    for plan, site in zip(read, sites, strict=True):
        expected = world.slowly(plan, f"{SITE}@all", SHAPES, "shape")
        assert only(changed[site], expected) == expected and {row["positions"] for row in changed[site]} == {"all"}

    cell = Cell("judge", EvaluateSpec(reads=("steer",)), CLIP, clip=CLIP, reads={"steer": plans})
    (judge,) = plan_evaluation(cell, world.known)
    assert not world.run([judge]).failed
    scores = {(row["site"], row["measure"]): row["value"] for row in world.rows(judge, "method_scores")}
    points = {
        site: [100 * (row["correct_edit"] - row["correct_ref"]) / row["n"] for row in rows if row["beta"] == 8]
        for site, rows in changed.items()
    }
    assert {s: scores[s, "dacc x8 keep"] for s in sites} == pytest.approx({s: np.mean(points[s]) for s in sites})
    assert points[sites[0]] != points[sites[1]] and len(scores) == 2 * 2 * len(CHANGES)
    assert not world.rows(judge, "method_tests")  # one method at each site, and never two sites against each other


def test_features_with_their_error_kept_and_dropped(world: World) -> None:
    digest, sae = world.sae()
    read = world.describe("miclip in+out", 24, sae=digest, seed=4, draw=2)
    kept, dropped = world.effects(read, positions="patch", error=["keep", "drop"])
    for rows, error in ((kept, "keep"), (dropped, "drop")):
        expected = world.slowly(read, f"{SITE}@patch", SHAPES, "shape", sae=sae, error=error)
        assert only(rows, expected) == expected and moved(rows)
        assert {(r["error_mode"], r["sae"], r["seed"]) for r in rows} == {(error, f"sae:{digest}", 4)}
    # random weights reconstruct badly: what is dropped is measured against that, and the model as it is stands beside it
    assert [row["correct_clean"] for row in dropped] == [row["correct_clean"] for row in kept]
    assert [row["correct_ref"] for row in dropped] != [row["correct_clean"] for row in dropped]


def test_the_head_of_a_trained_model_at_a_map(world: World) -> None:
    names = get_head(world)
    read = world.describe("act_values", 96, names, HEAD, site="stage.3@map", draw=3, tau=20)
    (rows,) = world.effects(read, model=HEAD, positions="cls")
    expected = world.slowly(read, "stage.3@map", names, "label", HEAD, tau=20, templates=[])
    assert only(rows, expected) == expected and moved(rows)
    assert {row["positions"] for row in rows} == {"all"}  # a map has no tokens to choose from
    assert sum(row["n"] for row in rows[: len(names)]) < IMAGES  # images without an object are of no class


def get_head(world: World) -> list[str]:
    classes = world.known.models[HEAD].classes
    assert classes is not None
    return list(classes)


def test_classes_that_encoders_never_saw_and_a_shorter_tau(world: World) -> None:
    """Textures, of which two are among the concepts, behind others; two units each; nothing off class."""
    read = world.describe("miclip in", 96, (*SHAPES, *TEXTURES), draw=5, seed=0, tau=4)
    classes = {"names": ["striped", "solid"], "templates": ["something {}"]}
    (rows,) = world.effects(read, classes=classes, labels_from="texture", tau=2, off_class_seed=None)
    expected = world.slowly(
        read, f"{SITE}@all", ["striped", "solid"], "texture", tau=2, seed=None, templates=["something {}"]
    )
    assert only(rows, expected) == expected and moved(rows)
    assert all(len(row["units"]) == 2 and row["offclass_n"] == row["offclass_edit"] == 0 for row in rows)


def test_changes_by_nothing_leave_every_class_as_it_was(world: World) -> None:
    digest, _ = world.sae()
    neurons, features = world.describe("auroc", 96, draw=1), world.describe("auroc", 24, sae=digest)
    nothing = [{"beta": 1.0}, {"op": "add", "beta": 0.0}]
    effects = world.effects(neurons, features, changes=nothing, positions="patch", error=["keep", "drop"])
    for rows in effects:
        assert all(row["correct_edit"] == row["correct_ref"] for row in rows)
        assert all(row["offclass_edit"] == row["offclass_ref"] for row in rows)
        if rows[0]["error_mode"] == "keep":
            assert all(row["correct_ref"] == row["correct_clean"] for row in rows)
    assert [rows[0]["error_mode"] for rows in effects].count("drop") == 1  # neurons have no error


def test_lists_are_prefixes_and_a_class_without_units_stays_as_it_is(world: World) -> None:
    read = world.describe("act_values", 96, draw=1)
    by_tau = {tau: world.effects(read, tau=tau)[0] for tau in (1, 3)}
    (whole,) = world.effects(read)
    for row, shorter, shortest in zip(whole, by_tau[3], by_tau[1], strict=True):
        assert row["units"][:3] == shorter["units"] and row["units"][:1] == shortest["units"]
    assert whole[0]["units"] == [] and whole[0]["n"] > 0
    assert (
        whole[0]["correct_edit"] == whole[0]["correct_clean"] and whole[0]["offclass_edit"] == whole[0]["offclass_ref"]
    )


# ---------------------------------------------------------------- how the work is cut


def test_shards_give_the_rows_of_the_whole(world: World) -> None:
    """Draws of other classes too: they follow from the image alone."""
    digest, _ = world.sae(seed=7)
    read = [world.describe("act_values", 96, draw=8), world.describe("auroc", 24, sae=digest, draw=9)]
    tables = []
    for shard_rows in (IMAGES, 9):
        copy = world.copy(f"shards of {shard_rows}")
        plans = copy.plans(*read, positions="patch", error=["keep", "drop"], shard_rows=shard_rows)
        assert not copy.run(plans).failed and plans[0].rounds[0].n_shards == -(-IMAGES // shard_rows)
        tables.append([copy.rows(plan, f"intervention_{name}") for plan in plans for name in ("eval", "summary")])
    assert tables[0] == tables[1] and len(tables[0]) == 6 and all(tables[0])


def test_several_lists_of_units_share_one_pass_over_the_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per batch one whole pass, and for every list and change the end of two passes."""
    passes: Counter[str] = Counter()
    run = VisionModel.run

    def counted(self: VisionModel, images: Any, *args: Any, **more: Any) -> Any:
        passes["whole" if more.get("start") is None else "end"] += 1
        return run(self, images, *args, **more)

    monkeypatch.setattr(VisionModel, "run", counted)
    lists = [world.describe("act_values", 96, draw=draw, seed=draw) for draw in range(3)]
    plans = world.plans(*lists, batch_size=32)
    assert len({plan.worker for plan in plans}) == 1
    worker, inputs = (
        open_worker(Setting(plans, Resources()), StoreInputs(world.lake.store)),
        StoreInputs(world.lake.store),
    )
    shard = next(iter(plans[0].all_shards()))
    made = list(worker.process(shard, [plan.digest for plan in plans], inputs, None))  # type: ignore[arg-type]
    assert [artifact.stage for artifact in made] == [plan.digest for plan in plans]
    assert passes == {"whole": 2, "end": 2 * 3 * 2 * len(CHANGES)}


def test_a_stage_that_is_added_later_counts_what_it_would_have_among_its_siblings(world: World) -> None:
    lists = [world.describe("act_values", 96, draw=draw, seed=draw) for draw in (1, 2)]
    together, apart = world.copy("together"), world.copy("apart")
    effects = together.effects(*lists)
    apart.effects(lists[1])
    assert effects == apart.effects(*lists) and effects[0] != effects[1]


def test_a_device_that_is_too_small_takes_smaller_batches_and_counts_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, add = world.describe("act_values", 96, draw=1), Sweep.add
    small = world.copy("small")

    def cramped(self: Sweep, images_BCIJ: Tensor, *rest: Any) -> None:
        if len(images_BCIJ) > room:
            raise torch.OutOfMemoryError("no room")
        add(self, images_BCIJ, *rest)

    (expected,) = world.effects(read)
    room = 5
    monkeypatch.setattr(Sweep, "add", cramped)
    assert small.effects(read) == [expected]
    room = 0
    (failed,) = world.run(world.plans(read, tau=1, off_class_seed=9)).failed.values()
    assert failed.error == "OutOfMemory" and "one image does not fit" in failed.message


# ---------------------------------------------------------------- what cannot be done


def test_labels_that_name_no_class_are_an_error_that_shows_some(world: World) -> None:
    plans = world.plans(world.describe("act_values", 96, draw=1), labels_from="size")
    (failed,) = world.run(plans).failed.values()
    assert failed.error == "BadLabels" and "'large'" in failed.message and "labels_from" in failed.message


def test_units_that_cannot_be_changed_fail_alone(world: World) -> None:
    """A site that is computed from others, a unit that the site does not have, and an SAE that says it is of another site."""
    digest, sae = world.sae(seed=5)
    foreign = Sae(
        sae.config.model_copy(update={"site": "resid_post.2@patch"}), sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec
    )
    other = publish_sae(world.lake, foreign, seed=6).removeprefix("sae:")
    fine = [world.describe("act_values", 96, draw=1), world.describe("act_values", 24, draw=1, sae=digest)]
    wrong = {
        "UnknownSite": (world.describe("act_values", 1, site="ln2_std.2@all", tau=1), "cannot be edited"),
        "BadUnits": (world.describe("act_values", 99, draw=1, site="resid_post.2@all"), "units 0..95"),
        "BadSae": (world.describe("act_values", 24, draw=2, sae=other), "trained at resid_post.2@patch, not at"),
    }
    plans = world.plans(*fine, *(plan for plan, _ in wrong.values()), positions="patch")
    failed = world.run(plans).failed
    assert {outcome.error for outcome in failed.values()} == set(wrong)
    assert all(wrong[outcome.error][1] in outcome.message for outcome in failed.values())
    bad = {stage for outcome in failed.values() for stage in outcome.task.stages}
    good = [plan for plan in plans if plan.digest not in bad]
    assert {plan.stage.inputs["units"] for plan in good} == {plan.digest for plan in fine}
    assert all(world.rows(plan) for plan in good)


def test_changes_that_leave_no_numbers_stop_or_count_as_wrong_answers(world: World) -> None:
    """Siblings that share the passes count as they do alone; the first class has no unit."""
    read = [world.describe("act_values", 96, draw=1), world.describe("auroc", 96, draw=6)]
    fields: Any = {"changes": [{"beta": 1e38}, {"beta": 0.0}], "on_nonfinite": "quarantine"}
    (failed,) = world.run(world.plans(*read, **fields | {"on_nonfinite": "stop"})).failed.values()
    assert failed.error == "NonFiniteActivation" and "smaller changes" in failed.message
    rows, _ = world.effects(*read, **fields)
    (normal,) = world.effects(read[0], changes=[{"beta": 0.0}, {"beta": 1.0}])
    assert rows[8:] == normal[:8]
    for lost, row in zip(rows[:8], normal[8:], strict=True):
        assert lost["n"] == row["n"] and lost["correct_clean"] == row["correct_clean"]
        changed = row["units"] != []
        assert lost["correct_edit"] == (0 if changed else row["correct_clean"])
        assert lost["offclass_edit"] == (0 if changed else row["offclass_ref"])  # also of images of the first class
