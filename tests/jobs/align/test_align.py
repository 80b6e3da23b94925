"""Neuron encoders from published tables: what they learn from, resuming, caching, and specs that cannot be aligned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from cluster.inputs import StoreInputs
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from jobs.align.work import AlignWorker, open_worker
from jobs.encoders import WEIGHTS
from jobs.protocol import Artifact, Part, Setting
from jobs.rows import make_vectors
from miclip_core.align.encoder import NeuronEncoder, load_encoder
from miclip_core.align.order import batch_order
from miclip_core.align.trainer import AlignTrainer
from miclip_core.zoo.load import load_model
from miclip_core.zoo.reducers import Moments
from schemas.align import AlignSettings
from schemas.errors import BadAlignment, UsageError
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from schemas.refs import ModelRef
from tests.lakes import SHAPES, Lake, export

IMAGES, BATCH, EPOCHS = 96, 32, 2
SITE, CLIP = "resid_post.-2@patch", "demo:clip-rn"


class World:
    """Images, and one lake in which acts of the target are extracted once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = export(folder, IMAGES)
        self.lake = Lake(folder / "lake")

    def spec(self, acts: Mapping[str, Any] = {}, model: str = "demo:clip-p8", **align: Any) -> PipelineSpec:
        acts = {
            "kind": "extract", "sites": [SITE], "outputs": ["activations", "predictions"], "batch_size": 16,
            "classes": {"names": list(SHAPES), "templates": ["a {}"]}, **acts,
        }  # fmt: skip
        data = {
            "kind": "pipeline",
            "name": "test",
            "images": {"ref": f"folder:{self.images}/images"},
            "clip": CLIP,
            "matrix": {"model": [model]},
            "stages": {
                "acts": acts,
                "align": {"kind": "align", "reads": "acts", "batch": BATCH, "epochs": EPOCHS, **align},
            },
        }
        return PipelineSpec.model_validate(data, strict=False)

    def plans(self, kind: str = "align", **fields: Any) -> list[Plan]:
        return [
            plan
            for _, plan, _ in plan_pipeline(self.spec(**fields), self.lake.store).plans()
            if plan.stage.kind == kind
        ]

    def encoders(self, report: RunReport) -> dict[str, NeuronEncoder]:
        inputs = StoreInputs(self.lake.store)
        found = [state.digest for state in report.state.stages if state.kind == "align" and state.is_published]
        return {digest: load_encoder(inputs.published(digest, WEIGHTS)) for digest in found}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def report(world: World) -> RunReport:
    report = world.lake.run(world.spec())
    assert report.exit_code == 0, report.failures
    return report


@pytest.fixture(scope="module")
def blind(world: World) -> RunReport:
    """Of a model that tells no classes: it has neither a head nor a text tower."""
    report = world.lake.run(world.spec({"outputs": ["activations"]}, "demo:vit-dense", loss="in"))
    assert report.exit_code == 0, report.failures
    return report


def rows(world: World, report: RunReport, table: str) -> list[dict[str, Any]]:
    return world.lake.table(report, table).to_pylist()


class Joined(NamedTuple):
    """What an encoder learns from, one row per image, by image_index."""

    a: torch.Tensor
    yhat: torch.Tensor
    x: torch.Tensor


def join(world: World, report: RunReport, pool: str = "mean", without: Collection[int] = ()) -> Joined:
    """A plain loop over dictionaries by image id: the 64 patches pooled, the first prediction, the embedding."""
    acts: dict[str, list[list[float]]] = {}
    for row in rows(world, report, "activations"):
        acts.setdefault(row["image_id"], []).append(row["act"])
    index = {row["image_id"]: row["image_index"] for row in rows(world, report, "activations")}
    predicted = {r["image_id"]: r["class_id"] for r in rows(world, report, "predictions") if r["rank"] == 0}
    seen = {r["image_id"]: r["embedding"] for r in rows(world, report, "embeddings") if r["model"] == CLIP}
    order = [name for name in sorted(acts, key=index.__getitem__) if index[name] not in without]
    tokens = (np.array(acts[name], np.float32) for name in order)
    a = np.stack([of.mean(0) if pool == "mean" else of.max(0) for of in tokens])
    yhat = [predicted.get(name, -1) for name in order]
    return Joined(torch.from_numpy(a), torch.tensor(yhat), torch.tensor([seen[name] for name in order]))


