"""Traces through published tables: against a slow loop, cut into shards, on numbers made up by hand, and what is refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.encoders import WEIGHTS
from jobs.memory import LIBRARY_BYTES
from jobs.rows import make_vectors
from jobs.trace_errors.plan import estimate
from miclip_core.align.encoder import NeuronEncoder, load_encoder, save_encoder
from schemas.align import AlignSettings, EncoderConfig
from schemas.errors import UsageError
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, StageSpec
from tests.handmade import publish_stage
from tests.lakes import SHAPES, Lake, export

MODEL, CLIP, IMAGES = "demo:clip-p8", "demo:clip-rn", 100
LAYERS = ["resid_post.*@patch:mean", "embedding"]


def make_spec(
    folder: Path,
    acts: Mapping[str, Any] = {},
    align: Mapping[str, Any] = {},
    labels: str = "labels.parquet",
    **trace: Any,
) -> PipelineSpec:
    acts = {
        "kind": "extract", "sites": LAYERS, "outputs": ["activations", "predictions"], "batch_size": 16,
        "classes": {"names": list(SHAPES), "templates": ["a {}"]}, **acts,
    }  # fmt: skip
    data = {
        "kind": "pipeline",
        "name": "test",
        "images": {"ref": f"folder:{folder}/images", "labels": f"file:{folder}/{labels}"},
        "clip": CLIP,
        "matrix": {"model": [MODEL]},
        "stages": {
            "acts": acts,
            "align": {"kind": "align", "reads": "acts", "batch": 32, "epochs": 2, "lr": 0.003, **align},
            "trace": {"kind": "trace_errors", "reads": ["align", "acts"], "labels_from": "shape", **trace},
        },
    }
    return PipelineSpec.model_validate(data, strict=False)


ALIGN = {"loss": ["in+out", "out"]}


class World:
    """Images of the demo world, whose label is the first of several objects: so there are errors."""

    def __init__(self, folder: Path) -> None:
        self.folder = export(folder, IMAGES)
        self.lake = Lake(folder / "lake")
        spec = make_spec(folder, align=ALIGN)
        untraced = spec.model_copy(update={"stages": {name: spec.stages[name] for name in ("acts", "align")}})
        assert self.lake.run(untraced).exit_code == 0
        self.untraced = Lake(shutil.copytree(self.lake.uri, folder / "untraced"))
        self.report = self.lake.run(spec)
        assert self.report.exit_code == 0, self.report.failures

    def rows(self, table: str, report: RunReport | None = None, lake: Lake | None = None) -> list[dict[str, Any]]:
        return (lake or self.lake).table(report or self.report, table).to_pylist()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def trace_plans(spec: PipelineSpec, lake: Lake) -> list[Plan]:
    return [plan for _, plan, _ in plan_pipeline(spec, lake.store).plans() if plan.stage.kind == "trace_errors"]


def test_there_is_a_stage_per_variant_and_seed_over_all_layers(world: World) -> None:
    plans = trace_plans(make_spec(world.folder, align={"loss": ["in+out", "out"], "seed": [0, 1]}), world.lake)
    about = [(plan.stage.params["variant"], plan.stage.params["seed"]) for plan in plans]
    assert sorted(about) == [("miclip in+out", 0), ("miclip in+out", 1), ("miclip out", 0), ("miclip out", 1)]
    for plan in plans:
        assert plan.stage.params["layers"] == [0, 1, 2, 3, 4, 5]
        assert plan.stage.params["sites"] == [*(f"resid_post.{block}@patch:mean" for block in range(5)), "embedding"]
    assert len({(plan.worker, str(plan.effort)) for plan in plans}) == 1  # they share reading
    swept = trace_plans(make_spec(world.folder, align={"lr": [0.003, 0.001], "logit_scale": [1, "clip"]}), world.lake)
    assert {plan.stage.params["variant"] for plan in swept} == {
        f"miclip in+out scale={scale} lr={lr}" for scale in ("1", "clip") for lr in ("0.003", "0.001")
    }


def test_a_trace_costs_the_maps_of_its_layers(world: World) -> None:
    planned = plan_pipeline(make_spec(world.folder, align=ALIGN), world.lake.store)
    (plan, _) = (plan for _, plan, _ in planned.plans() if plan.stage.kind == "trace_errors")
    cost = estimate(plan, planned.known)
    assert (cost.images, cost.flops) == (IMAGES, 2 * IMAGES * 6 * 96 * 96)  # six layers of width 96 into 96 dimensions
    assert cost.memory == 4 * 6 * 96 * 96 and cost.worker_memory > LIBRARY_BYTES


# ---------------------------------------------------------------- rows


class Slow:
    """Dictionaries by image id: labels, predictions, vectors per layer; one image at a time through the encoders."""

    def __init__(self, world: World, report: RunReport | None = None) -> None:
        self.inputs = StoreInputs(world.lake.store)
        self.number = {row["image_id"]: row["image_index"] for row in world.rows("activations", report)}
        shape = {row["image_id"]: dict(row["attributes"]).get("shape") for row in world.rows("images", report)}
        self.guess = {row["image_id"]: row["class_id"] for row in world.rows("predictions", report) if row["rank"] == 0}
        self.truth = {name: SHAPES.index(shape[name] or "") for name in self.guess if shape[name] in SHAPES}
        self.acts: dict[tuple[str, str], list[list[float]]] = {}
        for row in world.rows("activations", report):
            self.acts.setdefault((row["site"], row["image_id"]), []).append(row["act"])

    def pooled(self, stage: StageSpec, site: str, name: str) -> torch.Tensor:
        """The mean, or the largest value of each channel, over the positions of one image."""
        tokens = np.array(self.acts[site, name], np.float32)
        return torch.from_numpy(tokens.mean(0) if stage.params["pool"] == "mean" else tokens.max(0))

    def wrong(self, name: str) -> int | None:
        of_class = sorted((n for n in self.truth if self.truth[n] == self.truth[name]), key=self.number.__getitem__)
        twins = [self.guess[n] for n in of_class if self.guess[n] != self.truth[n]]
        right = [n for n in of_class if self.guess[n] == self.truth[n]]
        if name not in right:
            return self.guess[name]
        return twins[right.index(name) % len(twins)] if twins else None

    def cosines(self, stage: StageSpec, name: str, label: int | None) -> list[float]:
        """Of one image at each layer with the text of a label."""
        if label is None:
            return []
        (rows,) = self.inputs.table(stage.inputs["texts"], "text_embeddings")
        text_E = {row["text"]: row["embedding"] for row in rows.to_pylist()}[SHAPES[label]]
        found = []
        for layer, site in zip(stage.params["layers"], stage.params["sites"], strict=True):  # type: ignore[arg-type]
            encoder = load_encoder(self.inputs.published(stage.inputs[f"encoder.{layer}"], WEIGHTS))
            n_E = encoder.embed(self.pooled(stage, str(site), name)[None])[0]
            found.append(float(cosine_similarity(n_E, torch.tensor(text_E), dim=0)))
        return found


def test_rows_are_those_of_a_slow_loop_over_images(world: World) -> None:
    slow = Slow(world)
    (stage, _) = (plan.stage for plan in trace_plans(make_spec(world.folder, align=ALIGN), world.lake))
    traces = [row for row in world.rows("error_traces") if row["stage"] == stage.digest]
    assert [row["image_id"] for row in traces] == sorted(slow.truth, key=slow.number.__getitem__)
    assert len(slow.truth) < len(slow.guess)  # some pictures have no object
    cosines = {
        (row["image_id"], row["layer"], row["label_role"]): row["cosine"]
        for row in world.rows("layer_trace")
        if row["stage"] == stage.digest
    }
    seen = set()
    for row in traces:
        name = row["image_id"]
        truth, guess, wrong = slow.truth[name], slow.guess[name], slow.wrong(name)
        assert (row["truth_id"], row["predicted_id"], row["wrong_id"]) == (truth, guess, wrong)
        assert (row["truth"], row["predicted"]) == (SHAPES[truth], SHAPES[guess])
        assert row["wrong"] == (None if wrong is None else SHAPES[wrong]) and row["is_error"] == (truth != guess)
        both = {"truth": slow.cosines(stage, name, truth), "wrong": slow.cosines(stage, name, wrong)}
        for role, values in both.items():
            for layer, cosine in enumerate(values):
                assert cosines.pop((name, layer, role)) == pytest.approx(cosine, abs=2e-6)
        leads = [t - w for t, w in zip(both["truth"], both["wrong"])]
        check_marks(row, leads)
        seen.add((row["is_error"], row["cross_layer"] is None))
    assert not cosines and seen == {(True, True), (True, False), (False, True), (False, False)}


def test_encoders_that_pool_in_different_ways_are_traced_each_in_its_own(world: World) -> None:
    data = make_spec(world.folder, {"sites": ["resid_post.2@patch", "resid_post.3@patch"]}).model_dump(
        mode="json", exclude_unset=True
    )
    data["stages"]["most"] = {**data["stages"]["align"], "pool": "max", "loss": ["out"]}
    data["stages"]["trace"]["reads"] = ["align", "most", "acts"]
    report = world.lake.run(PipelineSpec.model_validate(data, strict=False))
    assert report.exit_code == 0, report.failures
    stages = [plan.stage for plan in trace_plans(PipelineSpec.model_validate(data, strict=False), world.lake)]
    assert [(stage.params["pool"], stage.params["variant"]) for stage in stages] == [
        ("mean", "miclip in+out"), ("max", "miclip out"),
    ]  # fmt: skip
    slow, rows = Slow(world, report), world.rows("layer_trace", report)
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage.digest and row["label_role"] == "truth"]
        assert len(own) == 2 * len(slow.truth)
        for row in own:
            cosines = slow.cosines(stage, row["image_id"], slow.truth[row["image_id"]])
            assert row["cosine"] == pytest.approx(cosines[row["layer"] - 2], abs=2e-6)


def check_marks(row: dict[str, Any], leads: list[float]) -> None:
    if not leads:
        marks = (row["wrong"], row["peak_layer"], row["max_lead"], row["cross_layer"], row["persistent"])
        assert marks == (None, None, None, None, False)
        return
    peak = leads.index(max(leads))
    behind = [i for i in range(peak + 1, len(leads)) if leads[i] < 0 <= leads[i - 1]]
    assert row["peak_layer"] == peak and row["max_lead"] == pytest.approx(leads[peak], abs=2e-6)
    assert row["cross_layer"] == (behind[0] if behind else None)
    assert row["persistent"] == (bool(behind) and all(lead < 0 for lead in leads[behind[0] :]))


def test_summaries_count_the_images_of_each_trace(world: World) -> None:
    rows = world.rows("error_traces")
    for summary in world.rows("trace_summary"):
        group = [
            row
            for row in rows
            if row["stage"] == summary["stage"] and row["is_error"] == (summary["images_are"] == "wrong")
        ]
        assert summary["images"] == len(group) and summary["layers"] == [0, 1, 2, 3, 4, 5]
        assert summary["unknown"] == sum(row["wrong"] is None for row in group)
        assert summary["never_led"] == sum((row["max_lead"] or 0) < 0 for row in group)
        crossed = [row["cross_layer"] for row in group if row["cross_layer"] is not None]
        assert summary["crossed"] == len(crossed) and summary["persistent"] == sum(row["persistent"] for row in group)
        assert summary["crossings"] == [crossed.count(layer) for layer in range(6)]
        assert summary["peaks"] == [sum(row["peak_layer"] == layer for row in group) for layer in range(6)]
        assert summary["crossed_share"] == len(crossed) / (len(group) - summary["unknown"])
    assert len(world.rows("trace_summary")) == 4


TABLES = ("layer_trace", "error_traces", "trace_summary")


def test_shards_give_the_same_bits_as_one_pass(world: World) -> None:
    """Another lake with the same activations and encoders, which cuts the index into shards of 64 rows."""
    lake = world.untraced
    report = lake.run(make_spec(world.folder, align=ALIGN, shard_rows=50))
    assert report.exit_code == 0 and lake.count("shard_done") == lake.count("shard_done", "trace_errors") == 2 + 1
    for table in TABLES:
        assert world.rows(table, report, lake) == world.rows(table)
    again = lake.run(make_spec(world.folder, align=ALIGN))
    assert again.exit_code == 0 and lake.count("shard_done") == 0


def other_images(world: World, reads: list[str], **acts: Any) -> PipelineSpec:
    """The trace of the first 40 images, by encoders that were trained on all."""
    data = make_spec(world.folder, align=ALIGN).model_dump(mode="json", exclude_unset=True)
    data["stages"]["trace"]["reads"] = reads
    few = {**data["images"], "limit": 40}
    data["stages"]["few"] = {**data["stages"]["acts"], "images": few, **acts}
    return PipelineSpec.model_validate(data, strict=False)


def test_images_of_another_extract_stage_are_traced_by_the_same_encoders(world: World) -> None:
    spec = other_images(world, ["align", "few"])
    report = world.lake.run(spec)
    assert report.exit_code == 0 and world.lake.count("shard_done", "align") == 0
    plans = [plan for _, plan, _ in plan_pipeline(spec, world.lake.store).plans()]
    few_digests = {p.digest for p in plans if p.stage.kind == "extract" and p.stage.params.get("rows") == 40}
    stages = {plan.digest for plan in trace_plans(spec, world.lake)}
    for trace in (plan.stage for plan in plans if plan.digest in stages):
        read = {
            name: digest for name, digest in trace.inputs.items() if name.startswith(("activations", "predictions"))
        }
        assert len(read) == 7 and set(read.values()) <= few_digests
    few = [row for row in world.rows("layer_trace", report) if row["stage"] in stages and row["label_role"] == "truth"]
    assert {row["image_index"] for row in few} == {i for i in Slow(world).number.values() if i < 40} & {
        row["image_index"] for row in world.rows("error_traces")
    }
    variant = {row["stage"]: row["variant"] for row in world.rows("error_traces") + world.rows("error_traces", report)}
    whole = {
        (variant[row["stage"]], row["image_index"], row["layer"]): row["cosine"]
        for row in world.rows("layer_trace")
        if row["label_role"] == "truth"
    }
    for row in few:
        assert row["cosine"] == pytest.approx(whole[variant[row["stage"]], row["image_index"], row["layer"]], abs=2e-6)


def test_without_an_extract_stage_the_images_of_the_encoders_are_traced(world: World) -> None:
    own, read = (
        trace_plans(make_spec(world.folder, reads=reads), world.lake) for reads in (["align"], ["align", "acts"])
    )
    assert [plan.digest for plan in own] == [plan.digest for plan in read]


@pytest.mark.parametrize(
    ("reads", "acts", "said"),
    [
        (["align", "few"], {"sites": LAYERS[:1]}, "found 0 stages of activations of demo:clip-p8 at embedding"),
        (["align", "few", "acts"], {}, "found 2 stages of activations of demo:clip-p8 at resid_post.0"),
        (["align", "few"], {"outputs": ["activations"]}, "found 0 stages of predictions"),
        (["align", "few"], {"classes": {"names": ["star", "ring"]}}, r"towards 8 classes \(circle, .* are of 2 \(star"),
    ],
)
def test_images_that_lack_what_is_traced_are_refused(world: World, reads: Any, acts: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(other_images(world, reads, **acts), world.lake.store)


# ---------------------------------------------------------------- by hand

CLASSES = A, B, C = ("circle", "square", "star")
COSINES = {  # image -> layer -> (with its true class, with the wrong one)
    0: [(0.5, 0.4), (0.8, 0.2), (0.3, 0.6), (0.1, 0.7)],  # error a -> b: peak at 1, lost at 2 for good
    1: [(0.5, 0.2), (0.3, 0.4), (0.6, 0.4), (0.5, 0.4)],  # right a against b: peak at 0, lost at 1, comes back
    2: [(0.1, 0.5), (0.2, 0.3), (0.1, 0.6), (0.0, 0.7)],  # error a -> c: never led, nearest at 1
    3: [(0.6, 0.1), (0.6, 0.2), (0.6, 0.3), (0.6, 0.4)],  # right b: no image of b is mistaken
    5: [(0.2, 0.1), (0.3, 0.1), (0.4, 0.1), (0.5, 0.1)],  # right a against c, its twin in turn: leads to the end
}
SITES = [f"resid_post.{layer}@cls" for layer in range(4)]
TRUTH = {0: A, 1: A, 2: A, 3: B, 4: "zebra", 5: A, 6: B}
PREDICTED = {0: B, 1: A, 2: C, 3: B, 4: A, 5: A, 6: B}
WRONG = {0: B, 1: B, 2: C, 3: C, 4: B, 5: C, 6: C}


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A vector is `cos truth, cos wrong` along the axes of these classes, and what is left of length 1 along a last axis."""
    world = World.__new__(World)
    world.folder = export(tmp_path_factory.mktemp("hand"), len(TRUTH))
    world.lake = Lake(world.folder / "lake")
    with open(world.folder / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((f"{i:06d}.png", label) for i, label in TRUTH.items())])
    acts = {"sites": SITES, "round_to": "fp32", "classes": {"names": CLASSES, "templates": ["a {}"]}}
    spec = make_spec(world.folder, acts, {}, "mine.csv", labels_from="label")
    looked_at = {"kind": "extract", "outputs": ["embeddings"]}
    facts = {"images": spec.images, "matrix": {"model": (MODEL, CLIP)}, "stages": {"facts": looked_at}}
    facts = PipelineSpec.model_validate({"kind": "pipeline", "name": "facts", **facts}, strict=False)
    assert world.lake.run(facts).exit_code == 0
    for stage in {plan.digest: plan.stage for _, plan, _ in plan_pipeline(spec, world.lake.store).plans()}.values():
        publish_by_hand(world.lake, stage)
    world.report = world.lake.run(spec)
    assert world.report.exit_code == 0, world.report.failures
    assert world.lake.count("shard_done", "align") == 0 < world.lake.count("shard_done", "trace_errors")
    return world


