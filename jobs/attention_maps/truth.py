"""Which patches of an image show a concept, where that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.attention_maps.plan import grid_of
from jobs.masks import find_masks
from schemas.plans import Plan


class Truth:
    """What the patches of the images of one stage show; asks for the truth of one image after another."""

    def __init__(self, plan: Plan, uri: str) -> None:
        """uri: of any of the images."""
        self._grid = grid_of(plan)
        names = plan.stage.params["concepts"]
        assert isinstance(names, list)
        # in a view that is cut, patches are elsewhere
        self._masks = find_masks(uri, self._grid) if plan.stage.params["whole_view"] else None
        self._values: dict[int, list[tuple[str, int]]] = {}
        if self._masks is not None:
            for full, concept in self._masks.places([str(name) for name in names]).items():
                category, _, value = full.partition("=")
                number = self._masks.values(category).index(value)
                self._values.setdefault(concept, []).append((category, number))

    def masks(self, uri: str, concepts: Sequence[int]) -> list[Tensor | None]:
        """For each of these concepts the patches of an image that show it, bool [h, w]; None where that is not known."""
        if self._masks is None or not any(concept in self._values for concept in concepts):
            return [None] * len(concepts)
        classes = self._masks.classes([uri])
        return [self._mask(classes, concept) for concept in concepts]

    def _mask(self, classes: dict[str, np.ndarray], concept: int) -> Tensor | None:
        """Null for a concept that is no value of a category, or of one that patches do not tell."""
        known = [(category, value) for category, value in self._values.get(concept, ()) if category in classes]
        if not known:
            return None
        shown = np.any([classes[category][0] == value for category, value in known], axis=0)
        return torch.from_numpy(shown.reshape(self._grid))
