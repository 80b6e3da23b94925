"""The probe worker: activations and labels of all images are read at once, and what probes predict of each is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import softmax

from jobs.labels import read_classes
from jobs.pooled import read_pooled
from jobs.protocol import Inputs, Keep, Part, Setting
from jobs.rows import make_batch
from jobs.sae_tokens import planned_tokens
from jobs.threads import use_cpus
from miclip_core.evaluate.probe import NO_CLASS, Probed, cross_fit
from schemas.errors import BadLabels
from schemas.plans import Plan, Shard


class ProbeWorker:
    """Serves the probes of one site; `notes` says what people should know."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._plans = {plan.digest: plan for plan in setting.plans}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """The predictions of every image that has activations, and one row about the probe."""
        self.notes.clear()
        for stage in stages:
            try:
                yield from self._probe(self._plans[stage], inputs)
            except BadLabels as error:
                error.stages = (stage,)
                raise

    def _probe(self, plan: Plan, inputs: Inputs) -> Iterator[Part]:
        params: Any = plan.stage.params
        per_image, width = (int(str(plan.effort[name])) for name in ("per_image", "width"))
        images, a_ND = read_pooled(inputs, planned_tokens(plan), per_image, width, params["pool"])
        everything = [(0, params["rows"])]
        known = read_classes(inputs, plan.stage.inputs["labels"], params["classes"], params["labels_from"], everything)
        labels_N = np.array([known.get(index, NO_CLASS) for index, _ in images], np.int64)
        probed = cross_fit(a_ND.numpy(), labels_N, params["classes"], params["folds"], params["l2"], params["seed"])
        if unlabelled := int((labels_N == NO_CLASS).sum()):
            self.notes.append(
                f"{unlabelled} images of none of the classes are predicted by the probe of all labelled ones"
            )
        if probed.unfinished:
            self.notes.append(f"{probed.unfinished} probes stopped before their minimum; a larger l2 gets there sooner")
        yield Part(plan.digest, "predictions", _predictions(plan, images, probed))
        yield Part(plan.digest, "probe_summary", _summary(plan, labels_N, probed))


def _predictions(plan: Plan, images: Sequence[tuple[int, str]], probed: Probed) -> pa.RecordBatch:
    names: Any = plan.stage.params["classes"]
    k = min(int(str(plan.stage.params["k"])), len(names))
    # a stable sort puts the lower class number first among equal logits
    best_NK = np.argsort(-probed.logits_NC, axis=1, kind="stable")[:, :k]
    ids = best_NK.reshape(-1)
    columns = {
        "stage": plan.digest,
        "model": plan.stage.subject,
        "image_id": np.repeat(np.array([name for _, name in images], object), k),
        "image_index": np.repeat(np.array([index for index, _ in images], np.int64), k),
        "rank": np.tile(np.arange(k, dtype=np.int32), len(images)),
        "class_id": ids.astype(np.int32),
        "class_name": [names[i] for i in ids.tolist()],
        "score": np.take_along_axis(probed.logits_NC, best_NK, 1).reshape(-1).astype(np.float32),
        "probability": np.take_along_axis(softmax(probed.logits_NC, 1), best_NK, 1).reshape(-1).astype(np.float32),
    }
    return make_batch("predictions", columns)


def _summary(plan: Plan, labels_N: np.ndarray, probed: Probed) -> pa.RecordBatch:
    params: Any = plan.stage.params
    labelled = labels_N != NO_CLASS
    row = {
        "stage": plan.digest,
        "model": plan.stage.subject,
        "site": params["site"],
        "pool": params["pool"],
        "classes": len(params["classes"]),
        "images": len(labels_N),
        "images_labelled": int(labelled.sum()),
        "folds": params["folds"],
        "l2": params["l2"],
        "seed": params["seed"],
        "accuracy": float((probed.logits_NC.argmax(1) == labels_N)[labelled].mean()),
        "accuracy_majority": max(Counter(labels_N[labelled].tolist()).values()) / int(labelled.sum()),
    }
    return make_batch("probe_summary", {name: [value] for name, value in row.items()})


def open_worker(setting: Setting, inputs: Inputs) -> ProbeWorker:
    """Nothing is loaded before there is work."""
    return ProbeWorker(setting)
