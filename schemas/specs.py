"""What a person writes: one frozen spec per job kind, and the pipeline that joins them over a matrix."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.align_specs import AlignSpec
from schemas.base import EFFORT, RESULT, Frozen
from schemas.cells import LISTED, Cell, Classes, ClipRef, ForwardCell, Images, Name, OfAClip, OverModels, as_value_error
from schemas.concept_specs import DescribeSpec
from schemas.evaluate_specs import EvaluateSpec, GeometrySpec, TraceErrorsSpec
from schemas.explain_specs import ExplainSpec, MapExplanationsSpec, ScoreExplanationsSpec
from schemas.explorer_specs import ExplorerSpec
from schemas.intervene_specs import AttentionMapsSpec, InterveneSpec
from schemas.invert_specs import InvertSpec
from schemas.plans import Resources
from schemas.probe_specs import ProbeSpec
from schemas.refs import ModelRef
from schemas.rosetta_specs import MineRosettaSpec
from schemas.sae_specs import ImportSaeSpec, SaeFeaturesSpec, TrainSaeSpec

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


JobSpec = (
    ExtractSpec
    | TrainSaeSpec
    | ImportSaeSpec
    | SaeFeaturesSpec
    | ProbeSpec
    | AlignSpec
    | DescribeSpec
    | InterveneSpec
    | TraceErrorsSpec
    | AttentionMapsSpec
    | GeometrySpec
    | EvaluateSpec
    | MineRosettaSpec
    | InvertSpec
    | ExplainSpec
    | ScoreExplanationsSpec
    | MapExplanationsSpec
    | ExplorerSpec
    | SelftestSpec
)
READS: dict[str, set[str]] = {
    "extract": set(),
    "train_sae": {"extract"},
    "import_sae": {"extract"},
    "sae_features": {"train_sae", "import_sae", "extract"},
    "probe": {"extract"},
    "align": {"extract", "probe"},
    "describe": {"align", "extract", "probe", "train_sae", "import_sae"},
    "intervene": {"describe"},
    "trace_errors": {"align", "extract", "probe"},
    "attention_maps": {"describe"},
    "geometry": {"describe"},
    "evaluate": {"describe", "intervene"},
    "mine_rosetta": {"train_sae", "import_sae"},
    "invert": {"mine_rosetta", "invert"},
    "explain": {"sae_features"},
    "score_explanations": {"explain", "sae_features"},
    "map_explanations": {"score_explanations", "explain"},
    "explorer": {
        "sae_features",
        "extract",
        "describe",
        "evaluate",
        "mine_rosetta",
        "explain",
        "score_explanations",
        "map_explanations",
    },
}
"""Kind -> the kinds of stages that it knows what to do with; a selftest reads anything."""

AnyJob = Annotated[JobSpec, Field(discriminator="kind")]


class PipelineSpec(Frozen):
    """Stages joined by `reads`, repeated over a matrix."""

    kind: Literal["pipeline"] = "pipeline"
    name: Name
    store: str | None = None
    """A local folder or s3://bucket/prefix; the command line's --store wins."""
    images: Images | None = None
    clip: ClipRef | None = None
    """The CLIP in whose space concepts are named, for stages that need one."""
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
                as_value_error(ModelRef.parse, text)
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
            kinds = self.kinds_read(name)
            if unread := kinds - READS.get(stage.kind, kinds):
                raise ValueError(
                    f"stages.{name}.reads: {stage.kind} cannot read {', '.join(sorted(unread))}; it reads "
                    f"{', '.join(sorted(READS[stage.kind]))}"
                )
            if lacked := stage.lacks(kinds):
                raise ValueError(f"stages.{name}.reads: {lacked}")
            if isinstance(stage, OverModels) and not self.models_of(name):
                raise ValueError(f"stages.{name}: no model; give stages.{name}.model or matrix.model")
            if stage.needs_clip and self.clip_of(name) is None:
                raise ValueError(f"stages.{name}: {stage.no_clip}; give clip: open_clip:ViT-B-16/openai, for example")
            has_images = self.images is not None or getattr(stage, "images", None) is not None
            if stage.needs_images(kinds) and not has_images:
                raise ValueError(f"stages.{name}: no images; give images: {{ref: folder:/path}}")
        return self

    def clip_of(self, name: str) -> str | None:
        """The CLIP of a stage that needs one: its own, or that of the pipeline."""
        stage = self.stages[name]
        if not stage.needs_clip:
            return None
        return (stage.clip if isinstance(stage, OfAClip) else None) or self.clip

    def kinds_read(self, name: str) -> set[str]:
        """The kinds of the stages that a stage reads."""
        return {self.stages[read].kind for read in self.stages[name].reads}

    def models_of(self, name: str) -> tuple[str, ...]:
        """The models a stage is repeated for: its own, else those of what it reads, else the matrix's; none if it has no model."""
        stage = self.stages[name]
        if not isinstance(stage, OverModels):
            return ()
        if stage.models is not None:
            return stage.models
        read = [model for other in stage.reads for model in self.models_of(other)]
        return tuple(dict.fromkeys(read)) or self.matrix.get("model", ())

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
        _check_alone(self)
        return self


class TrainSaeFile(TrainSaeSpec, OneJob):
    """SAEs trained from a live stream: nothing is read or inherited."""

    @model_validator(mode="after")
    def _stands_alone(self) -> TrainSaeFile:
        _check_alone(self)
        return self


class ImportSaeFile(ImportSaeSpec, OneJob):
    """SAEs of other formats, judged on images: nothing is read or inherited."""

    @model_validator(mode="after")
    def _stands_alone(self) -> ImportSaeFile:
        _check_alone(self)
        return self


class SaeFeaturesFile(SaeFeaturesSpec, OneJob):
    """Features of SAEs that are in the store: nothing is read or inherited."""

    @model_validator(mode="after")
    def _stands_alone(self) -> SaeFeaturesFile:
        _check_alone(self)
        return self


class SelftestFile(SelftestSpec, OneJob):
    """A selftest that stands alone."""


def _check_alone(job: ForwardCell) -> None:
    if job.reads:
        raise ValueError(f"reads {', '.join(job.reads)}: a job alone in a file reads no stage; make it a pipeline")
    if job.model is None:
        raise ValueError("no model; give model: open_clip:ViT-B-32/laion2b_s34b_b79k, for example")
    if job.images is None and job.needs_images(()):
        raise ValueError("no images; give images: {ref: folder:/path}")


JobFile = ExtractFile | TrainSaeFile | ImportSaeFile | SaeFeaturesFile | SelftestFile
AnySpec = Annotated[JobFile | PipelineSpec, Field(discriminator="kind")]


def as_pipeline(spec: JobSpec | PipelineSpec) -> PipelineSpec:
    """A single job is a pipeline of one stage, named after its kind."""
    if isinstance(spec, PipelineSpec):
        return spec
    stage = spec.kind.replace("_", "-")
    if isinstance(spec, OneJob):
        name, store = spec.name, spec.store
        plain = spec.model_dump_json(exclude=set(OneJob.model_fields), exclude_unset=True)
        job: JobSpec = _PLAIN[spec.kind].model_validate_json(plain)
        return PipelineSpec(name=name or stage, store=store, stages={stage: job})
    return PipelineSpec(name=stage, stages={stage: spec})


_PLAIN: dict[str, type[JobSpec]] = {
    "extract": ExtractSpec,
    "train_sae": TrainSaeSpec,
    "import_sae": ImportSaeSpec,
    "sae_features": SaeFeaturesSpec,
    "selftest": SelftestSpec,
}
