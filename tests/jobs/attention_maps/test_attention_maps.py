"""Attention maps through published tables: an SAE and lists of features made by hand, on images whose patches are known."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.attention_maps.plan import estimate
from jobs.sae_files import WEIGHTS
from miclip_core.align.attention_maps import attention_maps
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import save_sae
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, SHAPES, World, attributes
from miclip_core.zoo.geometry import to_pixels
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import UsageError
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import StageSpec
from schemas.refs import ModelRef
from schemas.sae import SaeConfig
from tests.handmade import publish_stage
from tests.lakes import Lake

MODEL, SITE, IMAGES = "demo:clip-p8", "resid_post.3@patch", 60
CONCEPTS = ("circle", "square", "star", "ring", "top left", "unicorn")
ALL, DEAD = tuple(range(192)), (192,)
UNITS = {"circle": ALL, "square": (3, 100, 7), "star": DEAD, "top left": (5,), "unicorn": (6,)}
"""Features of each concept; `ring` has none."""


def make_spec(model: str = MODEL, site: str = SITE, describe: Mapping[str, Any] = {}, **maps: Any) -> PipelineSpec:
    data = {
        "kind": "pipeline",
        "name": "test",
        "images": {"ref": f"world:seed=0,n={IMAGES}"},
        "matrix": {"model": [model]},
        "stages": {
            "acts": {"kind": "extract", "sites": [site], "outputs": ["activations"], "batch_size": 16},
            "sae": {"kind": "train_sae", "reads": "acts", "latents": 193, "k": 8, "steps": 5, "batch_tokens": 64, "block_images": 4},
            "describe": {
                "kind": "describe", "reads": ["sae", "acts"], "methods": ["act_values"], "units": ["features"],
                "concepts": list(CONCEPTS), "labels_from": ["shape"], "tau": 192, **describe,
            },
            "maps": {
                "kind": "attention_maps", "reads": "describe", "labels_from": ["shape", "position"], "activation": "sae",
                "images_per_concept": 3, **maps,
            },
        },
    }  # fmt: skip
    return PipelineSpec.model_validate(data, strict=False)


def exact_sae() -> Sae:
    """Both signs of every axis of a rotation by relu, which reconstruct everything, and a last latent that never fires."""
    Q = torch.linalg.qr(torch.randn(96, 96, generator=torch.Generator().manual_seed(0)))[0]
    W = torch.cat([Q, -Q, Q[:1]])
    b_enc = torch.zeros(193)
    b_enc[-1] = -1e6
    config = SaeConfig(arch="relu", d=96, latents=193, k=None)
    return Sae(config, W, b_enc, W, torch.randn(96, generator=torch.Generator().manual_seed(1)))


def publish_by_hand(lake: Lake, stage: StageSpec) -> None:
    if stage.output == "sae":
        publish_stage(lake, stage, {}, {WEIGHTS: save_sae(exact_sae())})
    elif stage.kind == "describe":
        rows = [(name, unit, rank) for name, units in UNITS.items() for rank, unit in enumerate(units)]
        n = len(rows)
        columns = {
            "model": MODEL, "site": SITE, "sae": [f"sae:{stage.inputs['sae']}"] * n, "unit_kind": "features",
            "method": "act_values", "variant": "act_values", "seed": [None] * n, "direction": "localise", "unit": [row[1] for row in rows],
            "concept_id": [CONCEPTS.index(row[0]) for row in rows], "concept": [row[0] for row in rows],
            "rank": [row[2] for row in rows], "score": [1.0] * n, "is_dead": [False] * n,
        }  # fmt: skip
        publish_stage(lake, stage, {"unit_concepts": columns})
    elif stage.kind in ("extract", "measure_sae"):
        publish_stage(lake, stage, {})  # nobody reads them


def look_at(lake: Lake, model: str) -> None:
    """Inspect a model and index the images, so that pipelines over them can be planned."""
    spec = make_spec(model)
    facts = {"sites": [], "outputs": ["embeddings"], "kind": "extract"}
    stages = {"kind": "pipeline", "name": "facts", "matrix": {"model": [model]}, "stages": {"facts": facts}}
    assert lake.run(PipelineSpec.model_validate({**stages, "images": spec.images}, strict=False)).exit_code == 0


class Maps:
    """One run over the demo world, and the same lake before it."""

    def __init__(self, folder: Path) -> None:
        self.lake = Lake(folder / "lake")
        spec = make_spec()
        look_at(self.lake, MODEL)
        for _, plan, _ in plan_pipeline(spec, self.lake.store).plans():
            publish_by_hand(self.lake, plan.stage)
        self.before = Lake(shutil.copytree(self.lake.uri, folder / "before"))
        self.report = self.lake.run(spec)
        assert self.report.exit_code == 0, self.report.failures
        self.rows = self.lake.table(self.report, "attention_maps").to_pylist()
        self.images = {row["image_index"]: row for row in self.lake.table(self.report, "images").to_pylist()}

    def of(self, concept: str, shows: str = "features") -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["concept"], row["shows"]) == (concept, shows)]


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    return Maps(tmp_path_factory.mktemp("maps"))


def saliency(row: dict[str, Any]) -> np.ndarray:
    return np.array(row["saliency"], np.float32).reshape(row["grid_h"], row["grid_w"])


# ---------------------------------------------------------------- which images


def test_the_first_images_of_each_concept_are_looked_at_with_its_features_and_without(maps: Maps) -> None:
    expected = set()
    for concept in ("circle", "square", "star", "top left"):
        column = "position" if concept == "top left" else "shape"
        showing = [
            index
            for index, row in sorted(maps.images.items())
            if row["duplicate_of"] is None
            and concept in [v for k, v in row["attributes"] if re.fullmatch(rf"{column}(_\d)?", k)]
        ]
        expected |= {(concept, index, shows) for index in showing[:3] for shows in ("features", "model")}
    assert {(row["concept"], row["image_index"], row["shows"]) for row in maps.rows} == expected
    assert len(maps.rows) == len(expected)
    for row in maps.rows:
        image = maps.images[row["image_index"]]
        assert (row["image_id"], row["uri"]) == (image["image_id"], image["uri"])
        assert (row["site"], row["layer"], row["unit_kind"]) == (SITE, 4, "features")
        assert row["concept_id"] == CONCEPTS.index(row["concept"])
        assert row["units"] == (list(UNITS[row["concept"]]) if row["shows"] == "features" else [])


def test_what_has_no_image_or_no_feature_is_said(maps: Maps) -> None:
    notes = [note for e in maps.lake.events for note in e.get("notes", ())]
    assert "1 concepts have no maps, such as unicorn: no image is labelled with it" in notes
    assert "1 concepts have no maps, such as ring: it has no features" in notes


# ---------------------------------------------------------------- maps


@cache
def open_model() -> VisionModel:
    return load_model(ModelRef.parse(MODEL))


def pixels(row: dict[str, Any]) -> torch.Tensor:
    """One image drawn again, as the model takes it."""
    model = open_model()
    scene = attributes(World(0), [HELD_OUT_INDICES.start + int(row["uri"].rpartition("#")[2])])
    picture = Image.fromarray(render_scenes(scene)[0][0])
    return model.normalise(to_pixels(picture, model.facts.geometry)[None])


def test_every_map_sums_to_one_and_its_entropy_is_that_of_its_values(maps: Maps) -> None:
    for row in maps.rows:
        values = saliency(row).astype(np.float64)
        assert values.shape == (8, 8) and (values > 0).all() and values.sum() == pytest.approx(1, abs=1e-5)
        assert row["entropy"] == pytest.approx(-(values * np.log(values)).sum(), abs=1e-4)


def test_the_models_own_map_is_its_attention_over_the_patches_alone(maps: Maps) -> None:
    model = open_model()
    for row in maps.of("circle", "model") + maps.of("square", "model"):
        row_HT = model.run(pixels(row), ["pattern.4@cls"])["pattern.4@cls"].reshape(3, 65)
        patches_HP = row_HT[:, 1:] / row_HT[:, 1:].sum(1, keepdim=True)
        np.testing.assert_allclose(saliency(row).reshape(-1), patches_HP.mean(0).numpy(), atol=1e-6)


def test_all_features_of_an_sae_without_error_give_the_models_own_map(maps: Maps) -> None:
    for row, own in zip(maps.of("circle"), maps.of("circle", "model"), strict=True):
        assert row["image_index"] == own["image_index"]
        np.testing.assert_allclose(saliency(row), saliency(own), atol=1e-5)
        assert saliency(own).max() > 1.5 / 64  # not uniform


def test_a_feature_that_never_fires_leaves_all_patches_alike(maps: Maps) -> None:
    for row in maps.of("star"):
        np.testing.assert_allclose(saliency(row), 1 / 64, atol=1e-6)
        assert row["entropy"] == pytest.approx(math.log(64), abs=1e-5)


def test_a_map_is_that_of_the_concepts_own_features_one_image_at_a_time(maps: Maps) -> None:
    model = open_model()
    for row in maps.of("square"):
        expected = attention_maps(model, SITE, exact_sae(), pixels(row), torch.tensor([[3, 100, 7]]), "sae")
        np.testing.assert_allclose(saliency(row), expected[0].numpy(), atol=1e-6)
        assert np.abs(saliency(row) - 1 / 64).max() > 1e-3


# ---------------------------------------------------------------- truth


def shown_patches(row: dict[str, Any]) -> np.ndarray:
    """Patches that show a shape, read off the label map: most of the patch's object pixels are of such an object."""
    scene = attributes(World(0), [HELD_OUT_INDICES.start + int(row["uri"].rpartition("#")[2])])
    labels = render_scenes(scene)[1][0]
    shown = np.zeros((8, 8), bool)
    for y in range(8):
        for x in range(8):
            patch = labels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            area = [(patch == k + 1).sum() for k in range(4)]
            k = int(np.argmax(area))
            shown[y, x] = area[k] >= 6 and SHAPES[scene.shape[0, k]] == row["concept"]
    return shown