def fit(examples: Joined, texts: torch.Tensor | None, **fields: Any) -> tuple[torch.Tensor, list[float]]:
    """W of the trainer on these images, and the loss of every step."""
    settings = AlignSettings(batch=BATCH, epochs=EPOCHS, **fields)
    a, yhat, x = examples
    trainer, moments = AlignTrainer(settings, a.shape[1], x.shape[1]), Moments()
    moments.add(a[:, None], np.zeros(1, np.int32), [""] * len(a))
    trainer.begin(moments)
    losses = []
    for epoch in range(EPOCHS):
        for batch in map(torch.from_numpy, batch_order(len(a), settings, epoch)):
            losses.append(trainer.step(a[batch], texts, None if texts is None else yhat[batch], x[batch]).loss)
    return trainer.finish().W, losses


def class_texts() -> torch.Tensor:
    return normalize(load_model(ModelRef.parse(CLIP)).embed_text(list(SHAPES)), dim=-1)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_an_encoder_is_what_the_trainer_makes_of_the_joined_tables(world: World, report: RunReport, pool: str) -> None:
    report = world.lake.run(world.spec(pool=pool))
    W, losses = fit(join(world, report, pool), class_texts())
    ((digest, encoder),) = world.encoders(report).items()
    torch.testing.assert_close(encoder.W, W, rtol=1e-4, atol=1e-5)
    metrics = sorted(rows(world, report, "align_metrics"), key=lambda row: row["step"])
    assert [row["loss"] for row in metrics] == pytest.approx(losses, rel=1e-4)
    (summary,) = rows(world, report, "alignments")
    assert (summary["encoder"], summary["images"], summary["classes"]) == (f"align:{digest}", IMAGES, len(SHAPES))
    assert (encoder.config.model, encoder.config.clip, encoder.config.pool) == ("demo:clip-p8", CLIP, pool)


def test_towards_images_alone_a_model_needs_no_classes(world: World, blind: RunReport) -> None:
    W, losses = fit(join(world, blind), None, w_out=0)
    (encoder,) = world.encoders(blind).values()
    torch.testing.assert_close(encoder.W, W, rtol=1e-4, atol=1e-5)
    assert [row["loss"] for row in rows(world, blind, "align_metrics")] == pytest.approx(losses, rel=1e-4)
    (summary,) = rows(world, blind, "alignments")
    assert (summary["classes"], summary["images"], summary["final_out"]) == (0, IMAGES, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": ["in", "out"]}, "found 0 stages of predictions of demo:vit-dense"),
        ({"loss": "in", "multi_positive": True}, "found 0 stages of predictions of demo:vit-dense"),
    ],
)
def test_a_loss_towards_classes_needs_predictions(world: World, blind: RunReport, fields: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(world.spec({"outputs": ["activations"]}, "demo:vit-dense", **fields), world.lake.store)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"kind": "describe", "methods": ["miclip"], "concepts": "classes"}, "demo:vit-dense has no head and no predictions"),
        ({"kind": "trace_errors"}, "miclip in of demo:vit-dense at resid_post.2@patch was trained without classes"),
    ],
)  # fmt: skip
def test_what_needs_the_classes_of_an_encoder_without_is_refused(
    world: World, blind: RunReport, stage: dict[str, Any], said: str
) -> None:
    data = world.spec({"outputs": ["activations"]}, "demo:vit-dense", loss="in").model_dump(mode="json")
    data["stages"]["more"] = {**stage, "reads": ["align"]}
    with pytest.raises(UsageError, match=said):
        plan_pipeline(PipelineSpec.model_validate(data, strict=False), world.lake.store)


