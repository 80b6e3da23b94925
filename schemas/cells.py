"""What the specs of several kinds share: image sets, classes, and the fields of a stage, of one over models, of one with a forward pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, field_validator

from schemas.base import EFFORT, RESULT, Frozen
from schemas.errors import MiclipError
from schemas.plans import Resources
from schemas.refs import ImageSetRef, ModelRef, Site

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


def as_value_error(parse: object, text: str) -> str:
    """The canonical text of a ref or site; what is wrong with it as the ValueError that a validator raises."""
    try:
        return str(parse(text))  # type: ignore[operator]
    except MiclipError as error:
        raise ValueError(str(error)) from None


def as_tuple(value: object) -> object:
    """One value is a list of one; lists become tuples here because a value that went through Python is no JSON any more."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def as_listed(value: object) -> object:
    """The same of a value that may also be no list."""
    return tuple(value) if isinstance(value, list) else value


def _clip(text: str) -> str:
    return as_value_error(ModelRef.parse, text)


def _sites(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(as_value_error(Site.parse, text) for text in texts)


LISTED = BeforeValidator(as_tuple)
"""Marks a list of which one value may stand alone."""
ClipRef = Annotated[str, AfterValidator(_clip)]
SiteTexts = Annotated[tuple[str, ...], LISTED, AfterValidator(_sites)]


class Images(Frozen):
    """An image set: where the images are, and where their labels come from."""

    ref: Annotated[str, RESULT]
    """`source:location`, see ImageSetRef."""
    labels: Annotated[Literal["none", "from_folders"] | str, RESULT] = "none"
    """`from_folders` takes the first folder below the root; `file:/path.csv|parquet` is joined by its column `file`."""
    orientation: Annotated[Literal["upright", "as_stored"], RESULT] = "upright"
    """`upright` applies the EXIF orientation, so models see what a person sees; `as_stored` ignores it."""
    limit: Annotated[int | None, Field(ge=1), RESULT] = None
    """Only the first images of the index, for a small trial; part of every digest below."""

    @property
    def key(self) -> str:
        """Names the index of this image set: everything but the limit, which only cuts rows later."""
        return self.model_copy(update={"limit": None}).canonical_json()

    @field_validator("ref")
    @classmethod
    def _ref_parses(cls, value: str) -> str:
        return as_value_error(ImageSetRef.parse, value)

    @field_validator("labels")
    @classmethod
    def _labels_known(cls, value: str) -> str:
        if value not in ("none", "from_folders") and not value.startswith("file:"):
            raise ValueError(f"expected none, from_folders or file:PATH, found {value!r}")
        return value


def _check_templates(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Templates of one's own have one place for the name. Raises ValueError."""
    if not isinstance(value, str):
        if not value:
            raise ValueError("an empty list of templates makes no sentence; give at least '{}'")
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must contain {{}} exactly once")
    return value


Templates = Annotated[
    Literal["openai80", "plain"] | tuple[str, ...], BeforeValidator(as_listed), AfterValidator(_check_templates)
]
"""`openai80` are the 80 templates of the CLIP release; `plain` is `a photo of a {}.`; or your own with `{}`."""


def templates_json(value: str | Sequence[str]) -> JsonValue:
    """Templates as the params of a stage hold them: their name, or a list."""
    return value if isinstance(value, str) else list(value)


class Classes(Frozen):
    """Zero-shot classes: names and the templates that make sentences of them."""

    names: Annotated[tuple[str, ...], Field(min_length=2), RESULT]
    templates: Annotated[Templates, RESULT] = "openai80"
    """`openai80` are the 80 templates of the CLIP release; `plain` is `a photo of a {}.`; or your own with `{}`."""


class Cell(Frozen):
    """Fields that every kind has; a stage of a pipeline leaves out what it inherits."""

    reads: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """Names of the stages whose tables this one reads."""
    over: Annotated[tuple[Name, ...], LISTED, EFFORT] = ()
    """Axes of the pipeline's matrix that the stage is repeated over, beside models: each value stands in the field that is
    named like the axis, or chooses among the cells that are read."""
    resources: Annotated[Resources, EFFORT] = Resources()

    @property
    def needs_clip(self) -> bool:
        """Whether it works in the space of a CLIP: its own if it is `OfAClip` and names one, else that of the pipeline."""
        return False

    @property
    def no_clip(self) -> str:
        """What is said where it needs a CLIP and none is named."""
        return "no CLIP whose space concepts are in"

    @property
    def beside(self) -> tuple[str, ...]:
        """Refs of models that it needs beside those that it is about."""
        return ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the models lie that it needs and that are no checkpoints; their files name what is made with them."""
        return ()

    @property
    def without_others(self) -> bool:
        """Whether it goes on without pairs and zoos that it reads, where another model of theirs cannot be looked at."""
        return False

    def lacks(self, kinds_read: Collection[str]) -> str | None:
        """What it cannot do without among the kinds of stages that it reads."""
        return None

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """Whether it reads images itself, when it reads stages of these kinds."""
        return False


class OverModels(Cell):
    """A stage that is repeated for each of several models."""

    model: Annotated[str | tuple[str, ...] | None, BeforeValidator(as_listed), RESULT] = None
    """A model ref or a list of them; inside a pipeline it usually comes from the matrix, or from what the stage reads."""

    @field_validator("model")
    @classmethod
    def _model_parses(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is None or isinstance(value, str):
            return value if value is None else as_value_error(ModelRef.parse, value)
        if not value:
            raise ValueError("an empty list of models leaves nothing to do")
        models = tuple(as_value_error(ModelRef.parse, text) for text in value)
        if twice := sorted({model for model in models if models.count(model) > 1}):
            raise ValueError(f"the same model twice: {', '.join(twice)}")
        return models

    @property
    def models(self) -> tuple[str, ...] | None:
        """Its own list of models, if it has one."""
        return (self.model,) if isinstance(self.model, str) else self.model


class OfAClip(Cell):
    """A stage that works in the space of a CLIP."""

    clip: Annotated[ClipRef | None, RESULT] = None
    """The CLIP in whose space concepts are; that of the pipeline if left out."""

    @property
    def needs_clip(self) -> bool:
        """Always."""
        return True


class ForwardCell(OverModels):
    """A stage that runs images through a model, and what decides the numbers that come out."""

    images: Annotated[Images | None, RESULT] = None
    sites: Annotated[SiteTexts, RESULT] = ()
    round_to: Annotated[Literal["fp16", "bf16", "fp32"], RESULT] = "fp16"
    """Precision that stored vectors are rounded to; they are float32 columns whatever it is."""
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], RESULT] = "fp32"
    """Precision of the forward pass."""
    geometry: Annotated[Literal["model", "square"], RESULT] = "model"
    """`model` is the model's own evaluation transform; `square` is one centre-square view shared by all models."""
    on_nonfinite: Annotated[Literal["stop", "quarantine"], RESULT] = "stop"
    on_changed: Annotated[Literal["stop", "quarantine"], RESULT] = "stop"
    """What to do with an image whose bytes differ from the index or that is gone."""
    batch_size: Annotated[int, Field(ge=1, le=65536), EFFORT] = 32


class OverZoo(ForwardCell):
    """A stage about several models at once: each of them, every pair of them, and all together."""