def test_mass_area_and_hit_are_those_of_the_patches_that_show_the_concept(maps: Maps) -> None:
    hits = []
    for row in (row for row in maps.rows if row["concept"] in SHAPES):
        shown, values = shown_patches(row), saliency(row)
        assert 0 < shown.sum() < 64
        assert row["truth_area"] == pytest.approx(shown.mean())
        assert row["truth_mass"] == pytest.approx(values[shown].sum(), abs=1e-5)
        if row["concept"] != "star" or row["shows"] == "model":  # whose maps have no largest value
            assert row["is_hit"] == shown[np.unravel_index(values.argmax(), (8, 8))]
            hits.append(row["is_hit"])
        if row["concept"] == "star" and row["shows"] == "features":
            assert row["truth_mass"] == pytest.approx(row["truth_area"], abs=1e-5)
    assert set(hits) == {True, False}


def test_truth_is_null_where_patches_do_not_tell(maps: Maps) -> None:
    rows = maps.of("top left") + maps.of("top left", "model")
    assert len(rows) == 6
    assert {(row["truth_mass"], row["truth_area"], row["is_hit"]) for row in rows} == {(None, None, None)}


# ---------------------------------------------------------------- shards, and what is refused


def test_shards_give_the_same_bits_as_one_pass(maps: Maps) -> None:
    def by_key(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: (row["concept_id"], row["image_index"], row["shows"]))

    report = maps.before.run(make_spec(shard_rows=7))
    assert report.exit_code == 0 and maps.before.count("shard_done", "attention_maps") == 9
    assert by_key(maps.before.table(report, "attention_maps").to_pylist()) == by_key(maps.rows)
    again: RunReport = maps.before.run(make_spec())
    assert again.exit_code == 0 and maps.before.count("shard_done") == 0


