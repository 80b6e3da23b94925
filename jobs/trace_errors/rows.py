"""Rows of the tables of traces, as Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.described import about
from jobs.protocol import Part
from jobs.rows import make_batch
from miclip_core.evaluate.trace import NONE, TraceCounts, Traces
from schemas.plans import Plan

ROLES = ("truth", "wrong")


def layer_rows(
    plan: Plan, images: Sequence[tuple[int, str]], labels_B2: np.ndarray, cosines_BL2: np.ndarray
) -> Iterator[Part]:
    """Rows of layer_trace: of each image, each layer and the truth and the wrong label, where their cosine is known."""
    params: Any = plan.stage.params
    names = np.array(params["classes"], object)
    place, layer, role = np.nonzero(~np.isnan(cosines_BL2))
    if not len(place):
        return
    label = labels_B2[place, role]
    columns = {
        **about(plan.stage),
        **_images(images, place),
        "layer": np.array(params["layers"], np.int32)[layer],
        "site": pa.array(np.array(params["sites"], object)[layer], pa.string()),
        "label_role": pa.array(np.array(ROLES, object)[role], pa.string()),
        "label_id": label.astype(np.int32),
        "label": pa.array(names[label], pa.string()),
        "cosine": cosines_BL2[place, layer, role],
    }
    yield Part(plan.digest, "layer_trace", make_batch("layer_trace", columns))


def image_rows(plan: Plan, images: Sequence[tuple[int, str]], labels_B3: np.ndarray, traces: Traces) -> Iterator[Part]:
    """Rows of error_traces, one of each image. labels: truth, wrong and predicted [B, 3]."""
    if not images:
        return
    truth, wrong, predicted = labels_B3.T
    columns = {
        **about(plan.stage),
        **_images(images, np.arange(len(images))),
        **_class(plan, "truth", truth),
        **_class(plan, "predicted", predicted),
        **_class(plan, "wrong", wrong),
        "is_error": truth != predicted,
        "peak_layer": _known(traces.peak),
        "max_lead": pa.array(traces.max_lead, pa.float32(), from_pandas=True),
        "cross_layer": _known(traces.cross),
        "persistent": traces.persistent,
    }
    yield Part(plan.digest, "error_traces", make_batch("error_traces", columns))


def summary_rows(plan: Plan, wrong: TraceCounts, right: TraceCounts) -> Part:
    """Rows of trace_summary: all wrong images, all right ones."""
    both = (wrong, right)
    columns = {
        **about(plan.stage),
        "images_are": ["wrong", "right"],
        **{name: [getattr(counts, name) for counts in both] for name in COUNTED},
    }
    return Part(plan.digest, "trace_summary", make_batch("trace_summary", columns))


COUNTED = (
    "images", "unknown", "never_led", "crossed", "persistent", "crossed_share", "layers", "peaks", "crossings",
)  # fmt: skip


def _images(images: Sequence[tuple[int, str]], place: np.ndarray) -> dict[str, Any]:
    index, ids = zip(*images, strict=True)
    return {
        "image_id": pa.array(ids, pa.string()).take(pa.array(place)),
        "image_index": np.array(index, np.int64)[place],
    }


def _class(plan: Plan, role: str, label: np.ndarray) -> dict[str, Any]:
    """Number and name of classes, null where there is none."""
    names: Any = plan.stage.params["classes"]
    return {f"{role}_id": _known(label), role: [None if i == NONE else names[i] for i in label.tolist()]}


def _known(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.int32), mask=values == NONE)
