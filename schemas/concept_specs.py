"""What a person writes about units and concepts: naming units, and finding those of a concept, by several methods."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from schemas.align import UnitMode
from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, OfAClip, Templates, as_listed, as_value_error
from schemas.refs import ConceptsRef
from schemas.sae_specs import TokensCell

Method = Literal["miclip", "act_values", "auroc", "clip_dissect", "netdissect", "v_interp"]
Similarity = Literal["cos", "cos_cubed", "rank_reorder", "wpmi", "soft_wpmi"]
UnitKind = Literal["neurons", "features"]
SPATIAL: tuple[Method, ...] = ("netdissect", "v_interp")
"""They look at where in an image a unit is active."""
OF_A_CLIP: tuple[Method, ...] = ("miclip", "clip_dissect", "v_interp")
"""They compare units with concepts in the space of a CLIP."""
OF_LABELS: tuple[Method, ...] = ("act_values", "auroc")
"""They know which images show a concept."""


class DescribeSpec(OfAClip, TokensCell):
    """The best concepts of every unit and the best units of every concept, by each of several methods.

    Units are the channels of sites (neurons) and the latents of the SAEs that it reads (features). `miclip` takes them
    from every align stage that it reads; the other methods from the activations of an extract stage.
    """

    kind: Annotated[Literal["describe"], RESULT] = "describe"
    methods: Annotated[tuple[Method, ...], LISTED, Field(min_length=1), RESULT] = ("miclip",)
    units: Annotated[tuple[UnitKind, ...], LISTED, Field(min_length=1), RESULT] = ("neurons", "features")
    """Features need an SAE among what is read; without one there are only neurons."""
    concepts: Annotated[str | tuple[str, ...], BeforeValidator(as_listed), RESULT] = "classes"
    """`classes` that the model predicts, `world` or `world:shape,colour`, `words:3000`, `file:/path` with a name per line, or a list of names."""
    templates: Annotated[Templates, RESULT] = ("{}",)
    """Prompts around the names; the bare name if left out."""
    tau: Annotated[int, Field(ge=1, le=1000), RESULT] = 5
    """Length of every list."""
    pool: Annotated[Literal["mean", "max"], RESULT] = "mean"
    """How the positions of a site become one activation per image, for methods that look at images as wholes."""
    unit_mode: Annotated[UnitMode, RESULT] = "direction"
    """Which vector stands for a feature in `miclip`."""
    similarity: Annotated[tuple[Similarity, ...], LISTED, Field(min_length=1), RESULT] = ("soft_wpmi",)
    """Of `clip_dissect`; each is a method of its own."""
    labels_from: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """Columns that say which images show a concept, for `act_values` and `auroc`: `label`, attributes; `predicted` is the
    class that the model predicts. Label and all attributes if left out."""
    min_positives: Annotated[int, Field(ge=1), RESULT] = 10
    """A concept that fewer images have, or lack, has no score by `auroc`."""
    segmenter: Annotated[str, RESULT] = "truth"
    """Where `netdissect` has masks from: `truth` of the demo world, or `file:/folder` of a CLIPSeg model."""
    on_share: Annotated[float, Field(gt=0, lt=1), RESULT] = 0.005
    """Share of all positions at which a unit counts as on, for `netdissect`."""
    captioner: Annotated[str, RESULT] = "captions"
    """Who puts patches into words for `v_interp`: the images' own `captions`, or `file:/folder` of an image-text-to-text model."""
    prompt: Annotated[str, Field(min_length=1), RESULT] = "Name what this picture shows, in a few words."
    patches: Annotated[int, Field(ge=1, le=100), RESULT] = 8
    """Patches of every unit that are captioned."""
    context: Annotated[float, Field(ge=1), RESULT] = 2.0
    """Side of what is shown of a patch, in sides of a patch."""
    seed: Annotated[int, RESULT] = 0
    """Of the permutations of `rank_reorder`."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 1024

    @field_validator("concepts")
    @classmethod
    def _concepts_parse(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return as_value_error(ConceptsRef.parse, value)
        names = [name.strip() for name in value]
        if not names or "" in names:
            raise ValueError(
                f"found {len(names)} names of concepts, some of them empty; expected at least one, none empty"
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice[:5])} {'is' if len(twice) == 1 else 'are'} there twice; leave one of each out"
            )
        return tuple(names)

    @field_validator("segmenter", "captioner")
    @classmethod
    def _sources_are_known(cls, value: str) -> str:
        if value not in ("truth", "captions") and not value.startswith(("file:", "s3:")):
            raise ValueError(
                f"expected truth (a segmenter), captions (a captioner), file:/folder or s3://..., found {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _methods_have_what_they_need(self) -> DescribeSpec:
        if not self.reads:
            raise ValueError("no units; give reads: an align stage for method miclip, an extract stage for the others")
        if self.images is not None:
            raise ValueError("images are those of the stages that it reads; leave images out")
        if self.unit_mode == "decoded":
            raise ValueError(
                "unit_mode decoded is the vector of a feature in one image, but units are described over all; take direction "
                "or decoded_mean"
            )
        if self.segmenter == "captions" or self.captioner == "truth":
            raise ValueError("segmenter is truth or a folder, captioner is captions or a folder")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the models of its methods lie that are no checkpoints: a segmenter, a captioner."""
        wanted = {"netdissect": self.segmenter, "v_interp": self.captioner}
        found = [where for method, where in wanted.items() if method in self.methods]
        return tuple(where.removeprefix("file:") for where in found if where.startswith(("file:", "s3:")))

    @property
    def needs_clip(self) -> bool:
        """Whether any of its methods compares in the space of a CLIP."""
        return bool(set(self.methods) & set(OF_A_CLIP))

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """Never of its own: they are those of the extract stage that it reads, or that its encoders were trained on."""
        return False
