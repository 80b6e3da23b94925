"""The spec of a stage: one of those of all kinds, and which kinds each of them reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.align_specs import AlignSpec
from schemas.concept_specs import DescribeSpec
from schemas.evaluate_specs import EvaluateSpec, GeometrySpec, TraceErrorsSpec
from schemas.explain_specs import ExplainSpec, MapExplanationsSpec, ScoreExplanationsSpec
from schemas.explorer_specs import ExplorerSpec
from schemas.extract_specs import ExtractSpec
from schemas.intervene_specs import AttentionMapsSpec, InterveneSpec
from schemas.invert_specs import InvertSpec
from schemas.probe_specs import ProbeSpec
from schemas.rosetta_specs import MineRosettaSpec
from schemas.sae_specs import ImportSaeSpec, SaeFeaturesSpec, TrainSaeSpec
from schemas.selftest_specs import SelftestSpec

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
