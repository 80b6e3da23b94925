"""What a person writes to judge units and errors: traces of errors, geometry of units, scores and tests of methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, OfAClip, OverModels, SiteTexts


class TraceErrorsSpec(OverModels):
    """Layer by layer, how near images are to their true class and to the one they are mistaken for.

    It reads an align stage whose sites are the layers, and an extract stage with the same sites and predictions over the
    images to be traced; those that the encoders were trained on if left out. Encoders that differ in nothing but the
    number of the block are one trace.
    """

    kind: Annotated[Literal["trace_errors"], RESULT] = "trace_errors"
    sites: Annotated[SiteTexts, RESULT] = ()
    """Layers among those of the encoders; all if left out."""
    labels_from: Annotated[str, RESULT] = "label"
    """What names the true class of an image: its label, or one of its attributes."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 2048

    @model_validator(mode="after")
    def _layers_come_from_encoders(self) -> TraceErrorsSpec:
        if not self.reads:
            raise ValueError(
                "no layers; give reads: an align stage over several sites, and an extract stage of them over the images to trace"
            )
        return self


class GeometrySpec(OverModels):
    """Whether units of kindred concepts lie together in the space of a CLIP.

    Units are those found for each concept by method `miclip` in the describe stages that it reads.
    """

    kind: Annotated[Literal["geometry"], RESULT] = "geometry"
    groups: Annotated[dict[str, Annotated[tuple[str, ...], LISTED]] | Literal["world"], RESULT] = "world"
    """Group -> the concepts that are in it; `world` groups the values of the demo world by category."""
    tau: Annotated[int | None, Field(ge=1), RESULT] = None
    """Units of a concept; all that its list has if left out."""
    neighbours: Annotated[int, Field(ge=1), RESULT] = 10
    permutations: Annotated[int, Field(ge=1), RESULT] = 1000
    perplexity: Annotated[float, Field(gt=0), RESULT] = 30.0
    seed: Annotated[int, RESULT] = 0

    @field_validator("groups")
    @classmethod
    def _groups_can_be_told_apart(cls, value: dict[str, tuple[str, ...]] | str) -> dict[str, tuple[str, ...]] | str:
        if not isinstance(value, str) and (len(value) < 2 or not all(value.values())):
            raise ValueError(
                f"found {len(value)} groups, some perhaps empty; expected at least two, each with a concept"
            )
        return value

    @model_validator(mode="after")
    def _units_come_from_descriptions(self) -> GeometrySpec:
        if not self.reads:
            raise ValueError("no units; give reads: a describe stage with method miclip")
        return self


class EvaluateSpec(OfAClip, OverModels):
    """How right the descriptions and localisations of each method are, how strongly its units act, and which differences are real.

    It reads describe stages, and intervene stages if there are any. Truth is the class that a unit of the head stands for,
    or what method `auroc` of a describe stage that is read finds. The text tower of the CLIP says how alike a description
    and the truth are.
    """

    kind: Annotated[Literal["evaluate"], RESULT] = "evaluate"
    truth: Annotated[Literal["classes", "auroc"], RESULT] = "auroc"
    """`classes`: unit i of the head is class i. `auroc`: the concept that a unit tells apart best by the images' labels."""
    min_truth: Annotated[float, Field(gt=0.5, le=1), RESULT] = 0.9
    """A unit whose best AUROC is lower stands for nothing and is not scored."""
    sentences: Annotated[str | None, RESULT] = None
    """`file:/folder` of a sentence-transformers model, for a second score of how alike two texts are."""
    seed: Annotated[int, RESULT] = 0
    """Of the bootstrap."""

    @field_validator("sentences")
    @classmethod
    def _sentences_are_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("file:", "s3:")):
            raise ValueError(f"expected file:/folder or s3://... of a sentence-transformers model, found {value!r}")
        return value

    @model_validator(mode="after")
    def _something_is_judged(self) -> EvaluateSpec:
        if not self.reads:
            raise ValueError("nothing to judge; give reads: describe stages, and intervene stages if there are any")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the sentence encoder lies, if there is one."""
        return () if self.sentences is None else (self.sentences.removeprefix("file:"),)
