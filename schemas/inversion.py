"""What an inversion or an edit is: frozen settings that travel in specs and digests."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from schemas.base import Frozen

Similarity = Literal["global_var", "image_cosine"]
"""How maps of paired units are compared: standardised by the data set, or also by their length on the one image."""

EditName = Literal["zoom", "shift_left", "shift_right", "shift_up", "shift_down", "copy_paste", "remove", "strengthen"]
AMOUNTS: dict[EditName, float] = {
    "zoom": 2.0,
    "shift_left": 0.25,
    "shift_right": 0.25,
    "shift_up": 0.25,
    "shift_down": 0.25,
    "copy_paste": 0.25,
    "remove": 0.0,
    "strengthen": 2.0,
}
"""Usual amounts: magnification, share of the side by which maps move, and what multiplies a map's rise above its minimum."""
Betas: TypeAlias = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
"""Decay of Adam's two moments."""
MOST_STARTS = 1024
"""Of one image: the random latents of an image and a start have a number of their own."""
OF_CHOSEN: tuple[EditName, ...] = ("remove", "strengthen")
"""Edits of chosen units; all others are of every paired unit."""


def check_amount(name: EditName, amount: float) -> None:
    """Refuse an amount with which an edit would do nothing, or nothing that can be understood. Raises ValueError."""
    if name == "zoom" and amount <= 1:
        raise ValueError(f"amount {amount:g}: a zoom magnifies; expected more than 1, such as 2")
    if (name.startswith("shift") or name == "copy_paste") and not 0 < amount < 1:
        raise ValueError(f"amount {amount:g}: expected a share of the side between 0 and 1, such as 0.25")
    if name == "remove" and amount != 0:
        raise ValueError(f"amount {amount:g}: remove leaves nothing; leave the amount out")
    if name == "strengthen" and amount <= 1:
        raise ValueError(f"amount {amount:g}: expected more than 1, which leaves a map as it is; such as 2")


def check_weights(reconstruction: float, activation: float) -> None:
    """Refuse weights with which nothing is sought. Raises ValueError."""
    if reconstruction == 0 and activation == 0:
        raise ValueError(
            "reconstruction and activation are both 0, so nothing is sought; give one of them a weight above 0"
        )


class Edit(Frozen):
    """What is done to the maps of a generator's units before a latent is sought that has them."""

    name: EditName
    amount: float

    @model_validator(mode="after")
    def _the_amount_changes_something(self) -> Edit:
        check_amount(self.name, self.amount)
        return self

    def __str__(self) -> str:
        return self.name if self.name == "remove" else f"{self.name} {self.amount:g}"


class InversionSettings(Frozen):
    """Everything that decides which latent is found, beside the generator, the start and what is sought."""

    similarity: Similarity = "global_var"
    reconstruction: float = Field(default=100.0, ge=0)
    """Weight of the mean squared difference of pixels in 0..1."""
    activation: float = Field(default=1.0, ge=0)
    """Weight of the mean similarity of the maps of paired units, which is to be large."""
    regulariser: float = Field(default=0.1, ge=0)
    """Weight of the mean size of the latent."""
    norm: Literal["l2", "l1"] = "l2"
    """What its size is: squares, or absolute values."""
    towards: Literal["zero", "start"] = "zero"
    """Where that size is counted from; the start of an edit is the latent of the image."""
    steps: int = Field(default=500, ge=1)
    lr: float = Field(default=0.1, gt=0, le=100)
    """Rate of Adam, at the top of the ramp."""
    betas: Betas = (0.9, 0.999)
    ramp: bool = True
    """Whether the rate rises over the first twentieth of the steps and falls over the last quarter."""
    tolerance: float | None = Field(default=None, gt=0)
    """A start ends early once its standardised maps move by less in a twentieth of the steps; never if none is given."""

    @model_validator(mode="after")
    def _something_is_sought(self) -> InversionSettings:
        check_weights(self.reconstruction, self.activation)
        return self
