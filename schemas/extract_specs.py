"""What a person writes to run images through models: which sites, and what is kept of each pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, Classes, ForwardCell

Output = Literal["activations", "activation_moments", "top_images", "embeddings", "predictions", "text_embeddings"]
SITE_OUTPUTS: tuple[Output, ...] = ("activations", "activation_moments", "top_images")


class ExtractSpec(ForwardCell):
    """Models x sites x one image set -> activations and what is computed from them in the same forward pass."""

    kind: Annotated[Literal["extract"], RESULT] = "extract"
    outputs: Annotated[tuple[Output, ...], LISTED, Field(min_length=1), RESULT] = ("activations", "embeddings")
    classes: Annotated[Classes | None, RESULT] = None
    """Zero-shot classes for `predictions` and, averaged over templates, for `text_embeddings`."""
    texts: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """Sentences for `text_embeddings`."""
    top_k: Annotated[int, Field(ge=1, le=1000), RESULT] = 16
    predictions_k: Annotated[int, Field(ge=1, le=1000), RESULT] = 5
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 2048

    @model_validator(mode="after")
    def _outputs_have_what_they_need(self) -> ExtractSpec:
        of_sites = [o for o in self.outputs if o in SITE_OUTPUTS]
        if of_sites and not self.sites:
            raise ValueError(f"outputs {', '.join(of_sites)} need sites; add sites: [resid_post.-1@cls], for example")
        if self.sites and not of_sites:
            raise ValueError(f"sites are given but no output uses them; add one of {', '.join(SITE_OUTPUTS)}")
        if self.reads:
            raise ValueError(f"reads {', '.join(self.reads)}: extract reads images and models, no stage; leave it away")
        if "text_embeddings" in self.outputs and not (self.texts or self.classes):
            raise ValueError("output text_embeddings needs texts or classes")
        return self

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """Text embeddings alone need none."""
        return bool(set(self.outputs) - {"text_embeddings"})
