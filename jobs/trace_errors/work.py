"""The trace_errors worker: activations of all layers are read once, and embedded by the encoders of every trace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.columns import read_texts
from jobs.encoders import WEIGHTS
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.threads import use_cpus
from jobs.tokens.blocks import row_blocks
from jobs.tokens.sources import TableSource, TokenRows
from jobs.trace_errors.pairs import Pairs, read_pairs
from jobs.trace_errors.plan import READ_IMAGES, layers_of, numbers_per_image, per_image
from jobs.trace_errors.rows import image_rows, layer_rows, summary_rows
from miclip_core.align.encoder import NeuronEncoder, load_encoder
from miclip_core.dissect.pool import pool_rows
from miclip_core.evaluate.trace import TraceCounts, count_traces, label_similarity, trace
from schemas.plans import Plan, Shard

COUNTS = "counts"
"""Of the wrong and of the right images of a shard, as JSON."""
Images = list[tuple[int, str]]
"""(image_index, image_id)"""


class TraceErrorsWorker:
    """Serves the traces over the layers of one model; `notes` says how many images are left out."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._device = setting.device
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._pairs: Pairs | None = None
        self._tracers: dict[str, Tracer] = {}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """The traces of a range of images, or the counts of all."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        if plans[0].rounds[shard.round].name == "map":
            yield from self._map(plans, shard, inputs)
        else:
            for plan in plans:
                yield summary_rows(plan, *_add_up(plan, inputs))

    def _map(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[Part | Artifact]:
        pairs = self._get_pairs(plans[0], inputs)
        images: Images = []
        cosines: list[list[np.ndarray]] = [[] for _ in plans]
        for block in _blocks(plans[0], shard, inputs, pairs):
            images += block.images
            labels_B2 = pairs.labels(block.images)[:, :2]
            for found, plan in zip(cosines, plans, strict=True):
                found.append(self._get_tracer(plan, inputs).cosines(block.a_BD, labels_B2))
        self._note(pairs, str(plans[0].stage.params["labels_from"]), shard, len(images))
        for found, plan in zip(cosines, plans, strict=True):
            layers = len(layers_of(plan))
            cosines_BL2 = np.concatenate([np.empty((0, layers, 2), np.float32), *found])
            yield from _results(plan, images, pairs.labels(images), cosines_BL2)

    def _note(self, pairs: Pairs, labels_from: str, shard: Shard, traced: int) -> None:
        if pairs.unlabelled:
            self.notes.append(
                f"{pairs.unlabelled} images with a prediction are left out: their {labels_from} is not known or no class"
            )
        expected = int(((pairs.image_index >= shard.start) & (pairs.image_index < shard.stop)).sum())
        if expected > traced:
            self.notes.append(f"{expected - traced} images are left out: they have no activation at some layer")

    def _get_pairs(self, plan: Plan, inputs: Inputs) -> Pairs:
        if self._pairs is None:
            self._pairs = read_pairs(plan, inputs)
        return self._pairs

    def _get_tracer(self, plan: Plan, inputs: Inputs) -> Tracer:
        if plan.digest not in self._tracers:
            self._tracers[plan.digest] = _load(plan, inputs, self._device)
        return self._tracers[plan.digest]


@dataclass(frozen=True, eq=False)
class Block:
    """Images that have a true class and activations at every layer: one vector per layer number, [B, D of the layer]."""

    images: Images
    a_BD: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Tracer:
    """The encoders of one trace by the number of their layer, ascending, and the texts of the classes [C, E]."""

    encoders: dict[int, NeuronEncoder]
    texts_CE: Tensor

    def cosines(self, a_BD: dict[int, Tensor], labels_B2: np.ndarray) -> np.ndarray:
        """Of each image at each layer with its true and its wrong class, float32 [B, layers, 2]; NaN where not known."""
        labels = torch.from_numpy(labels_B2)
        found = []
        for number, encoder in self.encoders.items():
            n_BE = encoder.embed(a_BD[number].to(self.texts_CE.device))
            found.append(torch.stack([label_similarity(n_BE, self.texts_CE, labels[:, role]) for role in (0, 1)], 1))
        return torch.stack(found, 1).cpu().numpy()


def _load(plan: Plan, inputs: Inputs, device: str) -> Tracer:
    stages = {number: plan.stage.inputs[f"encoder.{number}"] for number in layers_of(plan)}
    encoders = {number: load_encoder(inputs.published(stage, WEIGHTS)).to(device) for number, stage in stages.items()}
    return Tracer(encoders, torch.from_numpy(read_texts(inputs, plan.stage.inputs["texts"])).to(device))


def _blocks(plan: Plan, shard: Shard, inputs: Inputs, pairs: Pairs) -> Iterator[Block]:
    """READ_IMAGES rows of the index after another, those that can be traced."""
    layers = layers_of(plan)
    source = TableSource(inputs, layers.values())
    sites = list(dict.fromkeys(tokens.site for tokens in layers.values()))
    for ranges in row_blocks(shard, READ_IMAGES, numbers_per_image(plan)):
        for found in source.read(ranges, sites):
            if block := _block(plan, found, pairs):
                yield block


def _block(plan: Plan, found: Mapping[str, TokenRows], pairs: Pairs) -> Block | None:
    everywhere = set.intersection(*({index for index, _ in rows.images} for rows in found.values()))
    traced = everywhere & pairs.known
    if not traced:
        return None
    a_BD: dict[int, Tensor] = {}
    for number, tokens in layers_of(plan).items():
        rows = found[tokens.site]
        pooled_BD = pool_rows(rows.values, per_image(plan)[number], plan.stage.params["pool"])  # type: ignore[arg-type]
        a_BD[number] = pooled_BD[[i for i, (index, _) in enumerate(rows.images) if index in traced]]
    return Block([image for image in rows.images if image[0] in traced], a_BD)


def _results(plan: Plan, images: Images, labels_B3: np.ndarray, cosines_BL2: np.ndarray) -> Iterator[Part | Artifact]:
    numbers = list(layers_of(plan))
    traces = trace(cosines_BL2[..., 0], cosines_BL2[..., 1], numbers)
    is_error = labels_B3[:, 0] != labels_B3[:, 2]
    yield from layer_rows(plan, images, labels_B3[:, :2], cosines_BL2)
    yield from image_rows(plan, images, labels_B3, traces)
    counts = [asdict(count_traces(traces, which, numbers)) for which in (is_error, ~is_error)]
    yield Artifact(plan.digest, COUNTS, json.dumps(counts).encode())


def _add_up(plan: Plan, inputs: Inputs) -> tuple[TraceCounts, TraceCounts]:
    """The counts of all shards, of the wrong and of the right images."""
    shards = [json.loads(inputs.artifact(plan.digest, shard.number, COUNTS)) for shard in plan.shards(0)]
    wrong, right = ([_counts(shard[group]) for shard in shards] for group in (0, 1))
    return sum(wrong[1:], wrong[0]), sum(right[1:], right[0])


def _counts(state: Mapping[str, Any]) -> TraceCounts:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in state.items()}
    return TraceCounts(**values)


def open_worker(setting: Setting, inputs: Inputs) -> TraceErrorsWorker:
    """Nothing is loaded before a shard needs it."""
    return TraceErrorsWorker(setting, inputs)
