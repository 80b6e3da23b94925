"""V-Interp in shards: the patches that excite each unit most, their captions one bucket of units after another, then concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.between import bucket_units
from jobs.columns import as_ranges, read_index
from jobs.describe.captioners import caption, open_captioner
from jobs.describe.lists import list_parts
from jobs.describe.task import Task
from jobs.describe.units import UnitRows
from jobs.models import notes_of_cut, open_model
from jobs.protocol import Artifact, Part
from miclip_core.concepts.cosines import score_blocks
from miclip_core.dissect.caption import prompt_hash
from miclip_core.dissect.patches import PatchList, TopPatches
from miclip_core.dissect.v_interp import embed_captions, unit_embeddings
from miclip_core.sae.codes import Codes
from schemas.errors import BadLabels

IMAGES, CAPTIONS = "images", "captions"


def collector(task: Task) -> Exciting:
    """Round `map`: the most exciting patches of each unit among the images of a shard."""
    return Exciting(task)


def finish(task: Task) -> Iterator[Part | Artifact]:
    """Round `caption`: the captions of a bucket of units. Round `score`: lists, and the summary."""
    yield from _caption(task) if task.round_name == "caption" else _score(task)


class Exciting:
    """The best patches of each unit: 16 bytes for each that is kept."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._top = TopPatches(task.units, int(task.params["patches"]), task.device)
        self._images = 0

    def add(self, rows: UnitRows) -> None:
        """See the patches of these images."""
        values = rows.patches()
        if not isinstance(values, Codes):
            values = values.unflatten(0, (len(rows.images), -1))
        self._top.add(torch.from_numpy(rows.image_index).to(self._task.device), values)
        self._images += len(rows.images)

    def results(self) -> Iterator[Artifact]:
        """The patches of each bucket of units, and how many images there were."""
        key_UK, position_UK = self._top.state()
        buckets = _buckets(self._task)
        for bucket in range(buckets):
            units = slice(*bucket_units(bucket, buckets, self._task.units))
            yield self._task.pack(_name(bucket), {"key": key_UK[units], "position": position_UK[units].int()})
        yield self._task.pack(IMAGES, {"images": np.array(self._images)})


def _caption(task: Task) -> Iterator[Part | Artifact]:
    """Every different patch of the bucket's units is captioned once."""
    first, stop = bucket_units(task.shard.start, _buckets(task), task.units)
    top = TopPatches(stop - first, int(task.params["patches"]))
    for found in task.partials("map", _name(task.shard.start)):
        top.add_state(torch.from_numpy(found["key"]), torch.from_numpy(found["position"]).long())
    patches = top.distinct()
    captioner = open_captioner(task, patches)
    texts = caption(task, captioner, patches)
    yield task.pack(CAPTIONS, {"place": patches.place, "text": np.array(texts, np.str_)})
    asked = prompt_hash(captioner, str(task.params.get("prompt", "")))
    yield from _rows(task, first, top, patches, texts, captioner.name, asked)


def _rows(
    task: Task, first: int, top: TopPatches, patches: PatchList, texts: Sequence[str], captioner: str, asked: str
) -> Iterator[Part]:
    """The rows of unit_captions of a bucket."""
    unit, rank = (patches.place >= 0).nonzero(as_tuple=True)
    place, image = patches.place[unit, rank].tolist(), top.image_UK[unit, rank].numpy()
    index, images = task.plan.stage.inputs["labels"], patches.image.unique().tolist()
    ids = read_index(task.inputs, index, "image_id", as_ranges(images)) if images else {}
    first_patch = int(task.params["first_patch"])
    columns = {
        "unit": (first + unit).int().numpy(),
        "rank": rank.int().numpy(),
        "image_id": pa.array([ids[i] for i in image.tolist()], pa.string()),
        "image_index": image,
        "token": (first_patch + top.position_UK[unit, rank]).int().numpy(),
        "value": top.value_UK[unit, rank].numpy(),
        "text": pa.array([texts[i] for i in place], pa.string()),
        "captioner": captioner,
        "prompt_hash": asked,
    }
    yield from task.part("unit_captions", columns)


def _score(task: Task) -> Iterator[Part]:
    """Units are as near to concepts as the mean of their captions is, by the CLIP's text tower; empty ones do not count."""
    places, texts = _captions(task)
    if not texts:
        raise BadLabels(
            f"no patch of any unit of {task.params['site']} has a caption; give images with captions (a column `caption`), "
            "or a captioner: file:/folder of an image-text-to-text model"
        )
    place_UK = torch.cat(places)
    dead_U = (place_UK == _NO_PATCH).all(1)
    clip = open_model(task.clip, task.inputs, task.device, [])
    task.notes.extend(notes_of_cut(clip, texts))
    caption_QE = embed_captions(texts, clip.embed_text)
    units_UE = unit_embeddings(place_UK.clamp(min=-1), caption_QE)
    top = score_blocks(units_UE, task.texts_ME, task.tau, ~dead_U.to(units_UE.device))
    images = sum(int(found["images"]) for found in task.partials("map", IMAGES))
    yield from list_parts(task, top, dead_U, images)


_NO_PATCH = -2


def _captions(task: Task) -> tuple[list[Tensor], list[str]]:
    """Of each bucket which text each patch of its units has, -1 for the empty one; and all different texts."""
    number: dict[str, int] = {}
    places = []
    for found in task.partials("caption", CAPTIONS):
        texts = [number.setdefault(text, len(number)) if text else -1 for text in found["text"].tolist()]
        places.append(torch.tensor([*texts, _NO_PATCH])[torch.from_numpy(found["place"])])
    return places, list(number)


def _buckets(task: Task) -> int:
    return next(r.rows for r in task.plan.rounds if r.name == "caption")


def _name(bucket: int) -> str:
    return f"patches-{bucket:05d}"
