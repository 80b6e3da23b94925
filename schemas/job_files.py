"""What a spec file may hold: a pipeline, or one job that stands alone, which is a pipeline of one stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import Frozen
from schemas.cells import ForwardCell, Name
from schemas.extract_specs import ExtractSpec
from schemas.pipeline_spec import PipelineSpec
from schemas.sae_specs import ImportSaeSpec, SaeFeaturesSpec, TrainSaeSpec
from schemas.selftest_specs import SelftestSpec
from schemas.specs import JobSpec


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