def test_columns_of_the_demo_world_are_known_so_that_words_are_not_taken_for_shapes(maps: Maps) -> None:
    (plan,) = [
        p for _, p, _ in plan_pipeline(make_spec(labels_from=[]), maps.lake.store).plans() if p.stage.output == "maps"
    ]
    assert plan.stage.params["labels_from"] == ["shape", "position"]


def test_maps_cost_two_passes_of_each_concept_and_image(maps: Maps) -> None:
    planned = plan_pipeline(make_spec(concepts=["star", "ring"]), maps.lake.store)
    (plan,) = [plan for _, plan, _ in planned.plans() if plan.stage.output == "maps"]
    cost = estimate(plan, planned.known)
    assert plan.stage.params["chosen"] == [2, 3] and cost.images == IMAGES
    assert cost.flops == 2 * 2 * 3 * planned.known.models[MODEL].flops  # up to block 4 of 5, which is all of them


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "demo:clip-rn", "site": "stage.3@map"}, "stages.maps.reads: demo:clip-rn has no class token"),
        ({"site": "resid_post.4@patch"}, "l from 0 to 3 of demo:clip-p8, so that a block follows"),
        ({"site": "mlp_out.2@patch"}, r"mlp_out.2@patch: attention maps need resid_post.l@patch"),
        ({"describe": {"units": ["neurons"], "tau": 5}}, "no features of demo:clip-p8 were described"),
        ({"concepts": ["zebra", "star"]}, "stages.maps.concepts: zebra not among the 6 concepts"),
        ({"tau": 500}, "stages.maps.tau: 500 units of a concept, but lists of .* have 192"),
    ],
)
def test_what_has_no_map_is_refused_at_planning(maps: Maps, fields: Any, said: str) -> None:
    if fields.get("model"):
        look_at(maps.lake, fields["model"])
    with pytest.raises(UsageError, match=said):
        plan_pipeline(make_spec(**fields), maps.lake.store)


def test_labels_that_name_no_concept_are_an_error(maps: Maps) -> None:
    failed = maps.lake.run(make_spec(labels_from=["background"]))
    assert failed.exit_code == 1 and "BadLabels" in failed.failures[0] and "background is" in failed.failures[0]


def test_a_method_that_found_no_features_has_no_maps_and_nothing_fails(maps: Maps) -> None:
    report = maps.lake.run(make_spec(concepts=["ring"]))
    assert report.exit_code == 0, report.failures
    notes = [note for e in maps.lake.events for note in e.get("notes", ())]
    assert "1 concepts have no maps, such as ring: it has no features" in notes
