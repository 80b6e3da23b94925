"""What a person writes about the explorer: which units get a page, and how much is on it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import OverModels

UNIT_KINDS = frozenset({"sae_features", "extract"})
"""Kinds of stages whose units get a page."""


class ExplorerSpec(OverModels):
    """Pages for the features of the sae_features stages that it reads, and for the neurons of extract stages with top images.

    Whatever else it reads adds what it knows of them: names (describe), whether these are right (evaluate), explanations and
    their scores (explain, score_explanations), a map (map_explanations), units of other models (mine_rosetta).
    """

    kind: Annotated[Literal["explorer"], RESULT] = "explorer"
    top: Annotated[int, Field(ge=1, le=64), RESULT] = 12
    """Images on a page, of those that the stage of the units keeps."""
    names: Annotated[int, Field(ge=1, le=20), RESULT] = 3
    """Concepts by each method."""
    partners: Annotated[int, Field(ge=1, le=50), RESULT] = 3
    """Units of each other model."""
    shard_units: Annotated[int, Field(ge=1), EFFORT] = 2048

    @property
    def without_others(self) -> bool:
        """Pages of a model do not wait for units of models that are not there."""
        return True

    def lacks(self, kinds_read: Collection[str]) -> str | None:
        """Units, without which there is no page."""
        if UNIT_KINDS.isdisjoint(kinds_read):
            return "no sae_features stage and no extract stage with top_images, whose units get a page; read one"
        return None

    @model_validator(mode="after")
    def _units_are_read(self) -> ExplorerSpec:
        if not self.reads:
            raise ValueError("no units; give reads: a sae_features stage, or an extract stage with output top_images")
        return self
