"""What a person writes to explain features in words by a vision-language model, to score these texts, and to map them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, OfAClip, OverModels, as_listed, as_value_error
from schemas.refs import ModelRef

ExplainMethod = Literal["topk", "steering", "informed"]
Masking = Literal["masks", "heatmaps"]
Direction = Literal["sae", "random", "permuted"]
AlphaUnit = Literal["activation", "p90", "token_norm"]
Metric = Literal["iou", "clip", "synthetic", "naming"]
SEES_IMAGES: tuple[ExplainMethod, ...] = ("topk", "informed")
"""They show the top images of a feature."""
STEERS: tuple[ExplainMethod, ...] = ("steering", "informed")
"""They add the direction of a feature to tokens of the vision tower."""
OF_SAMPLING = ("temperature", "top_p", "top_k")
"""Fields of `explain` that greedy decoding has no use for."""
MOST_GRID = 64


def _model(text: str) -> str:
    return as_value_error(ModelRef.parse, text)


VlmRef = Annotated[str, AfterValidator(_model)]


def _check_folder(value: str, named: str) -> str:
    if value != named and not value.startswith(("file:", "s3://")):
        raise ValueError(f"expected {named}, file:/folder or s3://..., found {value!r}")
    return value


SegmenterRef = Annotated[str, AfterValidator(partial(_check_folder, named="truth"))]
MakerRef = Annotated[str, AfterValidator(partial(_check_folder, named="world"))]
SentencesRef = Annotated[str, AfterValidator(partial(_check_folder, named="clip"))]


def _folders(*values: str) -> tuple[str, ...]:
    return tuple(value.removeprefix("file:") for value in values if value.startswith(("file:", "s3://")))


def _check_positions(value: str) -> str:
    if value not in ("all", "patches") and not re.fullmatch(r"block:[1-9]\d?", value):
        raise ValueError(
            f"expected all (the class token too), patches, or block:3 for 3 x 3 patches in the middle; found {value!r}"
        )
    return value


class ExplainSpec(OverModels):
    """One sentence per feature by a vision-language model: shown its top images, steered by its direction, or both.

    Features are those of every sae_features stage that it reads, whose images are the ones that may be shown. Every
    method, masking, direction and alpha is a stage of its own.
    """

    kind: Annotated[Literal["explain"], RESULT] = "explain"
    vlm: Annotated[VlmRef | None, RESULT] = None
    """The vision-language model; the model of the features itself if left out. Another one must have the same tower."""
    methods: Annotated[tuple[ExplainMethod, ...], LISTED, Field(min_length=1), RESULT] = (
        "topk",
        "steering",
        "informed",
    )
    masking: Annotated[tuple[Masking, ...], LISTED, Field(min_length=1), RESULT] = ("masks",)
    """How top images show where the feature is active: all else black, or a heatmap over the image."""
    direction: Annotated[tuple[Direction, ...], LISTED, Field(min_length=1), RESULT] = ("sae",)
    """What is steered with: the feature's decoder row, or as controls a random one or that of another feature."""
    alpha: Annotated[Literal["auto"] | tuple[float, ...], BeforeValidator(as_listed), RESULT] = "auto"
    """How much of the direction is added; `auto` takes the one of `alpha_grid` with the best IoU on `validation` features."""
    alpha_grid: Annotated[tuple[float, ...], LISTED, Field(min_length=1, max_length=MOST_GRID), RESULT] = (
        0.25,
        0.5,
        1.0,
        2.0,
        4.0,
    )
    alpha_unit: Annotated[AlphaUnit, RESULT] = "token_norm"
    """What alpha multiplies: 1 (units of the tower), the 90 % quantile of the feature's active codes, or the median length
    of tokens at the site."""
    validation: Annotated[int, Field(ge=1), RESULT] = 500
    """Features, the first active ones, on which `auto` compares alphas; scores leave them out unless told otherwise."""
    steered: Annotated[str, AfterValidator(_check_positions), RESULT] = "all"
    """Tokens of the blank image to which the direction is added: all, patches, or block:3."""
    informed: Annotated[Literal["active", "all"], RESULT] = "active"
    """Tokens of shown images to which it is added: where the feature is active, or all."""
    operation: Annotated[Literal["add", "replace"], RESULT] = "add"
    blank: Annotated[Literal["white", "grey", "black", "noise"], RESULT] = "white"
    """The image that is steered: grey is what the normalisation takes to zero, noise is seeded."""
    k: Annotated[int, Field(ge=1, le=100), RESULT] = 5
    """Top images that are shown, or as many as there are."""
    features: Annotated[tuple[Annotated[int, Field(ge=0)], ...], LISTED, RESULT] = ()
    """Features to explain; all that are active on some image if left out."""
    most: Annotated[int | None, Field(ge=1), RESULT] = None
    """Only the first so many of them."""
    steering_prompt: Annotated[str | None, Field(min_length=1), RESULT] = None
    """Question about the steered image; that of the paper if left out, as are the next two."""
    masks_prompt: Annotated[str | None, Field(min_length=1), RESULT] = None
    heatmaps_prompt: Annotated[str | None, Field(min_length=1), RESULT] = None
    max_new_tokens: Annotated[int, Field(ge=1, le=4096), RESULT] = 50
    decoding: Annotated[Literal["greedy", "sample"], RESULT] = "greedy"
    temperature: Annotated[float, Field(gt=0), RESULT] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1), RESULT] = 0.95
    top_k: Annotated[int, Field(ge=1), RESULT] = 64
    sequences: Annotated[int, Field(ge=1, le=100), RESULT] = 1
    """Texts per feature, of sampling."""
    seed: Annotated[int, Field(ge=0, lt=2**31), RESULT] = 0
    """Of random directions, noise and sampling."""
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], RESULT] = "fp32"
    """Precision of the model's weights and passes."""
    segmenter: Annotated[SegmenterRef, RESULT] = "truth"
    """For `alpha: auto`: `truth` of the demo world, or `file:/folder` of a CLIPSeg model."""
    masks_scored: Annotated[Literal["first", "union"], RESULT] = "union"
    """Of several masks for one text, the first or all together."""
    batch_features: Annotated[int, Field(ge=1, le=4096), EFFORT] = 8
    """Features that are put to the model together."""
    shard_features: Annotated[int, Field(ge=1), EFFORT] = 64

    @field_validator("alpha", "alpha_grid")
    @classmethod
    def _alphas_are_numbers(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, str):
            return value
        if not value or not all(math.isfinite(alpha) for alpha in value) or len(set(value)) != len(value):
            raise ValueError(f"found {list(value)}; expected auto, or finite numbers, each once, such as [0, 1, 2]")
        return value

    @field_validator("alpha", mode="before")
    @classmethod
    def _one_alpha_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("features")
    @classmethod
    def _features_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("the same feature twice")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _methods_have_what_they_need(self) -> ExplainSpec:
        if not self.reads:
            raise ValueError("no features; give reads: a sae_features stage with tables features and top_images")
        if self.decoding == "greedy" and self.sequences > 1:
            raise ValueError(f"sequences {self.sequences} of greedy decoding are all the same; take decoding: sample")
        if self.decoding == "greedy" and (unread := [n for n in OF_SAMPLING if n in self.model_fields_set]):
            raise ValueError(
                f"{', '.join(unread)}: greedy decoding draws nothing; leave it out, or take decoding: sample"
            )
        if set(self.direction) != {"sae"} and not set(self.methods) & set(STEERS):
            raise ValueError(
                f"direction {', '.join(self.direction)} steers nothing in methods {', '.join(self.methods)}"
            )
        return self

    @property
    def beside(self) -> tuple[str, ...]:
        """The vision-language model, if it is not the model itself."""
        return () if self.vlm is None else (self.vlm,)

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the segmenter lies."""
        return _folders(self.segmenter) if self.chooses_alpha else ()

    @property
    def chooses_alpha(self) -> bool:
        """Whether alphas are compared, for which top images are segmented."""
        return self.alpha == "auto" and bool(set(self.methods) & set(STEERS))


class ScoreExplanationsSpec(OfAClip, OverModels):
    """How good explanations are, by several measures on images that were not used to make them; which to take, and which differ.

    It reads explain stages and one sae_features stage over other images, whose top images and selectivity it uses.
    """

    kind: Annotated[Literal["score_explanations"], RESULT] = "score_explanations"
    metrics: Annotated[tuple[Metric, ...], LISTED, Field(min_length=1), RESULT] = ("iou", "clip", "synthetic", "naming")
    """Overlap of what a text finds with where the feature is active; CLIP's cosine of text and masked images; the feature's
    activation on images made from the text; whether the text names the concept that the feature tells best."""
    top: Annotated[int, Field(ge=1, le=100), RESULT] = 5
    """Top images on which a feature's texts are scored."""
    on_shared: Annotated[Literal["stop", "leave_out"], RESULT] = "stop"
    """What to do where an image to score on is one that explanations were made from: stop, or score on the others."""
    scored: Annotated[Literal["test", "all"], RESULT] = "test"
    """`test` leaves out the features on which alphas were chosen."""
    segmenter: Annotated[SegmenterRef, RESULT] = "truth"
    """`truth` of the demo world, or `file:/folder` of a CLIPSeg model."""
    masks_scored: Annotated[Literal["first", "union"], RESULT] = "union"
    """Of several masks for one text, the first or all together."""
    clip_view: Annotated[Literal["model", "whole"], RESULT] = "model"
    """The CLIP's own transform, which may cut the active part off, or the whole image."""
    maker: Annotated[MakerRef, RESULT] = "world"
    """Who makes images from texts: the demo `world`'s renderer, or `file:/folder` of a diffusers pipeline."""
    maker_prefix: Annotated[str, RESULT] = "A realistic image of "
    maker_images: Annotated[int, Field(ge=1, le=100), RESULT] = 3
    """Images per text, and as many random ones per feature to compare with."""
    maker_steps: Annotated[int, Field(ge=1), RESULT] = 28
    maker_guidance: Annotated[float, Field(ge=0), RESULT] = 4.5
    maker_size: Annotated[int, Field(ge=16), RESULT] = 512
    activation: Annotated[Literal["mean", "max"], RESULT] = "mean"
    """Of a feature in an image, over its patches."""
    least_auroc: Annotated[float, Field(ge=0.5, le=1), RESULT] = 0.95
    """`naming` is of features that tell a concept at least so well."""
    naming_level: Annotated[Literal["patch", "image"], RESULT] = "patch"
    min_iou: Annotated[float, Field(ge=0, le=1), RESULT] = 0.2
    """A chosen text with less does not pass."""
    min_synthetic: Annotated[float | None, RESULT] = None
    """Nor one with a smaller activation on made images; the next field decides if left out."""
    min_synthetic_percentile: Annotated[float, Field(ge=0, le=100), RESULT] = 20.0
    sentences: Annotated[SentencesRef, RESULT] = "clip"
    """What compares texts: the text tower of the `clip`, or `file:/folder` of sentence-transformers."""
    agreement: Annotated[tuple[Annotated[float, Field(ge=-1, le=1)], ...], LISTED, RESULT] = (
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
    )
    """Cosines of the texts of topk and steering from which on scores are told again."""
    labels: Annotated[str, RESULT] = "none"
    """Who says whether a text is low-level or about animals or backgrounds: `none`, `world`, or `vlm:<model ref>`."""
    seed: Annotated[int, Field(ge=0, lt=2**31), RESULT] = 0
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], RESULT] = "fp32"
    batch_size: Annotated[int, Field(ge=1, le=65536), EFFORT] = 32
    """Images in a forward pass."""
    shard_features: Annotated[int, Field(ge=1), EFFORT] = 64

    @field_validator("labels")
    @classmethod
    def _labeller_is_known(cls, value: str) -> str:
        if value in ("none", "world"):
            return value
        if not value.startswith("vlm:"):
            raise ValueError(f"expected none, world, or vlm: and a model ref, found {value!r}")
        return "vlm:" + _model(value.removeprefix("vlm:"))

    def lacks(self, kinds_read: Collection[str]) -> str | None:
        """Texts to score, or features over images to score them on."""
        if "explain" not in kinds_read:
            return "no explain stage, whose texts are scored; read one, beside a sae_features stage over other images"
        if "sae_features" not in kinds_read:
            return (
                "no sae_features stage, on whose images texts are scored; read one beside the explain stages, over images "
                "that no explanation was made from"
            )
        return None

    @property
    def no_clip(self) -> str:
        """Who asks for it, and what does without."""
        asking = {"metric clip": "clip" in self.metrics, "sentences: clip": self.sentences == "clip"}
        return (
            f"no CLIP for {' and '.join(name for name, asks in asking.items() if asks)}; metrics without clip and "
            "sentences: file:/folder of sentence-transformers need none"
        )

    @property
    def needs_clip(self) -> bool:
        """For scores of the CLIP, and where its text tower compares texts."""
        return "clip" in self.metrics or self.sentences == "clip"

    @property
    def beside(self) -> tuple[str, ...]:
        """The model that labels."""
        return (self.labels.removeprefix("vlm:"),) if self.labels.startswith("vlm:") else ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the models of its metrics lie that are no checkpoints."""
        wanted = [self.sentences]
        wanted += [self.segmenter] if "iou" in self.metrics else []
        wanted += [self.maker] if "synthetic" in self.metrics else []
        return _folders(*wanted)


class MapExplanationsSpec(OfAClip, OverModels):
    """Texts as points: embeddings, clusters with topics, and two coordinates to draw them at."""

    kind: Annotated[Literal["map_explanations"], RESULT] = "map_explanations"
    texts: Annotated[Literal["selected", "all"], RESULT] = "selected"
    """The text chosen for each feature by a score_explanations stage, or every text of the explain stages that are read."""
    sentences: Annotated[SentencesRef, RESULT] = "clip"
    """What embeds texts: the text tower of the `clip`, or `file:/folder` of sentence-transformers."""
    clusters: Annotated[int, Field(ge=1, le=10_000), RESULT] = 30
    restarts: Annotated[int, Field(ge=1), RESULT] = 10
    layout: Annotated[Literal["pca", "umap"], RESULT] = "pca"
    """`umap` needs the extra `miclip[map]`."""
    neighbours: Annotated[int, Field(ge=2), RESULT] = 15
    min_dist: Annotated[float, Field(ge=0, le=1), RESULT] = 0.1
    topics: Annotated[str, RESULT] = "words"
    """What a cluster is called: its most distinctive `words`, or what `vlm:<model ref>` calls 20 of its texts."""
    seed: Annotated[int, Field(ge=0, lt=2**31), RESULT] = 42
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], RESULT] = "fp32"
    """Of the model that is asked for topics."""

    @field_validator("topics")
    @classmethod
    def _topics_are_known(cls, value: str) -> str:
        if value != "words" and not value.startswith("vlm:"):
            raise ValueError(f"expected words, or vlm: and a model ref, found {value!r}")
        return value if value == "words" else "vlm:" + _model(value.removeprefix("vlm:"))

    @model_validator(mode="after")
    def _texts_are_read(self) -> MapExplanationsSpec:
        if not self.reads:
            raise ValueError("no texts; give reads: a score_explanations stage, or explain stages with texts: all")
        return self

    @property
    def no_clip(self) -> str:
        """Who asks for it, and what does without."""
        return "no CLIP for sentences: clip; sentences: file:/folder of sentence-transformers needs none"

    @property
    def needs_clip(self) -> bool:
        """Where its text tower embeds texts."""
        return self.sentences == "clip"

    @property
    def beside(self) -> tuple[str, ...]:
        """The model that names topics."""
        return (self.topics.removeprefix("vlm:"),) if self.topics.startswith("vlm:") else ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the sentence encoder lies."""
        return _folders(self.sentences)
