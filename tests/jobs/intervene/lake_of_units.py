"""A lake with lists of units that a test made up, what intervene makes of them, and the same by one slow loop.

The slow loop shares `make_edits` and `other_class` with the worker, so it checks only what is built on them: how images and
lists are cut into passes and shared, which units belong to which class, and counting. What an edit does to a unit is checked
by hand in tests/miclip_core/intervene/test_edits.py, and who is whose other class in test_sweep.py beside it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster.board import Board
from cluster.events import EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.inputs import StoreInputs
from cluster.planned import plan_pipeline
from cluster.run import run_stages
from jobs.classes import make_classifier
from jobs.intervene.plan import make_plans
from jobs.protocol import Cell, Known
from miclip_core.intervene.edits import Features, Neurons, make_edits
from miclip_core.intervene.sweep import other_class
from miclip_core.sae.sae import Sae
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.intervene import Change
from schemas.intervene_specs import InterveneSpec
from schemas.plans import Plan, Resources
from schemas.refs import ModelRef
from schemas.tables import TABLES
from tests.jobs.sae_features.lake_of_saes import make_sae, publish_sae
from tests.lakes import SHAPES, Lake, export, make_extract
from tests.made_up_descriptions import describe_stage, publish_scores

CLIP, HEAD = "demo:clip-p8", "demo:resnet-sup"
SITE = "resid_post.3"
IMAGES = 40
CLASSES: dict[str, Any] = {"names": list(SHAPES), "templates": ["a {}"]}
CHANGES = [{"beta": 0.0}, {"beta": 8.0}, {"op": "add", "beta": 3.0}]
ATTRIBUTES = ("shape", "texture", "label")
Row = dict[str, Any]


class World:
    """One store with an index, models and lists of units; copies of it start from there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lake = folder, Lake(folder / "lake")
        self.spec = make_extract(export(folder / "world", IMAGES), (CLIP, HEAD), outputs=["embeddings"], sites=[])
        report = self.lake.run(self.spec)
        assert report.exit_code == 0, report.failures
        self.known: Known = plan_pipeline(self.spec, self.lake.store).known

    def copy(self, name: str) -> World:
        """The same with a store of its own, in which nothing has been changed yet."""
        other = World.__new__(World)
        other.folder, other.spec, other.known = self.folder, self.spec, self.known
        other.lake = Lake(shutil.copytree(self.lake.uri, self.folder / name))
        return other

    # -------------------------------------------------------------- what is read

    def sae(self, seed: int = 0, site: str = f"{SITE}@patch") -> tuple[str, Sae]:
        """The digest and weights of an SAE that is now in the store."""
        sae = make_sae(seed)
        return publish_sae(self.lake, sae, site, seed).removeprefix("sae:"), sae

    def describe(
        self, variant: str, units: int, concepts: Sequence[str] = SHAPES, model: str = CLIP, draw: int = 0, **more: Any
    ) -> Plan:
        """A describe stage with scores at random; the first concept has no unit."""
        scores = np.random.default_rng(draw).standard_normal((units, len(concepts))).tolist()
        rows = [[None, *row[1:]] for row in scores]
        return publish_scores(self.lake.store, describe_stage(variant, concepts, model, **more), rows)

    # -------------------------------------------------------------- what is made of it

    def plans(self, *read: Plan, model: str = CLIP, **fields: Any) -> tuple[Plan, ...]:
        """Plans of an intervene cell that reads these; shapes are zero-shot classes if nothing else is said."""
        if model == CLIP:
            fields = {"classes": CLASSES, "labels_from": "shape", **fields}
        data = {"kind": "intervene", "reads": ["units"], "changes": CHANGES, "batch_size": 16, **fields}
        spec = InterveneSpec.model_validate(data, strict=False)
        cell = Cell(name="steer", spec=spec, model=model, images=self.spec.images, reads={"units": read})
        return make_plans(replace(cell, images=fields.get("images", self.spec.images)), self.known)

    def run(self, plans: Sequence[Plan]) -> Board:
        """Run what is left of them."""
        store, executor = self.lake.store, SerialExecutor(self.lake.uri)
        return run_stages([(plan, Resources()) for plan in plans], store, executor, EventLog(), StopFlag())

    def rows(self, plan: Plan, table: str = "intervention_eval") -> list[Row]:
        """What a stage published, without its digest."""
        found = [row for batch in StoreInputs(self.lake.store).table(plan.digest, table) for row in batch.to_pylist()]
        assert all(row.pop("stage") == plan.digest and list(row) == TABLES[table].schema.names[1:] for row in found)
        return found

    def effects(self, *read: Plan, **fields: Any) -> list[list[Row]]:
        """The rows of intervention_eval of every stage."""
        plans = self.plans(*read, **fields)
        board = self.run(plans)
        assert not board.failed, [outcome.message for outcome in board.failed.values()]
        return [self.rows(plan) for plan in plans]

    # -------------------------------------------------------------- the same, slowly

    def images(self) -> dict[str, Row]:
        """image_id -> path, label and attributes of the usable images."""
        index = next(iter(self.known.images.values())).stage
        rows = [row for batch in StoreInputs(self.lake.store).table(index, "images") for row in batch.to_pylist()]
        return {
            row["image_id"]: {"uri": row["uri"], "label": row["label"], **dict(row["attributes"])}
            for row in rows
            if row["duplicate_of"] is None
        }

    def lists(self, plan: Plan, names: Sequence[str], tau: int) -> dict[str, list[int]]:
        """Class -> the first tau units of its list."""
        rows = [row for b in StoreInputs(self.lake.store).table(plan.digest, "unit_concepts") for row in b.to_pylist()]
        best = sorted((row for row in rows if row["direction"] == "localise"), key=lambda row: row["rank"])
        return {name: [row["unit"] for row in best if row["concept"] == name][:tau] for name in names}

    def slowly(
        self, read: Plan, site: str, names: Sequence[str], labels_from: str, model: str = CLIP, sae: Sae | None = None,
        error: str = "keep", tau: int = 5, seed: int | None = 0, templates: Any = ("a {}",),
    ) -> list[Row]:  # fmt: skip
        """Counts of each change and class by whole passes, one class at a time, with our own edits."""
        loaded = get_model(model)
        kind = Neurons() if sae is None else Features(sae, error)  # type: ignore[arg-type]
        classifier = make_classifier(loaded, "head" if model == HEAD else names, templates)
        images = {name: row for name, row in self.images().items() if row.get(labels_from) in names}
        label = {name: names.index(row[labels_from]) for name, row in images.items()}
        other = {name: -1 if seed is None else other_class(seed, name, label[name], len(names)) for name in images}
        pixels = {name: get_pixels(model, row["uri"]) for name, row in images.items()}

        def right(some: Sequence[str], units: Sequence[int], change: Change | None) -> int:
            if not some:
                return 0
            units_BK = torch.tensor([list(units)] * len(some), dtype=torch.int64)
            edits = [] if change is None else make_edits(loaded, site, kind, units_BK, change)
            out = loaded.run(torch.stack([pixels[name] for name in some]), [classifier.site], edits)
            answers = classifier.scores(out[classifier.site]).argmax(1).tolist()
            return sum(answer == label[name] for answer, name in zip(answers, some, strict=True))

        one, found = Change(beta=1.0), []
        for c, units in enumerate(self.lists(read, names, tau).values()):
            own, off = ([name for name in images if which[name] == c] for which in (label, other))
            unchanged = {
                "class_id": c, "class_name": names[c], "units": units, "n": len(own), "offclass_n": len(off),
                "correct_clean": right(own, units, None), "correct_ref": right(own, units, one),
                "offclass_ref": right(off, units, one),
            }  # fmt: skip
            for change in (Change.model_validate(change) for change in CHANGES):
                edited = {"correct_edit": right(own, units, change), "offclass_edit": right(off, units, change)}
                found.append({"op": change.op, "beta": change.beta, **unchanged, **edited})
        return sorted(found, key=lambda row: CHANGES.index(as_written(row)))


def as_written(row: Row) -> Row:
    """The change of a row as a spec says it."""
    return {"beta": row["beta"]} if row["op"] == "scale" else {"op": row["op"], "beta": row["beta"]}


@cache
def get_model(name: str) -> VisionModel:
    return load_model(ModelRef.parse(name))


@cache
def get_pixels(model: str, uri: str) -> Tensor:
    return get_model(model).preprocess(Image.open(uri).convert("RGB"))


def only(rows: Sequence[Row], like: Sequence[Row]) -> list[Row]:
    """The columns that the rows of the slow loop have."""
    return [{name: row[name] for name in like[0]} for row in rows]


def moved(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """In how many rows a change made another number of answers right, on class and off."""
    return Counter(
        name for row in rows for name in ("correct", "offclass") if row[f"{name}_edit"] != row[f"{name}_ref"]
    )
