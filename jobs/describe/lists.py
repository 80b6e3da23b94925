"""What every method publishes: the best concepts of each unit, the best units of each concept, and how many there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.describe.rows import make_parts
from jobs.describe.task import Task
from jobs.protocol import Part
from miclip_core.concepts.top import NONE, TopLists, TopScores
from schemas.base import canonical_json
from schemas.errors import BadSpec


def start_lists(task: Task, dead_U: Tensor) -> TopScores:
    """Empty lists of a stage, in which the dead units bool [U] are found for no concept.

    Raises:
        BadSpec: there are fewer living units than a list is to hold.
    """
    tau, living = task.tau, int((~dead_U).sum())
    if tau > living:
        raise BadSpec(
            f"tau is {tau}, but of {task.units} {task.params['unit_kind']} of {task.params['site']} only {living} are ever "
            "active; lower tau"
        )
    return TopScores(task.units, len(task.concepts), tau, ~dead_U.cpu(), task.device)


def list_parts(task: Task, top: TopScores, dead_U: Tensor, images: int, unit_mode: str | None = None) -> Iterator[Part]:
    """The rows of unit_concepts in both directions, and the row of descriptions.

    images: how many units were seen on. unit_mode: which vector stands for a unit, of methods that have one.
    """
    dead = dead_U.cpu().numpy().astype(bool)
    names = np.array(task.concepts, dtype=object)
    described = _rows(top.concepts_of_unit, "unit", "concept_id")
    located = _rows(top.units_of_concept, "concept_id", "unit")
    for direction, rows in (("describe", described), ("localise", located)):
        columns = {
            "direction": direction,
            **rows,
            "concept": pa.array(names[rows["concept_id"]].tolist(), pa.string()),
            "is_dead": dead[rows["unit"]],
        }
        yield from make_parts(task.plan, "unit_concepts", columns)
    params, inputs = task.params, task.plan.stage.inputs
    templates = canonical_json(params["templates"]) if "templates" in params else None
    row = {
        "similarity": params.get("similarity"),
        "unit_mode": unit_mode,
        "encoder": f"align:{inputs['encoder']}" if "encoder" in inputs else None,
        "clip": params.get("clip"),
        "templates": templates,
        "pool": params.get("pool"),
        "tau": task.tau,
        "concepts": len(task.concepts),
        "units": task.units,
        "units_dead": int(dead.sum()),
        "units_described": len(np.unique(described["unit"])),
        "concepts_located": len(np.unique(located["concept_id"])),
        "images": images,
    }
    yield from make_parts(task.plan, "descriptions", {name: [value] for name, value in row.items()})


def _rows(lists: TopLists, row: str, column: str) -> dict[str, np.ndarray]:
    """Lists as columns, best first, without the places that are empty."""
    ids, scores = lists.ids_NK.cpu(), lists.scores_NK.cpu()
    number, rank = torch.nonzero(ids != NONE, as_tuple=True)
    return {
        row: number.int().numpy(),
        column: ids[number, rank].int().numpy(),
        "rank": rank.int().numpy(),
        "score": scores[number, rank].numpy(),
    }
