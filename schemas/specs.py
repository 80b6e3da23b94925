"""What a person writes: one frozen spec per job kind, and the pipeline that joins them over a matrix."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT, Frozen
from schemas.errors import MiclipError
from schemas.plans import Resources
from schemas.refs import ImageSetRef, ModelRef, Site

Output = Literal["activations", "activation_moments", "top_images", "embeddings", "predictions", "text_embeddings"]
SITE_OUTPUTS: tuple[Output, ...] = ("activations", "activation_moments", "top_images")
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


def _as_value_error(parse: object, text: str) -> str:
    try:
        return str(parse(text))  # type: ignore[operator]
    except MiclipError as error:
        raise ValueError(str(error)) from None


def _as_tuple(value: object) -> object:
    """One text is a list of one; lists become tuples here because a value that went through Python is no JSON any more."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


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
        return _as_value_error(ImageSetRef.parse, value)

    @field_validator("labels")
    @classmethod
    def _labels_known(cls, value: str) -> str:
        if value not in ("none", "from_folders") and not value.startswith("file:"):
            raise ValueError(f"expected none, from_folders or file:PATH, found {value!r}")
        return value


class Classes(Frozen):
    """Zero-shot classes: names and the templates that make sentences of them."""

    names: Annotated[tuple[str, ...], Field(min_length=2), RESULT]
    templates: Annotated[Literal["openai80", "plain"] | tuple[str, ...], RESULT] = "openai80"
    """`openai80` are the 80 templates of the CLIP release; `plain` is `a photo of a {}.`; or your own with `{}`."""

    @field_validator("templates")
    @classmethod
    def _templates_have_a_place(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(value, str):
            if not value:
                raise ValueError("an empty list of templates makes no sentence; give at least '{}'")
            for template in value:
                if template.count("{}") != 1:
                    raise ValueError(f"template {template!r} must contain {{}} exactly once")
        return value


class Cell(Frozen):
    """Fields that every kind has; a stage of a pipeline leaves out what it inherits."""

    reads: Annotated[tuple[str, ...], RESULT] = ()
    """Names of the stages whose tables this one reads."""
    resources: Annotated[Resources, EFFORT] = Resources()

    @field_validator("reads", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return _as_tuple(value)


class ExtractSpec(Cell):
    """Models x sites x one image set -> activations and what is computed from them in the same forward pass."""

    kind: Annotated[Literal["extract"], RESULT] = "extract"
    model: Annotated[str | tuple[str, ...] | None, RESULT] = None
    """A model ref or a list of them; inside a pipeline it usually comes from the matrix."""
    images: Annotated[Images | None, RESULT] = None
    sites: Annotated[tuple[str, ...], RESULT] = ()
    outputs: Annotated[tuple[Output, ...], Field(min_length=1), RESULT] = ("activations", "embeddings")
    classes: Annotated[Classes | None, RESULT] = None
    """Zero-shot classes for `predictions` and, averaged over templates, for `text_embeddings`."""
    texts: Annotated[tuple[str, ...], RESULT] = ()
    """Sentences for `text_embeddings`."""
    top_k: Annotated[int, Field(ge=1, le=1000), RESULT] = 16
    predictions_k: Annotated[int, Field(ge=1, le=1000), RESULT] = 5
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
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 2048

    @field_validator("sites", "model", "texts", "outputs", mode="before")
    @classmethod
    def _texts_are_lists(cls, value: object, info: object) -> object:
        one_is_fine = isinstance(value, str) and getattr(info, "field_name", "") == "model"
        return value if one_is_fine else _as_tuple(value)

    @field_validator("sites")
    @classmethod
    def _sites_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_as_value_error(Site.parse, text) for text in value)

    @field_validator("model")
    @classmethod
    def _model_parses(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is None or isinstance(value, str):
            return value if value is None else _as_value_error(ModelRef.parse, value)
        if not value:
            raise ValueError("an empty list of models leaves nothing to do")
        return tuple(_as_value_error(ModelRef.parse, text) for text in value)

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


class SelftestSpec(Cell):
    """A torch-free kind of deterministic rows in two rounds, with switches that make things go wrong."""

    kind: Annotated[Literal["selftest"], RESULT] = "selftest"
    subject: Annotated[Name, RESULT] = "selftest"
    rows: Annotated[int, Field(ge=0), RESULT] = 1000
    seed: Annotated[int, RESULT] = 0
    nan_rows: Annotated[tuple[int, ...], RESULT] = ()
    """Rows whose value is NaN, which stops the shard."""
    variants: Annotated[tuple[Name, ...], RESULT] = ("a",)
    """Sibling stages that share one pass, as the sites of one model do."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 100
    sleep_ms: Annotated[int, Field(ge=0), EFFORT] = 0
    """Time per shard, so that a test can kill something in the middle of it."""
    poison_shards: Annotated[tuple[int, ...], EFFORT] = ()
    """Shards that end their process every time."""
    crash_once_dir: Annotated[str | None, EFFORT] = None
    """A local folder; a shard that finds `crash-<n>` there removes the file and kills its own process."""
    error_shards: Annotated[tuple[int, ...], EFFORT] = ()
    """Shards that raise an application error."""
    oom_above: Annotated[int | None, EFFORT] = None
    """Batches of more rows than this run out of memory."""
    batch_rows: Annotated[int, Field(ge=1), EFFORT] = 100
    gang: Annotated[int, Field(ge=1), EFFORT] = 1
    """Workers that meet before each shard of the first round and share it."""


JobSpec = ExtractSpec | SelftestSpec
AnyJob = Annotated[JobSpec, Field(discriminator="kind")]


class PipelineSpec(Frozen):
    """Stages joined by `reads`, repeated over a matrix."""

    kind: Literal["pipeline"] = "pipeline"
    name: Name
    store: str | None = None
    """A local folder or s3://bucket/prefix; the command line's --store wins."""
    images: Images | None = None
    matrix: dict[Literal["model"], tuple[str, ...]] = Field(default_factory=dict)
    stages: dict[Name, AnyJob] = Field(min_length=1)
    resources: Resources | None = None
    """Default for stages that state none."""

    @field_validator("matrix")
    @classmethod
    def _models_parse(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for models in value.values():
            if not models:
                raise ValueError("an empty list of models leaves nothing to do")
            for text in models:
                _as_value_error(ModelRef.parse, text)
            if len(set(models)) != len(models):
                raise ValueError(f"the same model twice: {', '.join(models)}")
        return value

    @model_validator(mode="after")
    def _reads_name_stages_without_a_cycle(self) -> PipelineSpec:
        for name, stage in self.stages.items():
            for read in stage.reads:
                if read not in self.stages:
                    raise ValueError(f"stages.{name}.reads: no stage {read!r}; there are {', '.join(self.stages)}")
        self.waves()
        for name, stage in self.stages.items():
            if isinstance(stage, ExtractSpec):
                if stage.model is None and "model" not in self.matrix:
                    raise ValueError(f"stages.{name}: no model; give stages.{name}.model or matrix.model")
                needs_images = set(stage.outputs) - {"text_embeddings"}
                if needs_images and stage.images is None and self.images is None:
                    raise ValueError(f"stages.{name}: no images; give images: {{ref: folder:/path}}")
        return self

    @property
    def index_resources(self) -> Resources:
        """What indexing takes: as many workers and decoding threads as the widest stage, and never a GPU."""
        stated = [self.resources] if self.resources else []
        stated += [stage.resources for stage in self.stages.values() if "resources" in stage.model_fields_set]
        return Resources(
            workers=max((r.workers for r in stated), default=Resources().workers),
            decode_threads=max((r.decode_threads for r in stated), default=1),
        )

    def waves(self) -> list[list[str]]:
        """Stage names in dependency order: each wave reads only earlier ones.

        Raises:
            ValueError: the reads form a cycle.
        """
        done: set[str] = set()
        waves: list[list[str]] = []
        while len(done) < len(self.stages):
            wave = [n for n, s in self.stages.items() if n not in done and set(s.reads) <= done]
            if not wave:
                raise ValueError(f"stages {', '.join(sorted(set(self.stages) - done))} read each other in a circle")
            waves.append(wave)
            done.update(wave)
        return waves


class OneJob(Frozen):
    """What a file with a single job may say beside it."""

    name: Name | None = None
    """Names its runs; the name of the file if left out."""
    store: str | None = None
    """A local folder or s3://bucket/prefix; the command line's --store wins."""


class ExtractFile(ExtractSpec, OneJob):
    """An extract job that stands alone: nothing is inherited, so the model and the images are its own."""

    @model_validator(mode="after")
    def _stands_alone(self) -> ExtractFile:
        if self.model is None:
            raise ValueError("no model; give model: open_clip:ViT-B-32/laion2b_s34b_b79k, for example")
        if self.images is None and set(self.outputs) - {"text_embeddings"}:
            raise ValueError("no images; give images: {ref: folder:/path}")
        return self


class SelftestFile(SelftestSpec, OneJob):
    """A selftest that stands alone."""


AnySpec = Annotated[ExtractFile | SelftestFile | PipelineSpec, Field(discriminator="kind")]


def as_pipeline(spec: ExtractSpec | SelftestSpec | PipelineSpec) -> PipelineSpec:
    """A single job is a pipeline of one stage, named after its kind."""
    if isinstance(spec, PipelineSpec):
        return spec
    stage = spec.kind.replace("_", "-")
    if isinstance(spec, OneJob):
        name, store = spec.name, spec.store
        plain = spec.model_dump_json(exclude=set(OneJob.model_fields), exclude_unset=True)
        job: ExtractSpec | SelftestSpec = _PLAIN[spec.kind].model_validate_json(plain)
        return PipelineSpec(name=name or stage, store=store, stages={stage: job})
    return PipelineSpec(name=stage, stages={stage: spec})


_PLAIN: dict[str, type[ExtractSpec] | type[SelftestSpec]] = {"extract": ExtractSpec, "selftest": SelftestSpec}
