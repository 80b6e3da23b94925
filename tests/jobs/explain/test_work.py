"""Explanations by a small model against the library run on one feature at a time, whatever the work was cut into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.activations import forward_effort
from jobs.explain.alphas import TRIALS
from jobs.explain.plan import TRY
from jobs.explain.work import open_worker
from jobs.latents import Feature, choose
from jobs.protocol import Artifact, Part, Setting
from jobs.top_images import read_top_images, read_views
from miclip_core.explain.prompts import HEATMAPS, MASKS, STEERING, prompt_sha256
from miclip_core.explain.render import heat_image, mask_image
from miclip_core.explain.vlm import Vlm, load_vlm
from miclip_core.sae.weights import save_sae
from miclip_core.zoo.load import inspect_model
from schemas.errors import BadSae, BadUnits, ImageChanged, UnknownModel, UsageError
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from schemas.refs import ModelRef
from tests.jobs.explain.lake_of_texts import DEAD, LATENTS, SITE, make_model, make_sae, make_spec, publish_sae
from tests.jobs.explain.one_by_one import Said, adding, ids_of, layers_of, say
from tests.lakes import Lake, export

TOKENS, SHOWN = 4, 3
ALIVE = list(range(DEAD))
Row = dict[str, Any]


class World(NamedTuple):
    """A lake with a model and an SAE."""

    folder: Path
    lake: Lake
    model: str
    sae: str

    def run(self, **explain: Any) -> RunReport:
        return self.lake.run(make_spec(self.model, self.sae, **explain))

    def rows(self, report: RunReport, table: str = "explanations", **where: str) -> list[Row]:
        return self.lake.table(report, table, **where).to_pylist()

    def texts(self, **explain: Any) -> list[Row]:
        """The explanations of a run that goes well."""
        report = self.run(**explain)
        assert report.exit_code == 0, report.failures
        return self.rows(report)

    def plans(self, **explain: Any) -> list[Plan]:
        planned = plan_pipeline(make_spec(self.model, self.sae, **explain), self.lake.store)
        return [plan for _, plan, _ in planned.plans() if plan.stage.kind == "explain"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("texts")
    model, lake = make_model(folder / "vlm"), Lake(folder / "lake")
    return World(folder, lake, model, publish_sae(lake, model, make_sae()))


@pytest.fixture(scope="module")
def vlm(world: World) -> Vlm:
    return load_vlm(ModelRef.parse(world.model))


@pytest.fixture(scope="module")
def all_ways(world: World) -> list[Row]:
    """Every method, with both ways to show images."""
    return world.texts(masking=["masks", "heatmaps"], direction=["sae", "permuted"])


# ---------------------------------------------------------------- against the library


class OneByOne:
    """One feature after another by the library alone."""

    def __init__(self, world: World, vlm: Vlm) -> None:
        self._vlm, self._facts = vlm, vlm.tower.facts
        (plan, *_) = world.plans()
        inputs, forward = StoreInputs(world.lake.store), forward_effort(plan)
        self._top = read_top_images(inputs, plan.stage.inputs["features"], ALIVE, SHOWN)
        wanted = [image.image_index for images in self._top.values() for image in images]
        self._views, _ = read_views(inputs, forward, self._facts.geometry, wanted, threads=1)
        layers = layers_of(vlm.module, self._facts.n_blocks)
        self._layer = layers[0]

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(of).view(3, 1, 1) for of in (self._facts.mean, self._facts.std))
        return (pixels / 255 - mean) / std

    def images(self, feature: int, masking: str) -> tuple[torch.Tensor, list[list[int]]]:
        """Rendered and normalised, and the tokens where the feature is active."""
        shown, active = [], []
        for image in self._top[feature]:
            pixels = self._views[image.image_index]
            shown.append(mask_image(pixels, image.map_IJ) if masking == "masks" else heat_image(pixels, image.map_IJ))
            active.append([1 + i for i, code in enumerate(image.map_IJ.flatten().tolist()) if code > 0])
        return self._normalised(torch.stack(shown)), active

    def say(self, row: Row, prompt: str, vector: torch.Tensor | None) -> Said:
        """What the row should hold."""
        white = self._normalised(torch.full((1, 3, *self._facts.input_hw), 255))
        if row["method"] == "steering":
            pixels, where = white, [None]
        else:
            pixels, where = self.images(row["feature"], row["masking"])
        ids = ids_of(self._vlm.processor, prompt, len(pixels), self._facts.input_hw[0])
        if vector is None:
            return say(self._vlm.module, self._vlm.processor, pixels, ids, TOKENS)
        with adding(self._layer, vector, where):
            return say(self._vlm.module, self._vlm.processor, pixels, ids, TOKENS)


def test_texts_are_those_of_the_library_on_one_feature_at_a_time(world: World, vlm: Vlm, all_ways: list[Row]) -> None:
    loop, decoder = OneByOne(world, vlm), make_sae().W_dec
    prompts = {"none": STEERING, "masks": MASKS, "heatmaps": HEATMAPS}
    assert len(all_ways) == len(ALIVE) * (2 + 2 + 4)
    for row in all_ways:
        vector = None
        if row["method"] != "topk":
            source = (row["feature"] + LATENTS // 2) % LATENTS if row["direction"] == "permuted" else row["feature"]
            vector = row["strength"] * torch.nn.functional.normalize(decoder[source], dim=0)
        said = loop.say(row, prompts[row["masking"]], vector)
        assert row["raw_text"] == said.raw, row
        assert row["mean_logprob"] == pytest.approx(said.mean_logprob, abs=2e-4)
        assert row["prompt_sha256"] == prompt_sha256(prompts[row["masking"]])
    steered = {row["mean_logprob"] for row in all_ways if row["method"] == "steering"}
    assert len(steered) == LATENTS  # so that rows cannot have been mixed up


def test_rows_say_what_was_shown_and_how_much_was_added(world: World, vlm: Vlm, all_ways: list[Row]) -> None:
    inputs, plan = StoreInputs(world.lake.store), world.plans()[0]
    top = read_top_images(inputs, plan.stage.inputs["features"], ALIVE, SHOWN)
    first = [image for images in top.values() for image in images]
    indices = list(range(40))
    views, _ = read_views(inputs, forward_effort(plan), vlm.tower.facts.geometry, indices, threads=1)
    pixels = vlm.tower.normalise(torch.stack([views[index] for index in indices]))
    norm = float(vlm.tower.run(pixels, [SITE])[SITE].norm(dim=-1).median())
    assert len(first) == SHOWN * len(ALIVE)
    for row in all_ways:
        shows, steers = row["method"] != "steering", row["method"] != "topk"
        images = top[row["feature"]] if shows else []
        assert row["image_ids"] == [image.image_id for image in images] and row["k_eff"] == len(images)
        assert row["full_masks"] == sum(bool((image.map_IJ > 0).all()) for image in images)
        assert row["alpha"] == row["alpha_rel"] == float(steers)
        assert row["strength"] == pytest.approx(norm if steers else 0, rel=1e-5)
        assert row["realised"] == (pytest.approx(1, abs=1e-4) if steers else None)
        assert (row["text"] is None) == (row["status"] != "ok") and row["seed"] is None and row["sequence"] == 0
        assert 1 <= row["n_tokens"] <= TOKENS and not row["is_validation"]
    by_stage = [row["feature"] for row in all_ways if row["stage"] == all_ways[0]["stage"]]
    assert by_stage == ALIVE and any(row["full_masks"] for row in all_ways)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["activation", "p90"])
def test_alphas_may_be_in_units_of_the_tower_or_of_the_feature(world: World, all_ways: list[Row], unit: str) -> None:
    report = world.run(alpha=[2.5], alpha_unit=unit, methods=["steering"], features=[2, 5])
    rows = world.rows(report)
    features = {row["feature"]: row for row in world.rows(report, "sae_features")}
    norm = next(row["strength"] for row in all_ways if row["method"] == "steering")
    for row in rows:
        of = features[row["feature"]]
        strength = 2.5 * (1 if unit == "activation" else of["p90"] * of["decoder_norm"])
        assert row["strength"] == pytest.approx(strength, rel=1e-5)
        assert row["alpha_rel"] == pytest.approx(strength / norm, rel=1e-5)
    assert [row["feature"] for row in rows] == [2, 5]


@pytest.mark.parametrize("masking", ["masks", pytest.param("heatmaps", marks=pytest.mark.slow)])
def test_nothing_added_is_what_is_said_without_steering(world: World, all_ways: list[Row], masking: str) -> None:
    rows = world.texts(alpha=0, methods=["informed"], masking=masking)
    shown = [row for row in all_ways if row["method"] == "topk" and row["masking"] == masking]
    same = ("feature", "raw_text", "mean_logprob", "n_tokens", "image_ids", "strength", "realised")
    assert [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in shown]


@pytest.mark.slow
def test_a_blank_image_says_the_same_for_all_features_where_nothing_is_added(world: World) -> None:
    kinds = {}
    for blank in ("white", "grey", "black", "noise"):
        rows = world.texts(alpha=0, methods=["steering"], blank=blank, features=[0, 4, 7])
        assert len({(row["raw_text"], row["mean_logprob"]) for row in rows}) == 1
        kinds[blank] = rows[0]["mean_logprob"]
    assert len(set(kinds.values())) == 4


# ---------------------------------------------------------------- however it is cut


def made(world: World, plans: list[Plan], **effort: Any) -> list[Row]:
    """The rows of plans whose work is cut as said."""
    inputs, rows = StoreInputs(world.lake.store), []
    size = effort.pop("shard_features", plans[0].rounds[0].shard_rows)
    cut = tuple(
        plan.model_copy(
            update={
                "effort": {**plan.effort, **effort},
                "rounds": (plan.rounds[0].model_copy(update={"shard_rows": size}), *plan.rounds[1:]),
            }
        )
        for plan in plans
    )
    worker = open_worker(Setting(cut, Resources()), inputs)
    for shard in cut[0].shards(0):
        for part in worker.process(shard, [plan.digest for plan in cut], inputs, None):  # type: ignore[arg-type]
            assert isinstance(part, Part)
            rows += part.batch.to_pylist()
    return rows


def alike(one: list[Row], other: list[Row]) -> None:
    """Equal but for the last bits of numbers."""
    key = ("stage", "feature", "sequence")
    one, other = (sorted(rows, key=lambda row: [row[name] for name in key]) for rows in (one, other))
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert {**a, "mean_logprob": 0, "realised": 0} == {**b, "mean_logprob": 0, "realised": 0}
        assert a["mean_logprob"] == pytest.approx(b["mean_logprob"], abs=1e-4)


@pytest.mark.parametrize(
    "effort",
    [
        {"shard_features": 3, "batch_features": 7},
        pytest.param({"shard_features": 100, "batch_features": 1}, marks=pytest.mark.slow),
        pytest.param({"shard_features": 8, "batch_features": 2}, marks=pytest.mark.slow),
    ],
)
def test_rows_do_not_depend_on_how_the_work_is_cut(world: World, all_ways: list[Row], effort: dict[str, Any]) -> None:
    plans = world.plans(masking=["masks", "heatmaps"], direction=["sae", "permuted"])
    alike(made(world, plans, **effort), all_ways)


@pytest.mark.slow
def test_a_stage_alone_is_what_it_is_among_its_siblings_to_the_last_bit(world: World, all_ways: list[Row]) -> None:
    for plan in world.plans():
        own = [row for row in all_ways if row["stage"] == plan.digest]
        assert made(world, [plan]) == own


def test_a_rerun_computes_nothing_and_another_direction_only_that_one(world: World, all_ways: list[Row]) -> None:
    world.texts()
    assert world.lake.count("shard_done") == 0
    rows = world.texts(direction=["sae", "random"], methods=["steering"], features=[3, 4])
    before = world.lake.count("shard_done", "explain")
    again = world.texts(direction=["sae", "random"], methods=["steering"], features=[3, 4], seed=1)
    assert before == 1 and world.lake.count("shard_done", "explain") == 1
    assert [row["raw_text"] for row in rows[:2]] == [row["raw_text"] for row in again[:2]]
    numbers = [[row["mean_logprob"] for row in some] for some in (rows, again)]
    assert numbers[0][:2] == numbers[1][:2] and numbers[0][2] != numbers[1][2]


@pytest.mark.slow
def test_drawn_texts_depend_on_their_own_seeds_alone(world: World) -> None:
    sampled = {"decoding": "sample", "sequences": 3, "methods": ["steering"], "temperature": 3.0, "top_p": 1.0}
    rows = world.texts(**sampled)
    assert [(row["feature"], row["sequence"]) for row in rows] == [(f, s) for f in ALIVE for s in range(3)]
    assert {row["seed"] for row in rows} == {0} and len({row["raw_text"] for row in rows}) > len(rows) // 2
    few = world.texts(**sampled, features=[4, 9])
    there = {(row["feature"], row["sequence"]): row["raw_text"] for row in rows}
    assert [there[row["feature"], row["sequence"]] for row in few] == [row["raw_text"] for row in few]
    other = world.texts(**sampled, features=[4, 9], seed=1)
    assert [row["raw_text"] for row in other] != [row["raw_text"] for row in few]


# ---------------------------------------------------------------- alphas


AUTO: dict[str, Any] = {"alpha": "auto", "alpha_grid": [0.5, 1, 4], "validation": 5}


@pytest.fixture(scope="module")
def chosen(world: World) -> RunReport:
    report = world.run(**{**AUTO, "direction": ["sae", "random"]})
    assert report.exit_code == 0, report.failures
    return report


def test_the_alpha_with_the_best_overlap_is_used_for_features_and_controls(world: World, chosen: RunReport) -> None:
    alphas, texts = world.rows(chosen, "explanation_alphas"), world.rows(chosen)
    for method in ("steering", "informed"):
        grid = [row for row in alphas if row["method"] == method]
        assert [row["alpha"] for row in grid] == [0.5, 1, 4] and {row["direction"] for row in grid} == {"sae"}
        assert all(row["n"] + row["n_empty"] == 5 for row in grid)
        (best,) = [row for row in grid if row["is_chosen"]]
        assert best["mean_iou"] == max(row["mean_iou"] for row in grid if row["mean_iou"] is not None)
        rows = [row for row in texts if row["method"] == method]
        assert {row["alpha"] for row in rows} == {best["alpha"]} and {row["direction"] for row in rows} == {
            "sae",
            "random",
        }
        assert {row["alpha_asked"] for row in rows} == {"auto"}
        assert {row["feature"] for row in rows if row["is_validation"]} == set(range(5))
        tried = world.texts(**{**AUTO, "alpha": best["alpha"], "methods": [method]})
        same = [(row["feature"], row["raw_text"], row["strength"]) for row in tried]
        assert same == [(r["feature"], r["raw_text"], r["strength"]) for r in rows if r["direction"] == "sae"]
    assert not any(row["is_validation"] for row in texts if row["method"] == "topk")


@pytest.mark.slow
def test_an_alpha_that_no_number_can_hold_is_not_chosen_and_fails_no_other(world: World) -> None:
    report = world.run(**{**AUTO, "alpha_grid": [1, 1e38], "methods": ["steering"]})
    assert report.exit_code == 0, report.failures
    good, bad = world.rows(report, "explanation_alphas")
    assert (good["is_chosen"], bad["is_chosen"], bad["n"], bad["n_empty"]) == (True, False, 0, 5)


@pytest.mark.slow
def test_what_alphas_are_worth_does_not_depend_on_how_the_work_is_cut(world: World, chosen: RunReport) -> None:
    plans = [plan for plan in world.plans(**AUTO) if plan.stage.output == "alphas"]
    assert len(plans) == 2 and all(plan.rounds[0].name == TRY for plan in plans)
    inputs = StoreInputs(world.lake.store)
    small = tuple(
        plan.model_copy(
            update={
                "rounds": (plan.rounds[0].model_copy(update={"shard_rows": 2}), plan.rounds[1]),
                "effort": {**plan.effort, "batch_features": 3},
            }
        )
        for plan in plans
    )
    worker, kept = open_worker(Setting(small, Resources()), inputs), Kept(world)
    digests = [plan.digest for plan in small]
    for shard in small[0].shards(0):
        for artifact in worker.process(shard, digests, kept, None):  # type: ignore[arg-type]
            assert isinstance(artifact, Artifact) and artifact.name == TRIALS
            kept.kept[artifact.stage, shard.number, artifact.name] = artifact.data
    (last,) = small[0].shards(1)
    rows = [row for part in worker.process(last, digests, kept, None) for row in part.batch.to_pylist()]  # type: ignore[arg-type,union-attr]
    key = ("method", "alpha")
    before = world.rows(chosen, "explanation_alphas")
    one, other = (sorted(some, key=lambda row: [row[name] for name in key]) for some in (rows, before))
    assert one == other


class Kept(StoreInputs):
    """A store whose artifacts of unfinished stages are in memory."""

    def __init__(self, world: World) -> None:
        super().__init__(world.lake.store)
        self.kept: dict[tuple[str, int, str], bytes] = {}

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        return self.kept[stage, shard, name]


# ---------------------------------------------------------------- features and images that are missing


def test_a_dead_feature_that_is_asked_for_is_a_row_without_text(world: World) -> None:
    rows = world.texts(features=[DEAD, 1])
    dead = [row for row in rows if row["feature"] == DEAD]
    assert len(dead) == 3 and len(rows) == 6
    for row in dead:
        assert (row["status"], row["text"], row["raw_text"], row["k_eff"]) == ("no_images", None, None, 0)
        assert (row["n_tokens"], row["mean_logprob"], row["strength"], row["realised"]) == (0, None, 0, None)
    assert [row["feature"] for row in rows[:2]] == [1, DEAD]


def test_features_are_those_asked_for_or_all_active_ones() -> None:
    features = [Feature(number, number % 3 > 0, 1.0, 1.0) for number in range(10)]
    assert [one.number for one in choose(features, (), None)] == [1, 2, 4, 5, 7, 8]
    assert [one.number for one in choose(features, (), 2)] == [1, 2]
    assert [one.number for one in choose(features, (0, 3, 4), 2)] == [0, 3]
    with pytest.raises(BadUnits, match="features: 10, but this SAE has 10: 0 to 9"):
        choose(features, (3, 10), None)


@pytest.fixture
def files(tmp_path: Path, world: World) -> Iterator[tuple[World, Path]]:
    """A lake of images in a folder."""
    images = export(tmp_path / "images", 24)
    lake = Lake(tmp_path / "lake")
    sae = publish_sae(lake, world.model, make_sae())
    yield World(tmp_path, lake, world.model, sae), images


@pytest.mark.parametrize("on_changed", ["quarantine", pytest.param("stop", marks=pytest.mark.slow)])
def test_images_that_are_gone_are_left_out_or_stop_the_shard(files: tuple[World, Path], on_changed: str) -> None:
    world, folder = files
    spec: dict[str, Any] = {"images": f"folder:{folder}/images", "described": {"on_changed": on_changed}}
    steered = world.texts(**spec, methods=["steering"])
    assert [row["feature"] for row in steered] == ALIVE
    plans = [plan for plan in world.plans(**spec) if plan.stage.params["method"] == "topk"]
    top = read_top_images(StoreInputs(world.lake.store), plans[0].stage.inputs["features"], ALIVE, SHOWN)
    gone = {image.image_id: Path(str(image.uri)) for image in top[0]}
    for path in gone.values():
        path.unlink()
    if on_changed == "stop":
        with pytest.raises(ImageChanged, match="it is gone"):
            made(world, plans)
        return
    rows = {row["feature"]: row for row in made(world, plans)}
    for feature, images in top.items():
        left = [image.image_id for image in images if image.image_id not in gone]
        assert rows[feature]["image_ids"] == left and rows[feature]["k_eff"] == len(left)
        assert (rows[feature]["status"] == "no_images") == (not left)
    assert rows[0]["status"] == "no_images" and any(0 < row["k_eff"] < SHOWN for row in rows.values())


# ---------------------------------------------------------------- numbers that overflow


def test_a_feature_whose_numbers_overflow_fails_alone(world: World, tmp_path: Path) -> None:
    """The third of a batch of five is steered by more than the next block can square."""
    said: dict[str, Any] = {
        "alpha": 2, "alpha_unit": "p90", "methods": ["steering", "informed"], "features": [2, 3, 4, 5, 6],
        "batch_features": 5,
    }  # fmt: skip
    usual, lake = world.texts(**said), Lake(tmp_path / "lake")
    long = World(tmp_path, lake, world.model, publish_sae(lake, world.model, make_sae(longer={4: 1e30})))
    found = long.texts(**said)
    same = ("method", "feature", "raw_text", "text", "n_tokens", "image_ids", "status")
    others = [[row[name] for name in same] for row in found if row["feature"] != 4]
    assert others == [[row[name] for name in same] for row in usual if row["feature"] != 4]
    lost = [row for row in found if row["feature"] == 4]
    assert len(lost) == 2 and all(row["strength"] > 1e28 for row in lost)
    for row in lost:
        assert (row["status"], row["text"], row["raw_text"], row["n_tokens"]) == ("not_finite", None, None, 0)
        assert row["mean_logprob"] is None and row["realised"] is None
        assert len(row["image_ids"]) == row["k_eff"] == (SHOWN if row["method"] == "informed" else 0)
    notes = [note for event in lake.events if event.get("kind") == "explain" for note in event.get("notes", ())]
    assert len(notes) == 2 and all("fp32 cannot hold some numbers: 1 not_finite" in note for note in notes), notes


def test_a_model_whose_numbers_overflow_by_themselves_is_an_error_and_no_table(world: World, tmp_path: Path) -> None:
    """Of what it says with nothing added nobody could tell that it says nothing."""
    model = make_model(tmp_path / "vlm")
    file = tmp_path / "vlm" / "model.safetensors"
    weights = load_file(file)
    (name,) = [name for name in weights if name.endswith("multi_modal_projector.linear_1.weight")]
    save_file({**weights, name: torch.full_like(weights[name], 1e38)}, file, {"format": "pt"})
    lake = Lake(tmp_path / "lake")
    broken = World(tmp_path, lake, model, publish_sae(lake, model, make_sae()))
    report = broken.run(methods=["topk", "steering"], alpha=2, alpha_unit="p90", features=[2, 3])
    assert report.exit_code == 1 and len(report.failures) == 2
    assert all("NonFiniteActivation" in failure for failure in report.failures), report.failures


# ---------------------------------------------------------------- towers


def test_how_many_features_there_are_is_known_before_the_sae_is_trained(world: World, all_ways: list[Row]) -> None:
    data = make_spec(world.model, world.sae).model_dump(mode="json", exclude_unset=True)
    training = {"kind": "train_sae", "sites": [SITE], "latents": 20, "k": 2, "steps": 1, "block_images": 8}
    data["stages"] |= {"sae": training, "features": {**data["stages"]["features"], "reads": ["sae"], "saes": []}}
    planned = plan_pipeline(PipelineSpec.model_validate(data, strict=False), world.lake.store)
    rounds = {plan.rounds for _, plan, _ in planned.plans() if plan.stage.kind == "explain"}
    assert [(name.name, name.rows, name.shard_rows) for (name,) in rounds] == [("explain", 20, 8)]


def with_other_weights(model: str, folder: Path, part: str) -> str:
    """A copy of a model in whose weights of that part something is different."""
    shutil.copytree(model.partition("@file:")[2], folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = sorted(
        name
        for name in weights
        if part in name and name.endswith("fc1.weight" if part == "vision" else "up_proj.weight")
    )[0]
    weights[name] = weights[name] * 1.05
    save_file(weights, path, {"format": "pt"})
    return f"hf:other@file:{folder}"


@pytest.mark.slow
def test_another_model_with_the_same_tower_explains_and_one_with_another_is_refused(
    world: World, all_ways: list[Row], tmp_path: Path
) -> None:
    reader = with_other_weights(world.model, tmp_path / "reader", "language")
    rows = world.texts(vlm=reader, methods=["steering"])
    own = [row for row in all_ways if row["method"] == "steering" and row["direction"] == "sae"]
    assert {row["vlm"] for row in rows} == {reader} and {row["model"] for row in rows} == {world.model}
    assert [row["strength"] for row in rows] == [row["strength"] for row in own]
    assert [row["mean_logprob"] for row in rows] != [row["mean_logprob"] for row in own]
    tower = with_other_weights(world.model, tmp_path / "tower", "vision")
    report = world.run(vlm=tower, methods=["steering"])
    assert report.exit_code == 1 and "is not that of" in report.failures[0] and "NotTheTower" in report.failures[0]


def test_an_sae_of_another_width_or_site_stops_with_its_reason(world: World) -> None:
    """Its file is not what its stage says; the features were described with the one that fits."""
    narrow = make_sae(width=24)
    plan = world.plans()[0]

    class Swapped(StoreInputs):
        def published(self, stage: str, name: str) -> bytes:
            return save_sae(narrow)

    inputs = Swapped(world.lake.store)
    worker = open_worker(Setting((plan,), Resources()), inputs)
    with pytest.raises(BadSae, match=f"encodes 24 channels, but {SITE} has 32"):
        list(worker.process(next(iter(plan.shards(0))), [plan.digest], inputs, None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("explain", "said"),
    [
        ({"methods": ["steering"], "features": [LATENTS]}, "stages.texts.features: 12, but sae:.* has 12: 0 to 11"),
        ({"vlm": "demo:clip-p8"}, "stages.texts.vlm: demo:clip-p8 .* writes no text"),
    ],
)
def test_refusals_say_which_field_to_change(world: World, explain: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        world.run(**explain)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no config.json in the folder"),
        ('{"model_type": "clipseg"}', "model type 'clipseg' is none of those we know"),
    ],
)
def test_a_folder_of_no_vision_language_model_is_refused_by_what_planning_asks(
    tmp_path: Path, config: str | None, said: str
) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnknownModel, match=said):
        inspect_model(ModelRef.parse(f"hf:not/one@file:{tmp_path}"))


@pytest.mark.slow
def test_steering_that_no_word_depends_on_is_refused(world: World) -> None:
    late = publish_sae(world.lake, world.model, make_sae(), "resid_post.2@patch")
    with pytest.raises(UsageError, match=r"reads resid_post.1; take an SAE of block 1 or earlier"):
        world.lake.run(make_spec(world.model, late))
    rows = world.lake.table(world.lake.run(make_spec(world.model, late, methods=["topk"])), "explanations").to_pylist()
    assert len(rows) == len(ALIVE)


def test_what_short_numbers_round_is_one_note_however_many_batches_there_are(world: World) -> None:
    """An alpha that bf16 can hardly add, and as many batches as features."""
    (plan,) = world.plans(dtype="bf16", methods=["steering"], alpha=1e-3, batch_features=1, max_new_tokens=1)
    inputs = StoreInputs(world.lake.store)
    worker = open_worker(Setting((plan,), Resources()), inputs)
    rows, notes = 0, []
    for shard in plan.shards(0):
        parts = [*worker.process(shard, [plan.digest], inputs, None)]  # type: ignore[arg-type]
        rows += sum(part.batch.num_rows for part in parts if isinstance(part, Part))
        assert len(worker.notes) <= 1
        notes += worker.notes
    assert rows == len(ALIVE) > len(notes) > 0
    assert all("bf16 rounds what is added" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16"])
def test_short_numbers_keep_what_is_added(world: World, dtype: str) -> None:
    rows = world.texts(dtype=dtype, methods=["steering", "informed"], features=[0, 3])
    assert all(row["realised"] == pytest.approx(1, abs=0.02) for row in rows) and len(rows) == 4