def publish_by_hand(lake: Lake, stage: StageSpec) -> None:
    axes = np.eye(96, dtype=np.float32)
    if stage.output == "activations":
        layer = int(str(stage.params["site"])[len("resid_post.")])
        there = [i for i in TRUTH if (i, layer) != (6, 2)]  # image 6 was set aside at layer 2
        vectors = np.stack([vector(i, layer) if i in COSINES else axes[95] for i in there])
        columns = {"site": stage.params["site"], "token": [-1] * len(there), "act": make_vectors(vectors)}
        publish_stage(lake, stage, {"activations": {**images(stage, there), **columns}})
    elif stage.output == "predictions":
        names = list(PREDICTED.values())
        columns = {"rank": [0] * len(names), "class_id": [CLASSES.index(name) for name in names], "class_name": names}
        scores = {name: [1.0] * len(names) for name in ("score", "probability")}
        publish_stage(lake, stage, {"predictions": {**images(stage, list(TRUTH)), **columns, **scores}})
    elif stage.output == "text_embeddings":
        columns = {
            "model": stage.subject,
            "text_id": [0, 1, 2],
            "text": list(CLASSES),
            "templates": [1, 1, 1],
            "embedding": make_vectors(axes[:3]),
        }
        publish_stage(lake, stage, {"text_embeddings": columns})
    elif stage.output == "encoder":
        config = EncoderConfig(settings=AlignSettings(), d=96, dim=96, logit_scale=1.0, steps=0)
        publish_stage(lake, stage, {}, {WEIGHTS: save_encoder(NeuronEncoder(config, torch.eye(96)))})


