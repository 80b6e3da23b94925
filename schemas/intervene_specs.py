"""What a person writes about changing units inside a model: interventions on its answers, and attention maps of features."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, Classes, ForwardCell, as_tuple
from schemas.intervene import Change, ErrorMode, MapActivation


class InterveneSpec(ForwardCell):
    """What becomes of the accuracy of each class when the units that were found for it are changed.

    Units are the first `tau` of each class's list in every describe stage that it reads; methods at one site share all
    passes. Labels come with the images.
    """

    kind: Annotated[Literal["intervene"], RESULT] = "intervene"
    changes: Annotated[tuple[Change, ...], Field(min_length=1), RESULT] = (Change(beta=2.0), Change(beta=0.0))
    error: Annotated[tuple[ErrorMode, ...], LISTED, Field(min_length=1), RESULT] = ("keep",)
    """What of a feature's activation the SAE does not reconstruct: kept, or dropped and measured against the reconstruction."""
    positions: Annotated[Literal["all", "patch", "cls"] | None, RESULT] = None
    """Tokens at which units are changed: if left out, all for neurons and those of its SAE for a feature; a map is changed everywhere."""
    tau: Annotated[int | None, Field(ge=1), RESULT] = None
    """Units of a class; all that its list has if left out."""
    classes: Annotated[Classes | None, RESULT] = None
    """Zero-shot classes; those of the model's own head if left out. Each must be among the concepts described."""
    labels_from: Annotated[str, RESULT] = "label"
    """What names the class of an image: its label, or one of its attributes."""
    off_class_seed: Annotated[int | None, RESULT] = 0
    """Draws for every image one other class, whose units are changed as well; none if null."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 1024

    @field_validator("changes", mode="before")
    @classmethod
    def _one_change_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, (dict, Change)) else as_tuple(value)

    @field_validator("changes")
    @classmethod
    def _changes_are_finite_and_differ(cls, value: tuple[Change, ...]) -> tuple[Change, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"the same change twice: {', '.join(map(str, value))}")
        return value

    @model_validator(mode="after")
    def _units_come_from_descriptions(self) -> InterveneSpec:
        if not self.reads:
            raise ValueError("no units to change; give reads: a describe stage")
        if self.sites:
            raise ValueError("sites are those of the units; leave sites out")
        return self

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """The images whose classes are told."""
        return True


class AttentionMapsSpec(ForwardCell):
    """Where the class token looks when only the features that were found for a concept are left in the patches."""

    kind: Annotated[Literal["attention_maps"], RESULT] = "attention_maps"
    concepts: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """Names among those described; all of which there are images if left out."""
    labels_from: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """Columns that say which images show a concept: label, attributes; all if left out, or those of the demo world's values."""
    images_per_concept: Annotated[int, Field(ge=1), RESULT] = 6
    """The first images of the index that show it."""
    tau: Annotated[int | None, Field(ge=1), RESULT] = None
    """Features of a concept; all that its list has if left out."""
    activation: Annotated[MapActivation, RESULT] = "linear"
    """What weighs a feature at a patch: the encoder before its activation function, or the SAE's own code."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 1024

    @model_validator(mode="after")
    def _features_come_from_descriptions(self) -> AttentionMapsSpec:
        if not self.reads:
            raise ValueError("no features; give reads: a describe stage that reads an SAE")
        if self.sites:
            raise ValueError("sites are those of the SAEs; leave sites out")
        return self

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """The images that are looked at."""
        return True
