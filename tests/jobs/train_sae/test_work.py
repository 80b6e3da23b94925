"""SAEs of a demo model from images to published tables: stored and live tokens, reruns, and what the held-out measurement says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from jobs.tokens.order import Order
from miclip_core.images import decode
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.text import zero_shot_classifier
from schemas.pipeline_spec import PipelineSpec
from schemas.refs import ModelRef
from schemas.sae import StreamSettings
from tests.lakes import SHAPES, Lake, export

CLIP = "demo:clip-p8"
SITE = "resid_post.3@patch"
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
STREAM = StreamSettings(batch_tokens=256, buffer_batches=4, block_images=8, holdout=0.2)
IMAGES = 96


class World:
    """A folder of images and specs over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        export(folder / "world", IMAGES)

    def spec(self, live: bool = False, sites: tuple[str, ...] = (SITE,), model: str = CLIP, **sae: Any) -> PipelineSpec:
        images = {
            "ref": f"folder:{self.folder}/world/images",
            "labels": f"file:{self.folder}/world/labels.parquet",
        }
        fields = {
            "kind": "train_sae",
            "latents": [64],
            "k": [4],
            "seed": [0, 1],
            "steps": 20,
            "batch_tokens": 256,
            "buffer_batches": 4,
            "block_images": 8,
            "holdout": 0.2,
            "keep_every": 7,
            "classes": {"names": list(CLASSES), "templates": ["a {}"]},
            **sae,
        }
        acts = {"kind": "extract", "sites": list(sites), "outputs": ["activations"], "shard_rows": 40}
        stages = (
            {"sae": {**fields, "sites": list(sites)}} if live else {"acts": acts, "sae": {**fields, "reads": "acts"}}
        )
        data = {"kind": "pipeline", "name": "t", "images": images, "matrix": {"model": [model]}, "stages": stages}
        return PipelineSpec.model_validate(data, strict=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


class Stored:
    """A lake whose tokens were stored, and the run that trained on them."""

    def __init__(self, world: World) -> None:
        self.lake = Lake(world.folder / "stored")
        self.report: RunReport = self.lake.run(world.spec())
        assert self.report.failures == []

    def saes(self, report: RunReport | None = None) -> dict[str, bytes]:
        return get_saes(self.lake, report or self.report)


@pytest.fixture(scope="module")
def stored(world: World) -> Stored:
    return Stored(world)


def get_saes(lake: Lake, report: RunReport) -> dict[str, bytes]:
    """Stage -> file of weights."""
    stages = [state.digest for state in report.state.stages if state.kind == "train_sae"]
    return {stage: StoreInputs(lake.store).published(stage, "sae.safetensors") for stage in stages}


def rows(lake: Lake, report: RunReport, table: str) -> list[dict[str, Any]]:
    return lake.table(report, table).to_pylist()


# -- stored, live, again, more


def test_live_tokens_give_the_stages_weights_and_figures_of_stored_ones(world: World, stored: Stored) -> None:
    lake = Lake(world.folder / "live")
    report = lake.run(world.spec(live=True, keep_every=100))
    assert report.failures == [] and len(stored.saes()) == 2
    assert get_saes(lake, report) == stored.saes()
    for table in ("sae_metrics", "sae_summary"):
        assert rows(lake, report, table) == rows(stored.lake, stored.report, table)
    assert not lake.store.list("tables/activations")


def test_a_rerun_computes_nothing_and_one_seed_more_trains_only_that_one(world: World, stored: Stored) -> None:
    again = stored.lake.run(world.spec())
    assert again.exit_code == 0 and stored.lake.count("shard_done") == 0
    more = stored.lake.run(world.spec(seed=[0, 1, 2]))
    trained = [event for event in stored.lake.events if event["event"] == "shard_done"]
    assert [(event["title"].split()[0], len(event["stages"])) for event in trained] == [
        ("train_sae", 1),
        ("measure_sae", 1),
    ]
    assert stored.saes().items() < stored.saes(more).items()


def test_nothing_is_left_of_the_states_of_finished_stages(stored: Stored) -> None:
    assert [key for key in stored.lake.store.list("stages") if "/keep/" in key] == []


def test_the_curve_has_every_step_and_falls(stored: Stored) -> None:
    for sae in stored.saes():
        curve = [row for row in rows(stored.lake, stored.report, "sae_metrics") if row["stage"] == sae]
        assert [row["step"] for row in curve] == list(range(20))
        assert curve[-1]["tokens"] == 20 * 256 and curve[-1]["fvu"] < 0.8 * curve[0]["fvu"]


# -- the measurement, by a plain loop over hooked blocks


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(ModelRef.parse(CLIP))


class Oracle:
    """The held-out images of a stored run, one at a time through the library's own model with a plain hook on one block."""

    def __init__(self, world: World, stored: Stored, model: VisionModel) -> None:
        index = next(s.digest for s in stored.report.state.stages if s.kind == "index_images")
        inputs = StoreInputs(stored.lake.store)
        labels = {
            row["image_index"]: row["label"] for batch in inputs.table(index, "images") for row in batch.to_pylist()
        }
        ranges = Order(IMAGES, STREAM).heldout_ranges()
        images = [image for start, stop in ranges for image in inputs.images(index, start, stop)]
        self.labels = torch.tensor(
            [CLASSES.index(name) if (name := labels[i.image_index]) in CLASSES else -1 for i in images]
        )
        self.indices = [image.image_index for image in images]
        self.pixels = torch.stack([model.preprocess(decode(i.data, "upright")) for i in images if i.data is not None])
        self.model = model
        self.classifier = zero_shot_classifier(model, CLASSES, ["a {}"]) * model.module.logit_scale.exp()

    def run(self, change: Any = lambda patches: patches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(patches before the change, embeddings, logits) with the patches behind block 3 changed."""
        seen = []

        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            seen.append(output[:, 1:])
            return torch.cat([output[:, :1], change(output[:, 1:])], 1)

        handle = self.model.module.visual.transformer.resblocks[3].register_forward_hook(hook)
        try:
            with torch.no_grad():
                embeddings = self.model.module.encode_image(self.pixels)
        finally:
            handle.remove()
        return seen[0], embeddings, normalize(embeddings, dim=-1) @ self.classifier

    def loss(self, logits: torch.Tensor) -> float:
        known = self.labels >= 0
        return float(cross_entropy(logits[known], self.labels[known]))

    def top1(self, logits: torch.Tensor) -> float:
        known = self.labels >= 0
        return float((logits[known].argmax(1) == self.labels[known]).double().mean())


@pytest.fixture(scope="module")
def oracle(world: World, stored: Stored, model: VisionModel) -> Oracle:
    return Oracle(world, stored, model)


def test_reconstruction_figures_are_those_of_a_plain_loop(stored: Stored, oracle: Oracle) -> None:
    x = oracle.run()[0].flatten(0, 1).half().double()
    for row in rows(stored.lake, stored.report, "sae_summary"):
        sae = load_sae(stored.saes()[row["sae"].removeprefix("sae:")])
        codes, x_hat = sae.reconstruct(x.float())
        e = x - x_hat.double()
        close = pytest.approx
        assert row["measured_tokens"] == len(x) and row["images"] == len(oracle.pixels)
        assert row["fvu"] == close(float(e.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5)
        assert row["explained_variance"] == close(1 - row["fvu"], abs=1e-12)
        assert row["l0"] == close(float((codes.dense() > 0).sum(1).double().mean()), rel=1e-6)
        cosine = torch.cosine_similarity(x, x_hat.double(), dim=1).mean()
        assert row["cosine"] == close(float(cosine), rel=1e-5)
        assert row["dead_fraction"] == close(float((codes.dense() > 0).sum(0).eq(0).double().mean()))
        assert row["gamma"] == close(float(x.mean(0).norm() / x.var(0, correction=0).sum().sqrt()), rel=1e-4)


def test_losses_are_those_of_the_model_with_a_plain_hook_on_the_block(stored: Stored, oracle: Oracle) -> None:
    patches, embeddings, logits = oracle.run()
    mean = patches.half().float().flatten(0, 1).mean(0)
    zero, average = oracle.run(torch.zeros_like)[2], oracle.run(lambda x: mean.expand(x.shape))[2]
    for row in rows(stored.lake, stored.report, "sae_summary"):
        sae = load_sae(stored.saes()[row["sae"].removeprefix("sae:")])
        _, spliced_embeddings, spliced = oracle.run(lambda x, sae=sae: spliced_by(sae, x))
        assert row["loss_kind"] == "zero_shot"
        expected = {
            "loss_original": oracle.loss(logits),
            "loss_spliced": oracle.loss(spliced),
            "loss_zero": oracle.loss(zero),
            "loss_mean": oracle.loss(average),
            "top1_original": oracle.top1(logits),
            "top1_spliced": oracle.top1(spliced),
            "embedding_cosine": float(torch.cosine_similarity(embeddings, spliced_embeddings, dim=1).mean()),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        drop = expected["loss_mean"] - expected["loss_original"]
        assert row["recovered_mean"] == pytest.approx(
            (expected["loss_mean"] - expected["loss_spliced"]) / drop, rel=1e-3
        )
        log_p, log_q = logits.log_softmax(1), spliced.log_softmax(1)
        assert row["kl_spliced"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(1).mean()), rel=1e-3)


def spliced_by(sae: Sae, patches: torch.Tensor) -> torch.Tensor:
    return sae.reconstruct(patches.flatten(0, 1))[1].reshape(patches.shape)


def test_the_row_of_an_sae_says_what_it_is(stored: Stored) -> None:
    first = rows(stored.lake, stored.report, "sae_summary")[0]
    assert first["sae"] in {f"sae:{stage}" for stage in stored.saes()} and first["stage"] not in stored.saes()
    assert (first["source"], first["arch"]) == ("miclip", "topk")
    assert (first["d"], first["latents"], first["k"], first["seed"], first["steps"]) == (96, 64, 4, 0, 20)
    config = json.loads(first["config"])
    assert config["settings"]["latents"] == config["sae"]["latents"] == 64 and config["sae"]["site"] == SITE


def test_sites_that_cannot_be_replaced_have_no_loss_and_a_model_without_classes_has_a_cosine(world: World) -> None:
    """A mean over patches is no part of the forward pass; without classes there is no cross-entropy."""
    lake = Lake(world.folder / "others")
    sites = ("resid_post.3@patch:mean", "resid_post.2@cls")
    report = lake.run(world.spec(live=True, sites=sites, classes=None, seed=[0], steps=3, batch_tokens=16))
    assert report.failures == []
    mean, cls = rows(lake, report, "sae_summary")
    nulls = {name for name, value in mean.items() if value is None}
    assert {"loss_kind", "loss_original", "kl_spliced", "embedding_cosine", "recovered_mean"} <= nulls
    assert cls["loss_kind"] is None and cls["kl_spliced"] is None and -1 <= cls["embedding_cosine"] < 1
    assert cls["fvu"] > 0 and cls["measured_tokens"] == cls["images"]


def test_one_sae_of_a_sweep_that_diverges_fails_alone(world: World) -> None:
    lake = Lake(world.folder / "live")  # where its sibling may be trained already: images and model are known
    report = lake.run(world.spec(live=True, seed=[5], lr=[1e-3, 1e30, 2e-3], classes=None))
    assert report.exit_code == 1 and len(report.failures) == 2
    assert "SaeDiverged" in report.failures[0] and "lr 1e+30" in report.failures[0]
    assert "its input stage" in report.failures[1]  # there is nothing to measure
    states = {state.detail: state.state for state in report.state.stages if state.kind == "train_sae"}
    assert sorted(states.values()) == ["failed", "published", "published"]
    assert len(rows(lake, report, "sae_summary")) == 2


def test_the_class_of_an_image_may_be_an_attribute_and_the_sae_is_not_trained_again(
    world: World, stored: Stored, model: VisionModel, oracle: Oracle
) -> None:
    """Colours are no labels of these images, but an attribute; the original loss is that of a plain zero-shot pass."""
    colours = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
    classes = {"names": colours, "templates": ["a {}"]}
    report = stored.lake.run(world.spec(classes=classes, labels_from="colour"))
    assert stored.lake.count("shard_done", "extract") == 0 and get_saes(stored.lake, report) == stored.saes()
    index = next(state.digest for state in report.state.stages if state.kind == "index_images")
    attributes = {
        row["image_index"]: dict(row["attributes"])
        for batch in StoreInputs(stored.lake.store).table(index, "images")
        for row in batch.to_pylist()
    }
    shown = [attributes[index].get("colour") for index in oracle.indices]
    named = torch.tensor([colours.index(colour) if colour in colours else -1 for colour in shown])
    columns = zero_shot_classifier(model, colours, ["a {}"])
    logits = normalize(oracle.run()[1], dim=-1) @ columns * model.module.logit_scale.exp()
    expected = float(cross_entropy(logits[named >= 0], named[named >= 0]))
    for row in rows(stored.lake, report, "sae_summary"):
        assert row["loss_original"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels_from": "shap"}, "its shap is not known"),
        ({"classes": {"names": ["zebra", "horse"], "templates": ["a {}"]}}, "classes zebra, horse: no image that is looked at is of any"),
    ],
)  # fmt: skip
def test_classes_that_no_held_out_image_has_are_an_error_and_no_row_of_nulls(
    world: World, stored: Stored, fields: dict[str, Any], said: str
) -> None:
    report = stored.lake.run(world.spec(**fields))
    assert report.exit_code == 1 and stored.lake.count("shard_done", "train_sae") == 0
    assert all("BadLabels" in failure and said in failure for failure in report.failures), report.failures
    assert all("name one of the columns in labels_from" in failure for failure in report.failures)
