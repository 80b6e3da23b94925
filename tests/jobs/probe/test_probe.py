"""A model without a head from activations to encoders: predictions of a probe against a plain loop, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.encoders import WEIGHTS
from miclip_core.align.encoder import load_encoder
from miclip_core.align.order import batch_order
from miclip_core.align.trainer import AlignTrainer
from miclip_core.evaluate.probe import make_folds
from miclip_core.zoo.reducers import Moments
from schemas.align import AlignSettings
from schemas.errors import UsageError
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import SHAPES, Lake, export

IMAGES, FOLDS, L2 = 132, 3, 0.01
MODEL, CLIP = "demo:vit-dense", "demo:clip-rn"
SITE, LAYERS = "resid_post.2@patch", ["resid_post.1@patch", "resid_post.2@patch"]
CLASSES = SHAPES[:6]
"""Images of the other two shapes are of no class."""


class World:
    """Images with labels, and one lake."""

    def __init__(self, folder: Path) -> None:
        self.images = export(folder, IMAGES)
        self.lake = Lake(folder / "lake")

    def spec(
        self, more: Mapping[str, Any] = MappingProxyType({}), reads: Any = ("acts", "probe"), **probe: Any
    ) -> PipelineSpec:
        probe = {
            "kind": "probe", "reads": "acts", "sites": SITE, "pool": "max", "labels_from": "shape",
            "classes": list(CLASSES), "l2": L2, "folds": FOLDS, "predictions_k": 2, **probe,
        }  # fmt: skip
        data = {
            "kind": "pipeline",
            "name": "test",
            "images": {"ref": f"folder:{self.images}/images", "labels": f"file:{self.images}/labels.parquet"},
            "clip": CLIP,
            "matrix": {"model": [MODEL]},
            "stages": {
                "acts": {"kind": "extract", "sites": LAYERS, "outputs": ["activations"]},
                "probe": probe,
                "align": {"kind": "align", "reads": list(reads), "sites": SITE, "batch": 32, "lr": 0.01},
                **more,
            },
        }
        return PipelineSpec.model_validate(data, strict=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def report(world: World) -> RunReport:
    report = world.lake.run(world.spec())
    assert report.exit_code == 0, report.failures
    return report


def rows(world: World, report: RunReport, table: str) -> list[dict[str, Any]]:
    return world.lake.table(report, table).to_pylist()


def pooled(world: World, report: RunReport, how: Callable[..., np.ndarray] = np.max) -> dict[int, np.ndarray]:
    """Image -> the largest value, or the mean, of each channel, by a plain loop."""
    acts: dict[int, list[list[float]]] = {}
    for row in rows(world, report, "activations"):
        if row["site"] == SITE:
            acts.setdefault(row["image_index"], []).append(row["act"])
    return {index: how(np.array(acts[index], np.float32), axis=0) for index in sorted(acts)}


def shapes(world: World, report: RunReport) -> dict[int, int]:
    """Image -> its class, -1 for the shapes that are none; duplicates are left out."""
    images = [row for row in rows(world, report, "images") if row["duplicate_of"] is None]
    found = {row["image_index"]: dict(row["attributes"]).get("shape") for row in images}
    return {index: CLASSES.index(shape) if shape in CLASSES else -1 for index, shape in found.items()}


def by_hand(world: World, report: RunReport) -> dict[int, np.ndarray]:
    """Image -> probabilities of a plain regression on all labelled images of other folds."""
    acts, shape = pooled(world, report), shapes(world, report)
    labels = np.array([shape[index] for index in acts])
    folds = make_folds(labels, FOLDS, 0)
    a = np.stack(list(acts.values())).astype(np.float64)
    found = {}
    for fold in (-1, *range(FOLDS)):
        train = (labels >= 0) & (folds != fold)
        mean, sd = a[train].mean(0), a[train].std(0)
        model = LogisticRegression(C=1 / (L2 * train.sum()), tol=1e-7, max_iter=5000).fit(
            (a[train] - mean) / sd, labels[train]
        )
        for place, index in enumerate(acts):
            if folds[place] == fold:
                found[index] = model.predict_proba((a[place : place + 1] - mean) / sd)[0]
    return found


def test_predictions_are_those_of_a_probe_that_did_not_see_the_image(world: World, report: RunReport) -> None:
    expected, shape = dict(sorted(by_hand(world, report).items())), shapes(world, report)
    predicted = rows(world, report, "predictions")
    assert [row["image_index"] for row in predicted] == [i for i in expected for _ in range(2)]
    assert max(expected) >= len(expected)  # a duplicate is left out, so rows are not image numbers
    assert [row["rank"] for row in predicted] == [0, 1] * len(expected)
    right = []
    for first, second in zip(predicted[::2], predicted[1::2], strict=True):
        p = expected[first["image_index"]]
        assert [first["class_id"], second["class_id"]] == np.argsort(-p)[:2].tolist()
        assert [first["probability"], second["probability"]] == pytest.approx(sorted(p)[:-3:-1], abs=1e-4)
        assert first["score"] - second["score"] == pytest.approx(np.log(sorted(p)[-1] / sorted(p)[-2]), abs=1e-2)
        assert first["class_name"] == CLASSES[first["class_id"]] and first["model"] == MODEL
        if shape[first["image_index"]] >= 0:
            right.append(first["class_id"] == shape[first["image_index"]])
    (summary,) = rows(world, report, "probe_summary")
    labelled = [of for of in shape.values() if of >= 0]
    assert 0 < len(labelled) < len(expected)  # both kinds of images were there
    assert {name: summary[name] for name in ("site", "pool", "classes", "images", "images_labelled", "folds", "l2", "seed")} == {
        "site": SITE, "pool": "max", "classes": len(CLASSES), "images": len(expected), "images_labelled": len(labelled),
        "folds": FOLDS, "l2": L2, "seed": 0,
    }  # fmt: skip
    assert summary["accuracy"] == pytest.approx(np.mean(right))
    assert summary["accuracy_majority"] == max(map(labelled.count, labelled)) / len(labelled)


def test_encoders_are_trained_towards_what_the_probe_predicts(world: World, report: RunReport) -> None:
    acts = pooled(world, report, np.mean)  # as the align stage pools
    probabilities = by_hand(world, report)
    yhat = torch.tensor([int(probabilities[index].argmax()) for index in acts])
    a = torch.from_numpy(np.stack(list(acts.values())))
    seen = {row["image_index"]: row["embedding"] for row in rows(world, report, "embeddings")}
    x = torch.tensor([seen[index] for index in acts])
    texts = {row["text"]: row["embedding"] for row in rows(world, report, "text_embeddings")}
    towards = torch.tensor([texts[name] for name in CLASSES])
    settings = AlignSettings(batch=32, lr=0.01)
    trainer, moments = AlignTrainer(settings, a.shape[1], x.shape[1]), Moments()
    moments.add(a[:, None], np.zeros(1, np.int32), [""] * len(a))
    trainer.begin(moments)
    for batch in map(torch.from_numpy, batch_order(len(a), settings, 0)):
        trainer.step(a[batch], towards, yhat[batch], x[batch])
    (digest,) = [state.digest for state in report.state.stages if state.kind == "align"]
    encoder = load_encoder(StoreInputs(world.lake.store).published(digest, WEIGHTS))
    torch.testing.assert_close(encoder.W, trainer.finish().W, rtol=1e-4, atol=1e-5)


def test_a_rerun_computes_nothing_and_other_folds_probe_again(world: World, report: RunReport) -> None:
    assert world.lake.run(world.spec()).exit_code == 0 and world.lake.count("shard_done") == 0
    assert world.lake.run(world.spec(seed=1)).exit_code == 0
    assert world.lake.count("shard_done", "extract") == 0 and world.lake.count("shard_done", "probe") == 1


def test_errors_are_traced_and_units_named_with_the_classes_of_a_probe(world: World, report: RunReport) -> None:
    more = {
        "layers": {"kind": "align", "reads": ["acts", "probe"], "batch": 32},
        "traces": {"kind": "trace_errors", "reads": ["layers", "acts", "probe"], "labels_from": "shape"},
        "names": {"kind": "describe", "reads": ["align", "acts", "probe"], "methods": "miclip", "concepts": "classes"},
    }
    done = world.lake.run(world.spec(more))
    assert done.exit_code == 0, done.failures
    predicted = {row["image_index"]: row["class_id"] for row in rows(world, done, "predictions") if row["rank"] == 0}
    traced = {row["image_index"]: row["predicted_id"] for row in rows(world, done, "error_traces")}
    labelled = {index for index, of in shapes(world, done).items() if of >= 0}
    assert traced == {index: predicted[index] for index in labelled}
    assert {row["concept"] for row in rows(world, done, "unit_concepts")} <= set(CLASSES)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sites": []}, "found activations of demo:vit-dense at resid_post.1@patch, resid_post.2@patch; expected those of one site"),
        ({"sites": "resid_post.0@patch"}, "not among the stored activations"),
        ({"reads": ["probe"]}, "stages.align.reads: no activations of demo:vit-dense; read an extract stage"),
        ({"reads": ["acts"]}, "found 0 stages of predictions of demo:vit-dense; .* or read a probe stage"),
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_refused_at_planning(world: World, report: RunReport, fields: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(world.spec(**fields), world.lake.store)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels_from": "colour"}, "no image that is looked at is of any; its colour is '"),
        ({"folds": 60}, r"classes circle \(\d+\), .* found fewer labelled images than folds \(60\)"),
    ],
)
def test_labels_that_say_too_little_stop_the_probe_and_say_why(
    world: World, report: RunReport, fields: Any, said: str
) -> None:
    failed = world.lake.run(world.spec(**fields))
    assert failed.exit_code != 0
    messages = " ".join(str(failure) for failure in failed.failures)
    assert re.search(said, messages), messages