def test_a_rerun_computes_nothing_and_one_variant_more_trains_only_that_one(world: World, report: RunReport) -> None:
    assert world.lake.run(world.spec()).exit_code == 0 and world.lake.count("shard_done") == 0
    more = world.lake.run(world.spec(loss=["in+out", "in", "out"]))
    assert world.lake.count("shard_done", "extract") == 0 and world.lake.count("shard_done", "align") == 1
    summaries = rows(world, more, "alignments")
    assert sorted((row["w_out"], row["w_in"]) for row in summaries) == [(0, 1), (1, 0), (1, 1)]
    by_loss = {(row["w_out"], row["w_in"]): row for row in summaries}
    assert by_loss[0, 1]["final_out"] is None and by_loss[1, 0]["final_in"] is None
    old, new = world.encoders(report), world.encoders(more)
    assert all(torch.equal(encoder.W, new[digest].W) for digest, encoder in old.items())


def test_many_variants_at_once_are_those_of_one_at_a_time(world: World, report: RunReport) -> None:
    together = world.encoders(world.lake.run(world.spec(seed=[1, 2], logit_scale=["learned", "clip"])))
    alone = Lake(world.folder / "alone")
    for seed in (1, 2):
        for scale in ("learned", "clip"):
            single = alone.run(world.spec(seed=[seed], logit_scale=[scale]))
            ((digest, encoder),) = World.encoders(World_of(world, alone), single).items()
            assert torch.equal(encoder.W, together[digest].W)
    assert len(together) == 4


def World_of(world: World, lake: Lake) -> World:
    other = World.__new__(World)
    other.folder, other.images, other.lake = world.folder, world.images, lake
    return other


class Memory:
    """Keeps states in memory; stops after `stop` of them, as a kill would."""

    def __init__(self, stop: int | None = None) -> None:
        self.states: list[tuple[int, dict[str, bytes]]] = []
        self.stop = stop

    def latest(self, stage: str) -> tuple[int, Mapping[str, bytes]] | None:
        return self.states[-1] if self.states else None

    def save(self, stage: str, step: int, pieces: Iterable[tuple[str, bytes]]) -> None:
        self.states.append((step, dict(pieces)))
        if len(self.states) == self.stop:
            raise KeyboardInterrupt


class Changed(StoreInputs):
    """What a store holds, without the rows of some images, and with some channels of activations set to 0."""

    def __init__(self, world: World, hidden: Mapping[str, Collection[int]] = {}, zero: Sequence[int] = ()) -> None:
        super().__init__(world.lake.store)
        self._hidden, self._zero = hidden, list(zero)

    def table(self, stage: str, table: str, columns: Any = None, between: Any = None) -> Iterator[pa.RecordBatch]:
        for batch in super().table(stage, table, columns, between):
            if hidden := self._hidden.get(table):
                batch = batch.filter(pa.array([index not in hidden for index in batch["image_index"].to_pylist()]))
            if table == "activations" and self._zero and len(batch):
                act = np.array(batch["act"].to_pylist(), np.float32)
                act[:, self._zero] = 0
                batch = batch.set_column(batch.schema.get_field_index("act"), "act", make_vectors(act))
            yield batch


def by_hand(plan: Plan, inputs: StoreInputs) -> tuple[NeuronEncoder, AlignWorker]:
    """The encoder that a worker makes of these tables."""
    worker = open_worker(Setting((plan,), Resources()), inputs)
    (shard,) = plan.all_shards()
    made = worker.process(shard, [plan.digest], inputs, Memory())
    (weights,) = (part.data for part in made if isinstance(part, Artifact))
    return load_encoder(weights), worker


def test_images_that_a_table_lacks_are_left_out_and_all_others_keep_their_own_rows(
    world: World, report: RunReport
) -> None:
    hidden = {"activations": {0, 50}, "predictions": {3, 40}, "embeddings": {1, 77}}
    (plan,) = world.plans()
    encoder, _ = by_hand(plan, Changed(world, hidden))
    W, _ = fit(join(world, report, without={0, 50, 3, 40, 1, 77}), class_texts())
    torch.testing.assert_close(encoder.W, W, rtol=1e-4, atol=1e-5)


