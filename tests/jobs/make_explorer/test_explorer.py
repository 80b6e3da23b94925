"""Pages of units from published tables: every unit has its row, with what other stages say of it and of it alone."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.ledger import load_plan, load_published
from jobs.make_explorer.plan import COVERS, TILE, make_plans
from jobs.protocol import Cell, Known
from miclip_core.zoo.load import inspect_model
from schemas.errors import BadSpec
from schemas.explorer_specs import ExplorerSpec
from schemas.models import ModelFacts
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import PAIR, Plan, StageSpec
from schemas.refs import ModelRef
from tests.jobs.sae_features.lake_of_saes import CANONICAL, LATENTS, MODEL, SITE, WIDTH, make_sae, publish_sae
from tests.lakes import Lake
from tests.made_up_descriptions import about_units, describe_stage, publish_rows, publish_scores, rows_of, run_plans
from tests.made_up_explanations import RANDOM, STEERING, TOPK, publish_summary, publish_texts

IMAGES, TOP = 24, 4
OTHER = "demo:siglip-p8"
NEURON_SITE = "mlp_act.3@patch"


class World:
    """One lake: activations, top images of neurons, the features of a made-up SAE, and pages for both."""

    def __init__(self, folder: Path) -> None:
        self.lake = Lake(folder / "lake")
        self.store = self.lake.store
        self.sae = publish_sae(self.lake, make_sae())
        acts = {"kind": "extract", "sites": [SITE], "outputs": ["activations", "embeddings"], "batch_size": 20}
        neurons = {
            "kind": "extract",
            "sites": ["mlp_act.-2@patch"],
            "outputs": ["top_images", "activation_moments"],
            "top_k": 6,
        }
        features = {"kind": "sae_features", "saes": [self.sae], "reads": "acts", "top_k": TOP, "min_positives": 3}
        pages = {"kind": "explorer", "reads": ["features", "neurons"], "shard_units": 150}
        stages = {"acts": acts, "neurons": neurons, "features": features, "pages": pages}
        data = {
            "kind": "pipeline",
            "name": "t",
            "images": {"ref": f"world:seed=0,n={IMAGES}"},
            "matrix": {"model": [MODEL]},
            "stages": stages,
        }
        self.spec = PipelineSpec.model_validate(data, strict=False)
        self.report = self.lake.run(self.spec)
        assert self.report.exit_code == 0
        self.facts = inspect_model(ModelRef.parse(MODEL))

    def plans(self, kind: str) -> list[Plan]:
        return [load_plan(self.store, s.digest) for s in self.report.state.stages if s.kind == kind]

    def table(self, table: str, **where: str) -> list[dict[str, Any]]:
        return self.lake.table(self.report, table, **where).to_pylist()

    def read(self, reads: Mapping[str, tuple[Plan, ...]], **spec: Any) -> tuple[Plan, ...]:
        """The plans of an explorer stage that reads the features and these."""
        found = {"features": tuple(self.plans("sae_features")), **reads}
        cell = Cell("pages", ExplorerSpec(reads=tuple(found), **spec), MODEL, reads=found)
        return make_plans(cell, Known({MODEL: self.facts}, {}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("explorer"))


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("figures", "names", "concepts", "texts", "partners", "neighbours", "images")
    return {**row, **{name: json.loads(row[name]) for name in names}}


def tiles_of(data: bytes, side: int) -> list[np.ndarray]:
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
    assert picture.shape[0] == side and picture.shape[1] % side == 0
    return [picture[:, left : left + side] for left in range(0, picture.shape[1], side)]


def test_every_latent_has_its_row_dead_ones_too(world: World) -> None:
    pages = [told(row) for row in world.table("explorer_features", unit_kind="features")]
    features = sorted(world.table("sae_features"), key=lambda row: row["feature"])
    assert [row["unit"] for row in pages] == list(range(LATENTS)) == [row["feature"] for row in features]
    for page, feature in zip(pages, features, strict=True):
        assert (page["model"], page["site"], page["sae"]) == (MODEL, CANONICAL, world.sae)
        assert (
            page["figures"]["images_active"] == feature["images_active"] and page["histogram"] == feature["histogram"]
        )
        assert page["figures"].get("max") == (
            None if feature["max"] is None else pytest.approx(feature["max"], rel=1e-5)
        )
        assert [unit for unit, _ in page["neighbours"]] == feature["neighbours"]
    dead = pages[-1]
    assert dead["images"] == [] and dead["thumbnails"] is dead["cover"] is dead["maps"] is None
    assert "max" not in dead["figures"] and dead["figures"]["is_dead"]


def test_thumbnails_are_those_of_the_index_side_by_side_and_maps_are_the_codes(world: World) -> None:
    images = {row["image_index"]: row for row in world.table("images")}
    by_unit: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(world.table("sae_top_images"), key=lambda row: row["rank"]):
        by_unit.setdefault(row["feature"], []).append(row)
    pages = [told(row) for row in world.table("explorer_features", unit_kind="features")][:-1]
    assert any(by_unit[page["unit"]] for page in pages)
    for page in pages:
        tops = by_unit[page["unit"]]
        assert [image["id"] for image in page["images"]] == [row["image_id"] for row in tops]
        tiles = tiles_of(page["thumbnails"], TILE)
        assert len(tiles) == len(tops) and len(tiles_of(page["cover"], 48)) == min(COVERS, len(tops))
        for tile, row in zip(tiles, tops, strict=True):
            own = Image.open(io.BytesIO(images[row["image_index"]]["thumbnail"])).convert("RGB")
            assert np.abs(tile - np.asarray(own, np.float32)).mean() < 8
        maps = np.frombuffer(page["maps"], np.uint8).reshape(len(tops), page["map_h"], page["map_w"])
        codes = np.array([row["map"] for row in tops]).reshape(maps.shape)
        assert page["map_most"] == pytest.approx(codes.max())
        assert np.abs(maps / 255 * page["map_most"] - codes).max() <= page["map_most"] / 255


def test_neurons_have_the_place_of_their_largest_value_and_their_moments(world: World) -> None:
    pages = [told(row) for row in world.table("explorer_features", unit_kind="neurons")]
    moments = {row["unit"]: row for row in world.table("activation_moments")}
    tops = {(row["unit"], row["rank"]): row for row in world.table("top_images")}
    width = world.facts.mlp_width
    assert [page["unit"] for page in pages] == list(
        range(width or 0)
    ) and width == 384  # in 3 shards, of which two have more rows than a batch
    for page in pages[::37]:
        assert page["sae"] is None and page["site"] == NEURON_SITE and page["histogram"] is None
        assert page["figures"]["mean"] == pytest.approx(moments[page["unit"]]["mean"], rel=1e-5)
        maps = np.frombuffer(page["maps"], np.uint8).reshape(len(page["images"]), -1)
        assert len(maps) == 6 and (np.sort(maps, axis=1)[:, -2] == 0).all()
        assert maps.argmax(axis=1).tolist() == [tops[page["unit"], rank]["token"] for rank in range(6)]


def test_the_index_is_one_part_of_the_same_units(world: World) -> None:
    (features, neurons) = sorted(world.plans("explorer"), key=lambda plan: str(plan.stage.params["unit_kind"]))
    for plan, n in ((features, LATENTS), (neurons, 384)):
        published = load_published(world.store, plan.digest)
        assert published is not None
        (part,) = published.tables["explorer_index"]
        assert part.rows == n == published.rows("explorer_features")
        assert [row["unit"] for row in rows_of(world.store, plan, "explorer_index")] == list(range(n))
    pages = {row["unit"]: told(row) for row in rows_of(world.store, features, "explorer_features")}
    for row in rows_of(world.store, features, "explorer_index"):
        page = pages[row["unit"]]
        assert row["density"] == pytest.approx(page["figures"]["density"], rel=1e-5)
        assert (row["concept"] is None) == (page["concepts"] == [])


def test_an_sae_of_unknown_width_is_planned_for_and_shards_beyond_it_are_empty(world: World) -> None:
    plan = next(plan for plan in world.plans("explorer") if plan.stage.params["unit_kind"] == "features")
    assert plan.rounds[0].rows == 16 * WIDTH  # this SAE does not say how many latents it has
    assert plan.rounds[0].n_shards == 11


def test_a_second_run_is_cached(world: World) -> None:
    assert world.lake.run(world.spec).exit_code == 0
    assert world.lake.count("shard_done") == 0


# ---------------------------------------------------------------- what other stages say


def make_buddies(store: Any, sae: str) -> Plan:
    """Features 1 and 2 have buddies in another model, on either side of a pair; some are below the null, or of other units."""
    stage = StageSpec(
        kind="mine_rosetta",
        method=1,
        subject=f"{MODEL}{PAIR}{OTHER}",
        output="pair",
        params={},
        inputs={"a": "u0", "b": "u1"},
    )
    own, other = (MODEL, sae, CANONICAL), (OTHER, None, NEURON_SITE)
    rows = [(own, 1, other, 7, 0.5, False), (own, 1, other, 8, 0.9, False), (other, 9, own, 1, 0.7, False), (own, 1, other, 3, 0.2, False),
            (own, 2, other, 4, 0.8, True), ((MODEL, None, CANONICAL), 1, other, 5, 0.99, False), ((MODEL, "sae:other", CANONICAL), 1, other, 6, 0.99, False)]  # fmt: skip
    named = [
        {
            **{f"{name}_{side}": value for side, unit in (("a", a), ("b", b)) for name, value in zip(("model", "sae", "site"), unit)},
            "unit_a": m, "unit_b": n, "r": r, "rank_ab": 0, "rank_ba": 0, "place_r": 0.0, "null_q999": 0.1, "is_below_null": below,
        }
        for a, m, b, n, r, below in rows
    ]  # fmt: skip
    return publish_rows(store, stage, {"rosetta_buddies": named})


def publish_verdicts(store: Any, judged: Sequence[tuple[Plan, int, str, str]]) -> Plan:
    """An evaluate stage: (describe stage, unit, what it stands for, its first name) of each verdict."""
    inputs = {f"describe.{number}": plan.digest for number, (plan, *_) in enumerate(judged)}
    evaluate = StageSpec(kind="evaluate", method=1, subject=MODEL, output="scores", params={}, inputs=inputs)
    rows = [
        {**about_units(plan.stage), "unit": unit, "truth": truth, "truth_score": 0.9, "predicted": predicted, "correct": truth == predicted,
         "clip_score": 0.5, "sentence_score": None}
        for plan, unit, truth, predicted in judged
    ]  # fmt: skip
    return publish_rows(store, evaluate, {"description_eval": rows})


@pytest.fixture(scope="module")
def described(world: World) -> dict[int, dict[str, Any]]:
    """The pages of the features with names, a verdict, texts, a map and partners that the test made up."""
    store, sae = world.store, world.sae.removeprefix("sae:")
    concepts = ["red", "blue", "ring"]
    dissect = publish_scores(
        store,
        describe_stage("clip_dissect wpmi", concepts, MODEL, CANONICAL, sae=sae),
        [[-1.0, -2.0, None], [-3.0, -4.0, -0.5]],
    )
    miclip = publish_scores(
        store,
        describe_stage("miclip in+out", concepts, MODEL, CANONICAL, seed=3, sae=sae),
        [[0.1, 0.9, 0.3], [0.7, 0.2, 0.1]],
    )
    others = publish_scores(
        store, describe_stage("auroc x", concepts, MODEL, CANONICAL, sae="0" * 20), [[0.9, 0.8, 0.7]]
    )
    judged = publish_verdicts(store, [(miclip, 0, "red", "blue")])
    texts = [
        publish_texts(store, variant, {0: "a red ring", 1: "a cross", 2: None}, sae=sae, site=CANONICAL)
        for variant in (STEERING, RANDOM, TOPK)
    ]
    summary = publish_summary(
        store, texts, [(0, TOPK, "masks", "a blue ring", 0.4)], [(0, STEERING, "masks", "a red ring", 0.6)]
    )
    map_stage = StageSpec(
        kind="map_explanations", method=1, subject=MODEL, output="map", params={"site": CANONICAL}, inputs={"sae": sae}
    )
    about = {"site": CANONICAL, "sae": world.sae}
    point = {
        **about,
        **TOPK._asdict(),
        "feature": 0,
        "sequence": 0,
        "text": "a blue ring",
        "encoder": "e",
        "cluster": 1,
        "x": 1.5,
        "y": -2.0,
        "embedding": [1.0],
    }
    clusters = [
        {**about, "cluster": n, "topic": topic, "size": 1, "sample": [0], "sample_texts": ["x"]}
        for n, topic in enumerate(("shapes", "rings"))
    ]
    places = publish_rows(store, map_stage, {"explanation_map": [point], "explanation_clusters": clusters})
    reads = {"names": (dissect, miclip, others), "judged": (judged,), "texts": tuple(texts), "scores": (summary,), "map": (places,),
             "shared": (make_buddies(store, world.sae),)}  # fmt: skip
    (plan,) = world.read(reads, partners=2)
    ran = run_plans(store, [plan])
    assert not ran.board.failed, list(ran.board.failed.values())
    index = {row["unit"]: row for row in rows_of(store, plan, "explorer_index")}
    return {
        row["unit"]: {**told(row), "short": index[row["unit"]]} for row in rows_of(store, plan, "explorer_features")
    }


def test_names_are_told_by_method_the_preferred_one_first_with_verdicts(described: dict[int, dict[str, Any]]) -> None:
    miclip, dissect = described[0]["names"]
    assert miclip["variant"] == "miclip in+out seed 3" and miclip["concepts"] == [
        ["blue", 0.9],
        ["ring", 0.3],
        ["red", 0.1],
    ]
    assert (miclip["truth"], miclip["correct"], miclip["clip_score"]) == ("red", False, 0.5)
    assert dissect["concepts"] == [["red", -1.0], ["blue", -2.0]] and "correct" not in dissect
    assert described[1]["names"][1]["concepts"][0] == ["ring", -0.5] and "correct" not in described[1]["names"][0]
    assert described[2]["names"] == []
    assert described[0]["short"]["name"] == "blue" and described[0]["short"]["name_score"] == pytest.approx(0.9)


def test_a_verdict_stands_by_the_names_that_were_judged_and_by_no_others(world: World) -> None:
    """Two lists of concepts, each described by one method and judged by a stage of its own; one site of an SAE among two."""
    store, sae = world.store, world.sae.removeprefix("sae:")

    def describe(concepts: list[str], site: str, scores: list[float]) -> Plan:
        return publish_scores(store, describe_stage("miclip in", concepts, MODEL, site, sae=sae), [scores])

    colours = describe(["red", "blue"], CANONICAL, [0.9, 0.1])
    shapes = describe(["ring", "cross"], CANONICAL, [0.2, 0.8])
    elsewhere = describe(["red", "blue"], "resid_post.0@patch", [0.1, 0.9])
    unjudged = describe(["dot"], CANONICAL, [0.7])
    judged = (
        publish_verdicts(store, [(colours, 0, "red", "red"), (elsewhere, 0, "red", "blue")]),
        publish_verdicts(store, [(shapes, 0, "ring", "cross")]),
    )
    (plan,) = world.read({"names": (colours, shapes, elsewhere, unjudged), "judged": judged})
    run_plans(store, [plan])
    judges: Any = plan.effort["judges"]
    assert {*judges, *(one for some in judges.values() for one in some)} <= set(
        plan.stage.inputs.values()
    )  # so the digest says who judged what
    page = next(told(row) for row in rows_of(store, plan, "explorer_features") if row["unit"] == 0)
    assert {name["concepts"][0][0]: (name.get("truth"), name.get("correct")) for name in page["names"]} == {
        "red": ("red", True), "cross": ("ring", False), "blue": ("red", False), "dot": (None, None),
    }  # fmt: skip


def test_texts_come_with_scores_the_chosen_first_and_controls_last(described: dict[int, dict[str, Any]]) -> None:
    texts = described[0]["texts"]
    assert [(text["text"], text["chosen"], text["control"], text.get("iou")) for text in texts] == [
        ("a blue ring", True, False, 0.4), ("a red ring", False, False, 0.6), ("a red ring", False, True, None),
    ]  # fmt: skip
    assert [text["text"] for text in described[1]["texts"]] == ["a cross"] * 3 and described[2]["texts"] == []
    short = described[0]["short"]
    assert (short["text"], short["topic"], short["x"], short["y"]) == ("a blue ring", "rings", 1.5, -2.0)
    assert set(short["words"].split("\n")) >= {"blue", "red", "ring", "a blue ring", "a red ring"}
    assert described[1]["short"]["x"] is None


def test_partners_are_the_best_above_the_null_from_both_sides_of_a_pair(described: dict[int, dict[str, Any]]) -> None:
    partners = described[1]["partners"]
    assert [(row["model"], row["sae"], row["unit"], row["r"]) for row in partners] == [
        (OTHER, None, 8, 0.9),
        (OTHER, None, 9, 0.7),
    ]
    assert described[2]["partners"] == [] and described[0]["partners"] == []
    assert (described[1]["short"]["partners"], described[2]["short"]["partners"]) == (1, 0)
    assert described[1]["short"]["best_r"] == pytest.approx(0.9)


# ---------------------------------------------------------------- plans


def test_the_order_in_which_stages_are_read_does_not_matter(world: World) -> None:
    one = publish_scores(world.store, describe_stage("miclip a", ["x"], MODEL, CANONICAL, sae=world.sae[4:]), [[0.1]])
    two = publish_scores(world.store, describe_stage("miclip b", ["x"], MODEL, CANONICAL, sae=world.sae[4:]), [[0.2]])
    (plan,) = world.read({"a": (one,), "b": (two,)})
    (same,) = world.read({"b": (two, one)})
    (less,) = world.read({"a": (one,)})
    assert plan.digest == same.digest != less.digest
    maps = [
        publish_rows(
            world.store,
            StageSpec(
                kind="map_explanations",
                method=1,
                subject=MODEL,
                output="map",
                params={"n": n},
                inputs={"sae": world.sae[4:]},
            ),
        )
        for n in range(2)
    ]
    assert world.read({"maps": tuple(maps)})[0].digest == world.read({"maps": tuple(maps[::-1])})[0].digest


def test_pages_with_the_verdicts_of_any_list_are_made_anew(world: World) -> None:
    """Method 1 took every verdict of a unit, and its stored plans do not say who judged."""
    for plan in world.plans("explorer"):
        assert plan.digest != plan.stage.model_copy(update={"method": 1}).digest


def test_a_model_without_units_has_no_pages_and_features_that_are_not_described_are_refused(world: World) -> None:
    facts: ModelFacts = world.facts.model_copy(update={"model": OTHER})
    reads = {"features": tuple(world.plans("sae_features"))}
    cell = Cell("pages", ExplorerSpec(reads=("features",)), OTHER, reads=reads)
    assert make_plans(cell, Known({OTHER: facts}, {})) == ()
    acts = tuple(plan for plan in world.plans("extract") if plan.stage.output == "embeddings")
    cell = Cell("pages", ExplorerSpec(reads=("acts",)), MODEL, reads={"acts": acts})
    with pytest.raises(BadSpec, match="acts stores no top_images"):
        make_plans(cell, Known({MODEL: world.facts}, {}))
    (plan,) = reads["features"]
    bare = plan.model_copy(
        update={"stage": plan.stage.model_copy(update={"params": {**plan.stage.params, "tables": ["codes"]}})}
    )
    cell = Cell("pages", ExplorerSpec(reads=("features",)), MODEL, reads={"features": (bare,)})
    with pytest.raises(BadSpec, match="a page needs features"):
        make_plans(cell, Known({MODEL: world.facts}, {}))


def test_stages_that_have_no_units_are_not_enough(world: World) -> None:
    data = world.spec.model_dump(mode="json")
    data["stages"]["pages"]["reads"] = ["map"]
    data["stages"]["map"] = {"kind": "map_explanations", "reads": ["words"]}
    data["stages"]["words"] = {"kind": "explain", "reads": ["features"], "vlm": "demo:llava-p8"}
    with pytest.raises(ValueError, match="whose units get a page"):
        PipelineSpec.model_validate({**data, "clip": MODEL}, strict=False)
