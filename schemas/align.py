"""What one neuron encoder is and how it is trained: frozen settings that travel in specs, digests and weight files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Frozen

UnitMode = Literal["direction", "decoded", "decoded_mean"]
LEARNED_SCALE = (1 / 0.07, 100.0)
"""Where a learned logit scale starts and what it never exceeds (Radford et al. 2021, section 2.5)."""


class AlignSettings(Frozen):
    """Everything that decides the weights of one neuron encoder beside the activations and embeddings that it sees."""

    w_out: float = Field(default=1.0, ge=0)
    """Weight of L_out, which pulls an activation to the text of the class that the model predicts."""
    w_in: float = Field(default=1.0, ge=0)
    """Weight of L_in, which pulls an activation to the CLIP embedding of its image."""
    logit_scale: Annotated[float, Field(gt=0)] | Literal["learned", "clip"] = 1.0
    """What multiplies cosines: a number (1: MICLIP, Algorithm 1), that of the CLIP, or one that is learned from 1 / 0.07 up to 100."""
    bias: bool = False
    """Whether the map has a constant; units are embedded without it."""
    standardise: bool = False
    """Whether every activation channel is first brought to mean 0 and standard deviation 1."""
    multi_positive: bool = False
    """Whether all images of a batch with one predicted class share the target of L_in; without, they are its negatives.

    L_out is the same either way, because images of one class share one text.
    """
    lr: float = Field(default=1e-4, gt=0)
    """Rate of Adam, the same in all steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of Adam's two moments."""
    batch: int = Field(default=1024, ge=2)
    """Images in a batch, which are each other's negatives."""
    epochs: int = Field(default=1, ge=1)
    """Times that every image is seen, at most."""
    drop_last: bool = False
    """Whether the images that fill no whole batch at the end of an epoch are left out of it."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a lower loss on held-out images after which training stops; None trains all epochs on all images."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the images that are held out where there is a patience."""
    seed: int = 0
    """Decides the initial weights, the order of the images and which are held out."""

    @property
    def needs_classes(self) -> bool:
        """Whether the loss depends on the class that the model predicts for an image."""
        return self.w_out > 0 or self.multi_positive

    @model_validator(mode="after")
    def _some_loss_counts(self) -> AlignSettings:
        if self.w_out == 0 and self.w_in == 0:
            raise ValueError(
                "w_out and w_in are both 0, so there is nothing to learn; give one of them a weight above 0"
            )
        return self


class EncoderConfig(Frozen):
    """What must travel with the weights of a trained neuron encoder."""

    settings: AlignSettings
    d: int = Field(ge=1)
    """Width of the activations."""
    dim: int = Field(ge=1)
    """Width of the CLIP embeddings."""
    logit_scale: float = Field(gt=0)
    """The scale at the end of training."""
    steps: int = Field(ge=0)
    """Updates that the weights have seen."""
    model: str | None = None
    site: str | None = None
    pool: str | None = None
    """How the positions of the site became one vector per image."""
    clip: str | None = None
    """The CLIP whose joint space it maps into."""
    template: str | None = None
    """The prompt around the class names of L_out."""

    @property
    def jacobian(self) -> bool:
        """Whether the map is affine, so that a unit is embedded by its linear part alone and the mode of units is `jacobian`."""
        return self.settings.bias or self.settings.standardise