def test_channels_that_are_0_on_every_image_are_named_if_they_are_most(world: World, report: RunReport) -> None:
    (plan,) = world.plans()
    _, worker = by_hand(plan, Changed(world, zero=range(7, 67)))
    (note,) = worker.notes
    assert "60 of 96 channels are 0 on every image, the first are 7, 8, 9, 10, 11;" in note
    assert "resid_post.3@patch" in note
    _, worker = by_hand(plan, Changed(world, zero=range(7, 47)))
    assert worker.notes == []


@pytest.mark.parametrize("settings", [{}, {"patience": 1, "epochs": 4, "standardise": True}])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits(
    world: World, report: RunReport, settings: Any
) -> None:
    world.lake.run(world.spec(keep_every=1, **settings))
    (plan,) = world.plans(keep_every=1, **settings)
    inputs = StoreInputs(world.lake.store)
    (shard,) = plan.all_shards()

    def results(keep: Memory) -> list[Part | Artifact]:
        return list(open_worker(Setting((plan,), Resources()), inputs).process(shard, [plan.digest], inputs, keep))

    whole_keep = Memory()
    whole = results(whole_keep)
    for stop in range(1, len(whole_keep.states) + 1):
        keep = Memory(stop)
        with pytest.raises(KeyboardInterrupt):
            results(keep)
        keep.stop = None
        for one, other in zip(results(keep), whole, strict=True):
            if isinstance(one, Artifact):
                assert isinstance(other, Artifact) and one.data == other.data
            else:
                assert isinstance(other, Part) and one.batch.equals(other.batch)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"acts": {"outputs": ["activations"]}}, "found 0 stages of predictions"),
        ({"acts": {"outputs": ["predictions"], "sites": []}}, "expected activations"),
        ({"sites": ["resid_post.1@patch"]}, "not among the stored activations"),
        ({"acts": {"classes": {"names": ["star", "ring", "star "], "templates": ["a {}"]}}}, "star is there twice among the classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_aligned_is_refused_at_planning(world: World, report: RunReport, fields: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_pipeline(world.spec(**fields), world.lake.store)


def test_predictions_that_two_extract_stages_share_are_one(world: World, report: RunReport) -> None:
    spec = world.spec()
    stages = spec.model_dump(mode="json")["stages"]
    stages["more"] = {**stages["acts"], "sites": ["resid_post.1@patch"]}
    stages["align"]["reads"] = ["acts", "more"]
    both = PipelineSpec.model_validate({**spec.model_dump(mode="json"), "stages": stages}, strict=False)
    plans = [plan for _, plan, _ in plan_pipeline(both, world.lake.store).plans() if plan.stage.kind == "align"]
    assert {plan.stage.params["site"] for plan in plans} == {"resid_post.3@patch", "resid_post.1@patch"}
    assert len({plan.stage.inputs["predictions"] for plan in plans}) == 1


def test_a_spec_without_a_clip_is_refused_with_an_example() -> None:
    data = {
        "kind": "pipeline", "name": "t", "images": {"ref": "folder:/x"}, "matrix": {"model": ["demo:clip-p8"]},
        "stages": {
            "acts": {"kind": "extract", "sites": [SITE], "outputs": ["activations", "predictions"], "classes": {"names": ["a", "b"]}},
            "align": {"kind": "align", "reads": "acts"},
        },
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"stages\.align: no CLIP whose space concepts are in; give clip:"):
        PipelineSpec.model_validate(data, strict=False)


def test_fewer_images_than_a_batch_are_an_error_that_names_both(world: World, report: RunReport) -> None:
    failed = world.lake.run(world.spec(batch=1000))
    assert failed.exit_code == 1 and BadAlignment.__name__ in failed.failures[0]
    assert "1000" in failed.failures[0] and str(IMAGES - 1)[:1] in failed.failures[0]
