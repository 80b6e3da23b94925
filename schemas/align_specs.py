"""What a person writes about alignment: neuron encoders that put the activations of models into the space of a CLIP."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.align import AlignSettings
from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, OfAClip, OverModels, SiteTexts, Templates

Loss = Literal["in+out", "in", "out"]
WEIGHTS: dict[Loss, tuple[float, float]] = {"in+out": (1.0, 1.0), "in": (0.0, 1.0), "out": (1.0, 0.0)}
"""Loss variant -> weights of L_out and L_in."""


def loss_name(w_out: float, w_in: float) -> str:
    """The variant with these weights, or `none` where there is no such variant."""
    return next((name for name, weights in WEIGHTS.items() if weights == (w_out, w_in)), "none")


LogitScale = Annotated[float, Field(gt=0)] | Literal["learned", "clip"]


class AlignSpec(OfAClip, OverModels):
    """Neuron encoders of every combination of loss, logit scale, rate and seed, per model and site.

    It reads an extract stage with activations and predictions, or predictions of a probe stage; `sites` may choose among
    its sites. Image embeddings of the CLIP over the same images and the texts of the predicted classes are stages that are
    planned with it. Loss `in` without multi_positive needs no predictions, as of a model that tells no classes.
    """

    kind: Annotated[Literal["align"], RESULT] = "align"
    sites: Annotated[SiteTexts, RESULT] = ()
    pool: Annotated[Literal["mean", "max"], RESULT] = "mean"
    """How the positions of a site become one vector per image; a site such as `resid_post.-1@cls` has only one."""
    templates: Annotated[Templates, RESULT] = ("{}",)
    """Prompts around the names of the predicted classes; the bare name if left out."""
    loss: Annotated[tuple[Loss, ...], LISTED, Field(min_length=1), RESULT] = ("in+out",)
    logit_scale: Annotated[tuple[LogitScale, ...], LISTED, Field(min_length=1), RESULT] = (1.0,)
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], LISTED, Field(min_length=1), RESULT] = (1e-4,)
    seed: Annotated[tuple[int, ...], LISTED, Field(min_length=1), RESULT] = (0,)
    bias: Annotated[bool, RESULT] = False
    standardise: Annotated[bool, RESULT] = False
    """Whether every channel is first brought to mean 0 and standard deviation 1."""
    multi_positive: Annotated[bool, RESULT] = False
    betas: Annotated[tuple[float, float], LISTED, RESULT] = (0.9, 0.999)
    batch: Annotated[int, Field(ge=2), RESULT] = 1024
    epochs: Annotated[int, Field(ge=1), RESULT] = 1
    drop_last: Annotated[bool, RESULT] = False
    patience: Annotated[int | None, Field(ge=1), RESULT] = None
    """Epochs without a lower loss on held-out images after which training stops."""
    holdout: Annotated[float, Field(gt=0, lt=1), RESULT] = 0.1
    """Share of the images that are held out where there is a patience."""
    keep_every: Annotated[int, Field(ge=1), EFFORT] = 1000
    """Steps between resumable states."""

    @model_validator(mode="after")
    def _every_encoder_is_possible(self) -> AlignSpec:
        if not self.reads:
            raise ValueError("no activations; give reads: an extract stage with outputs [activations, predictions]")
        self.encoders()
        return self

    def encoders(self) -> tuple[AlignSettings, ...]:
        """Every encoder of the sweep, without repeats.

        Raises:
            ValueError: an impossible combination.
        """
        grid = product(self.loss, self.logit_scale, self.lr, self.seed)
        return tuple(dict.fromkeys(self._encoder(*point) for point in grid))

    def _encoder(self, loss: Loss, logit_scale: LogitScale, lr: float, seed: int) -> AlignSettings:
        w_out, w_in = WEIGHTS[loss]
        return AlignSettings(
            w_out=w_out, w_in=w_in, logit_scale=logit_scale, lr=lr, seed=seed, bias=self.bias, standardise=self.standardise,
            multi_positive=self.multi_positive, betas=self.betas, batch=self.batch, epochs=self.epochs,
            drop_last=self.drop_last, patience=self.patience, holdout=self.holdout,
        )  # fmt: skip
