"""The units of every class: the head of its list, as a describe stage published it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.described import read_lists
from jobs.protocol import Inputs
from schemas.plans import Plan


def read_units(inputs: Inputs, plan: Plan) -> Tensor:
    """The first tau units of each class, int64 [C, tau], best first; -1 where its list is shorter."""
    params: Any = plan.stage.params
    lists = read_lists(inputs, plan.stage.inputs["units"], "localise", params["tau"])
    class_of = {concept: c for c, concept in enumerate(params["concept_ids"])}
    classes = np.array([class_of.get(concept, -1) for concept in lists.concepts.tolist()], np.int64)
    units_CK = torch.full((len(class_of), params["tau"]), -1, dtype=torch.int64)
    known = classes >= 0
    units_CK[classes[known], lists.ranks[known]] = torch.from_numpy(lists.units[known])
    return units_CK