def images(stage: StageSpec, numbers: list[int]) -> dict[str, Any]:
    return {"model": stage.subject, "image_id": [f"{i:032x}" for i in numbers], "image_index": numbers}


def vector(image: int, layer: int) -> np.ndarray:
    values = np.zeros(96, np.float32)
    values[CLASSES.index(TRUTH[image])], values[CLASSES.index(WRONG[image])] = COSINES[image][layer]
    values[95] = np.sqrt(1 - (values**2).sum())
    return values


def test_marks_of_images_by_hand(by_hand: World) -> None:
    columns = ("truth", "predicted", "wrong", "is_error", "peak_layer", "cross_layer", "persistent")
    found = {row["image_index"]: tuple(row[name] for name in columns) for row in by_hand.rows("error_traces")}
    assert found == {
        0: (A, B, B, True, 1, 2, True),
        1: (A, A, B, False, 0, 1, False),
        2: (A, C, C, True, 1, None, False),
        3: (B, B, None, False, None, None, False),
        5: (A, A, C, False, 3, None, False),
    }
    leads = {row["image_index"]: row["max_lead"] for row in by_hand.rows("error_traces")}
    assert leads.pop(3) is None and leads == pytest.approx({0: 0.6, 1: 0.3, 2: -0.1, 5: 0.4}, abs=1e-6)


