"""What a person writes about probes: classes told from stored activations, for a model that tells none itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import RESULT
from schemas.cells import LISTED, OverModels, SiteTexts


class ProbeSpec(OverModels):
    """A linear probe on one site, per model; what it predicts of each image is a stage of `predictions` as extract's are.

    It reads an extract stage with activations, and has every labelled image predicted by a probe that did not see it.
    """

    kind: Annotated[Literal["probe"], RESULT] = "probe"
    sites: Annotated[SiteTexts, RESULT] = ()
    """The one site that is probed; it may be left out if activations of one site alone are read."""
    pool: Annotated[Literal["mean", "max"], RESULT] = "mean"
    """How the positions of a site become one vector per image; a site such as `resid_post.-1@cls` has only one."""
    labels_from: Annotated[str, RESULT] = "label"
    """What names the true class of an image: its label, or one of its attributes."""
    classes: Annotated[tuple[str, ...], LISTED, Field(min_length=2), RESULT]
    """Names of the classes as labels have them, in the order of their class_id."""
    l2: Annotated[float, Field(gt=0), RESULT] = 1e-3
    """The loss is the mean cross-entropy plus l2 / 2 times the sum of squared weights on standardised channels."""
    folds: Annotated[int, Field(ge=2), RESULT] = 5
    """Parts of the labelled images; each is predicted by the probe of all others."""
    predictions_k: Annotated[int, Field(ge=1, le=1000), RESULT] = 5
    """Most probable classes of an image that are stored."""
    seed: Annotated[int, RESULT] = 0
    """Which images are in which fold."""

    @field_validator("classes")
    @classmethod
    def _classes_can_be_told_apart(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"classes {', '.join(twice[:5])} are there twice; give each once")
        if "" in names:
            raise ValueError("a class without a name; every class needs the name that labels have")
        return names

    @model_validator(mode="after")
    def _activations_are_read(self) -> ProbeSpec:
        if not self.reads:
            raise ValueError("no activations; give reads: an extract stage with output activations")
        return self
