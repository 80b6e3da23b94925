"""What a person writes to find latents of a generator, by pixels and by the units that it shares with other models."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT, Frozen
from schemas.cells import LISTED, Cell, Images, as_value_error
from schemas.concept_specs import UnitKind
from schemas.inversion import (
    AMOUNTS,
    MOST_STARTS,
    OF_CHOSEN,
    Betas,
    Edit,
    EditName,
    InversionSettings,
    Similarity,
    check_amount,
    check_weights,
)
from schemas.refs import ModelRef, Site

EditOrNone = Literal["none"] | EditName
STARTS = 4
PIXEL_WEIGHT = 100.0


class ChosenUnit(Frozen):
    """One unit of the generator: a channel of a site of it."""

    site: str
    unit: int = Field(ge=0)

    @field_validator("site")
    @classmethod
    def _site_parses(cls, value: str) -> str:
        return as_value_error(Site.parse, value)


class InvertSpec(Cell):
    """Latents of a generator for images that it did not draw, or whose maps are edited.

    An inversion starts from random latents and seeks the pixels of an image and, in the maps of the generator's units, what
    their best buddies in other models see in it. An edit changes the maps that the generator has at the latent of an image
    and seeks a latent with the changed maps: the image's latent is its own if this generator drew it, else the one that an
    invert stage found that is read.
    """

    kind: Annotated[Literal["invert"], RESULT] = "invert"
    generator: Annotated[str, RESULT]
    """A generator in the zoo of the mine_rosetta stage that is read."""
    images: Annotated[Images | None, RESULT] = None
    """Images to invert or edit."""
    members: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """Models whose best buddies guide; every other model of the zoo if left out."""
    units: Annotated[tuple[UnitKind, ...], LISTED, Field(min_length=1), RESULT] = ("neurons", "features")
    """Neurons of these models, features of their SAEs, or both."""
    pairs: Annotated[int | None, Field(ge=1), RESULT] = 100
    """Best buddies with the highest r above the null that guide; all of them if null."""
    k: Annotated[int, Field(ge=1), RESULT] = 1
    """Buddies are among the k nearest of each other, at most as many as were mined."""
    similarity: Annotated[Similarity, RESULT] = "global_var"
    reconstruction: Annotated[float | None, Field(ge=0), RESULT] = None
    """Weight of the mean squared difference of pixels in 0..1; 100 if left out, and 0 in edits."""
    activation: Annotated[float, Field(ge=0), RESULT] = 1.0
    """Weight of the mean similarity of maps; 0 leaves pixels alone to decide."""
    regulariser: Annotated[float, Field(ge=0), RESULT] = 0.1
    """Weight of the mean size of the latent."""
    norm: Annotated[Literal["l2", "l1"], RESULT] = "l2"
    towards: Annotated[Literal["zero", "start"] | None, RESULT] = None
    """Where that size is counted from; if left out from zero, and in edits that begin at a latent from there."""
    space: Annotated[Literal["z"], RESULT] = "z"
    """What is sought: the generator's own latent."""
    starts: Annotated[int | None, Field(ge=1, le=MOST_STARTS), RESULT] = None
    """Latents that each image starts from: 4 if left out. They are random; the first of an edit but copy_paste is that of the
    image, and the only one of `remove` and `strengthen`."""
    steps: Annotated[int, Field(ge=1, le=100_000), RESULT] = 500
    lr: Annotated[float, Field(gt=0, le=100), RESULT] = 0.1
    betas: Annotated[Betas, LISTED, RESULT] = (0.9, 0.999)
    ramp: Annotated[bool, RESULT] = True
    """Whether the rate rises over the first twentieth of the steps and falls over the last quarter."""
    tolerance: Annotated[float | None, Field(gt=0), RESULT] = None
    """A start ends early once its standardised maps move by less in a twentieth of the steps."""
    seed: Annotated[int, Field(ge=0, lt=2**32), RESULT] = 0
    """Draws the random latents."""
    edit: Annotated[tuple[EditOrNone, ...], LISTED, Field(min_length=1), RESULT] = ("none",)
    """What is done to the generator's maps; each is a stage of its own. `none` inverts."""
    amount: Annotated[float | None, RESULT] = None
    """Of the edits: magnification (2), share of the side (0.25), or what multiplies a map's rise above its minimum (2)."""
    chosen: Annotated[tuple[ChosenUnit, ...], LISTED, RESULT] = ()
    """The units of `remove` and `strengthen`; all other edits are of every paired unit."""
    samples_at_once: Annotated[int, Field(ge=1), EFFORT] = 64
    """Images times starts that are sought together."""
    batch_size: Annotated[int, Field(ge=1, le=65536), EFFORT] = 32
    """Images in a forward pass of the models that guide."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 8

    @field_validator("generator")
    @classmethod
    def _generator_parses(cls, value: str) -> str:
        return as_value_error(ModelRef.parse, value)

    @field_validator("members")
    @classmethod
    def _members_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(as_value_error(ModelRef.parse, text) for text in value)

    @field_validator("chosen")
    @classmethod
    def _chosen_once(cls, value: tuple[ChosenUnit, ...]) -> tuple[ChosenUnit, ...]:
        if len(set(value)) != len(value):
            raise ValueError("the same unit twice")
        return value

    @model_validator(mode="after")
    def _edits_have_what_they_need(self) -> InvertSpec:
        if not self.reads:
            raise ValueError("no units that models share; give reads: a mine_rosetta stage whose zoo has the generator")
        of_chosen = [edit for edit in self.edit if edit in OF_CHOSEN]
        if of_chosen and not self.chosen:
            raise ValueError(f"edit {of_chosen[0]} needs units; give chosen: [{{site: act.3, unit: 17}}], for example")
        if self.chosen and not of_chosen:
            raise ValueError(f"chosen units are for {' and '.join(OF_CHOSEN)}; leave chosen out")
        if self.amount is not None and "none" in self.edit:
            raise ValueError("an amount is of an edit; leave it out, or none out of edit")
        for edit in self.edit:
            if edit in OF_CHOSEN and self.starts not in (None, 1):
                raise ValueError(f"edit {edit} begins at the latent of the image alone; leave starts out")
            check_weights(self._reconstruction(edit), self.activation)
            if edit != "none" and self.amount is not None:
                check_amount(edit, self.amount)
        return self

    def _reconstruction(self, name: EditOrNone) -> float:
        usual = PIXEL_WEIGHT if name == "none" else 0.0
        return usual if self.reconstruction is None else self.reconstruction

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """Those that are inverted or edited."""
        return True

    def edit_of(self, name: EditOrNone) -> Edit | None:
        """One of its edits with the amount; None inverts."""
        if name == "none":
            return None
        return Edit(name=name, amount=AMOUNTS[name] if self.amount is None else self.amount)

    def starts_of(self, name: EditOrNone) -> int:
        """How many latents are sought for each image."""
        return self.starts or (1 if name in OF_CHOSEN else STARTS)

    def settings(self, name: EditOrNone) -> InversionSettings:
        """How latents are sought, in an inversion or in one of its edits."""
        return InversionSettings(
            similarity=self.similarity,
            reconstruction=self._reconstruction(name),
            activation=self.activation,
            regulariser=self.regulariser,
            norm=self.norm,
            towards=self.towards or ("start" if begins_at_latent(name) else "zero"),
            steps=self.steps,
            lr=self.lr,
            betas=self.betas,
            ramp=self.ramp,
            tolerance=self.tolerance,
        )


def begins_at_latent(name: EditOrNone) -> bool:
    """Whether the first start is the latent of the image; those of an inversion and of copy_paste are all random."""
    return name not in ("none", "copy_paste")