def test_cosines_by_hand_and_none_where_there_is_no_wrong_label(by_hand: World) -> None:
    rows = by_hand.rows("layer_trace")
    found = {(row["image_index"], row["layer"], row["label_role"]): row["cosine"] for row in rows}
    expected = {
        (image, layer, role): cosine
        for image, layers in COSINES.items()
        for layer, both in enumerate(layers)
        for role, cosine in zip(("truth", "wrong"), both)
        if (image, role) != (3, "wrong")
    }
    assert found == pytest.approx(expected, abs=1e-6) and len(rows) == len(expected)
    assert {row["site"] for row in rows if row["layer"] == 2} == {"resid_post.2@cls"}


def test_summaries_by_hand_and_a_note_of_images_left_out(by_hand: World) -> None:
    wrong, right = by_hand.rows("trace_summary")
    counted = (
        "images_are",
        "images",
        "unknown",
        "never_led",
        "crossed",
        "persistent",
        "crossed_share",
        "peaks",
        "crossings",
    )
    assert [wrong[name] for name in counted] == ["wrong", 2, 0, 1, 1, 1, 0.5, [0, 2, 0, 0], [0, 0, 1, 0]]
    assert [right[name] for name in counted] == ["right", 3, 1, 0, 1, 0, 0.5, [1, 0, 0, 1], [0, 1, 0, 0]]
    notes = [note for e in by_hand.lake.events for note in e.get("notes", ())]
    assert "1 images with a prediction are left out: their label is not known or no class" in notes
    assert "1 images are left out: they have no activation at some layer" in notes


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"align": {"sites": ["resid_post.1@patch:mean"]}}, r"resid_post.1@patch:mean .* is the only layer .* such as resid_post.\*@patch:mean"),
        ({"sites": ["embedding"]}, "embedding .* is the only layer .* at least two"),
        ({"sites": ["mlp_out.1"]}, "sites: mlp_out.1: not among the encoders of demo:clip-p8 that are read; there are resid_post.0"),
        ({"acts": {"sites": ["embed@patch:mean", "resid_post.1@patch:mean"]}}, "embed@patch:mean has no place among the layers"),
        ({"reads": ["acts"]}, "found no neuron encoders"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_refused_at_planning(world: World, fields: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(make_spec(world.folder, **fields), world.lake.store)


def test_two_align_stages_whose_encoders_have_the_same_names_are_refused(world: World) -> None:
    data = make_spec(world.folder, align=ALIGN).model_dump(mode="json", exclude_unset=True)
    data["stages"]["again"] = {**data["stages"]["align"], "epochs": 3}
    data["stages"]["trace"]["reads"] = ["align", "again", "acts"]
    with pytest.raises(
        UsageError, match=r"trace\.reads: align:\w+ and align:\w+ .* both miclip in\+out of seed 0 at resid_post.0"
    ):
        plan_pipeline(PipelineSpec.model_validate(data, strict=False), world.lake.store)
    data["stages"]["again"]["seed"] = [1]
    assert len(trace_plans(PipelineSpec.model_validate(data, strict=False), world.lake)) == 4


def test_sites_of_two_kinds_are_two_traces_and_sites_choose(world: World) -> None:
    two = {"sites": ["resid_post.*@patch:mean", "resid_mid.*@patch:mean", "embedding"]}
    plans = trace_plans(
        make_spec(
            world.folder,
            two,
            sites=["resid_post.-1@patch:mean", "resid_mid.2@patch:mean", "resid_mid.1@patch:mean", "embedding"],
        ),
        world.lake,
    )
    assert {tuple(plan.stage.params["sites"]) for plan in plans} == {  # type: ignore[arg-type]
        ("resid_post.4@patch:mean", "embedding"),
        ("resid_mid.1@patch:mean", "resid_mid.2@patch:mean", "embedding"),
    }
    assert {tuple(plan.stage.params["layers"]) for plan in plans} == {(4, 5), (1, 2, 5)}  # type: ignore[arg-type]


def test_labels_that_name_no_class_are_an_error_that_says_what_there_is(world: World) -> None:
    failed = world.lake.run(make_spec(world.folder, align=ALIGN, labels_from="colour"))
    assert failed.exit_code == 1 and "BadLabels" in failed.failures[0] and "its colour is" in failed.failures[0]
