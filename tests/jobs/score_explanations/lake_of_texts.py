"""A lake with features of a made-up SAE on two sets of demo images, and texts about them that a test wrote."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

from cluster.planned import plan_pipeline
from jobs.explained import Variant, about
from jobs.protocol import Cell, Known
from jobs.score_explanations.plan import make_plans
from miclip_core.zoo.load import inspect_model
from schemas.explain_specs import ScoreExplanationsSpec
from schemas.models import ModelFacts
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Round, StageSpec
from schemas.refs import ModelRef
from tests.corridor import Ran
from tests.jobs.sae_features.lake_of_saes import MODEL, make_sae, publish_sae
from tests.lakes import Lake
from tests.made_up_descriptions import Row, publish_rows, rows_of, run_plans

CLIP, VLM, LATENTS, SAE_SEED = "demo:clip-p8-b", "demo:llava-p8", 24, 3
SHOWN, SCORED = "world:seed=0,n=40", "world:seed=1,n=48"
TOPK = Variant(VLM, "topk", "masks", "sae", "none", "0", "activation")
HEAT = TOPK._replace(masking="heatmaps")
STEERING = Variant(VLM, "steering", "none", "sae", "all", "2", "p90")
INFORMED = Variant(VLM, "informed", "masks", "sae", "active", "2", "p90")
WORDS = ("red", "blue", "striped", "grey background", "circle", "star", "dotted", "white background")
Texts = Mapping[int, str | None]
SPEC: dict[str, Any] = {
    "top": 3, "on_shared": "leave_out", "maker_images": 2, "least_auroc": 0.6, "agreement": [0.0, 0.2, 0.4, 0.6, 0.8], "batch_size": 8, "seed": 3,
    "shard_features": 64,
}  # fmt: skip


@cache
def facts(model: str) -> ModelFacts:
    """What inspection says of a demo model."""
    return inspect_model(ModelRef.parse(model))


def texts_of(
    variant: Variant, without: Sequence[int] = (), features: Sequence[int] = range(12)
) -> dict[int, str | None]:
    """Feature -> a text that depends on the way to explain; None, a refusal, for some."""
    shift = {"topk": 0, "steering": 1, "informed": 3}[variant.method] + (variant.masking == "heatmaps")
    words = {feature: WORDS[(feature * (1 + shift) + shift) % len(WORDS)] for feature in features}
    made = {
        feature: word if "background" in word else f"A {word} object" if word not in ("circle", "star") else f"A {word}"
        for feature, word in words.items()
    }
    return {feature: None if feature in without else text for feature, text in made.items()}


class TextLake:
    """Features on the images that were shown and on those to score on, published once."""

    def __init__(self, folder: Path, scored: str = SCORED, labels: str = "none", **features: Any) -> None:
        self.lake = Lake(folder)
        self.store = self.lake.store
        sae = publish_sae(self.lake, make_sae(SAE_SEED, LATENTS))
        each = {
            "kind": "sae_features", "saes": [sae], "top_k": 5, "rank_by": "mean", "round_to": "fp32", "batch_size": 8,
            "min_positives": 3, "resources": {"workers": 1}, **features,
        }  # fmt: skip
        stages = {
            "shown": {**each, "images": {"ref": SHOWN}},
            "scored": {**each, "images": {"ref": scored, "labels": labels}},
        }
        data = {"kind": "pipeline", "name": "t", "matrix": {"model": [MODEL]}, "stages": stages}
        spec = PipelineSpec.model_validate(data, strict=False)
        report = self.lake.run(spec)
        assert report.exit_code == 0, report.failures
        planned = plan_pipeline(spec, self.store)
        self.images = planned.known.images
        (self.shown,), (self.scored,) = ([*cell.plans] for cell in planned.cells)

    def copy(self, folder: Path) -> TextLake:
        """The same lake as it is now, in another place."""
        shutil.copytree(self.lake.uri, folder)
        other = copy(self)
        other.lake = Lake(folder)
        other.store = other.lake.store
        return other

    def explain(
        self, variant: Variant, texts: Texts, validation: Sequence[int] = (), sequences: int = 1, rows: int = LATENTS, **params: Any
    ) -> Plan:  # fmt: skip
        """Publish texts as a stage of explain would have; the plan has as many rows as features may be there."""
        named = {"site": self.shown.stage.params["site"], **variant._asdict(), "texts": list(map(str, texts.items()))}
        inputs = {
            "features": self.shown.digest,
            "sae": self.shown.stage.inputs["sae"],
            "index": self.shown.stage.inputs["labels"],
        }
        stage = StageSpec(
            kind="explain", method=1, subject=MODEL, output="explanations", inputs=inputs,
            params={
                **named, "features": [*texts], "most": None, "validation": list(validation), "sequences": sequences, **params,
            },
        )  # fmt: skip
        rows_ = [
            _explanation(stage, variant, feature, text, sequence, feature in validation)
            for feature, text in texts.items()
            for sequence in range(sequences)
        ]
        plan = publish_rows(self.store, stage, {"explanations": rows_})
        rounds = (Round(name="explain", rows=rows, shard_rows=8),)
        return plan.model_copy(update={"rounds": rounds, "effort": {"forward": self.shown.effort["forward"]}})

    def cell(self, explained: Sequence[Plan], features: Plan | None = None, **spec: Any) -> Cell:
        """A stage that reads these texts and the features to score on."""
        reads = {f"texts{n}": (plan,) for n, plan in enumerate(explained)}
        reads["features"] = (features or self.scored,)
        made = ScoreExplanationsSpec.model_validate(
            {"kind": "score_explanations", "reads": [*reads], **SPEC, **spec}, strict=False
        )
        return Cell("judge", made, MODEL, clip=CLIP if made.needs_clip else None, reads=reads)

    def known(self, *models: str, files: Mapping[str, str] = {}) -> Known:
        """What planning knows."""
        return Known({model: facts(model) for model in (MODEL, CLIP, *models)}, self.images, files)

    def plans(
        self, explained: Sequence[Plan], features: Plan | None = None, files: Mapping[str, str] = {}, **spec: Any
    ) -> tuple[Plan, ...]:
        """All plans of such a stage. files: sha256 of the folders that the spec names."""
        labels = str(spec.get("labels"))
        asked = [labels.removeprefix("vlm:")] if labels.startswith("vlm:") else []
        return make_plans(self.cell(explained, features, **spec), self.known(*asked, files=files))

    def score(self, plans: Sequence[Plan]) -> Ran:
        """Run them in this process, the measures before the summary."""
        ran = run_plans(self.store, [plan for plan in plans if plan.stage.output != "summary"])
        if ran.board.failed:
            return ran
        last = run_plans(self.store, [plan for plan in plans if plan.stage.output == "summary"])
        return Ran(last.board, ran.events + last.events)

    def rows(self, plans: Sequence[Plan], table: str, output: str | None = None) -> list[Row]:
        """Rows of a table of those of the plans that make it."""
        found = []
        for plan in plans:
            if output in (None, plan.stage.output) and table in _tables(plan):
                found += rows_of(self.store, plan, table)
        return found


def _tables(plan: Plan) -> set[str]:
    from jobs.kinds import get_all_tables

    return set(get_all_tables(plan))


def _explanation(
    stage: StageSpec, variant: Variant, feature: int, text: str | None, sequence: int, is_validation: bool
) -> Row:  # fmt: skip
    said = f"{text} and a {WORDS[sequence]} object" if text and sequence else text
    return {
        **about(stage), **variant._asdict(), "feature": feature, "sequence": sequence, "alpha": 2.0, "strength": 1.0,
        "alpha_rel": 0.5, "realised": 1.0, "k_eff": 3, "full_masks": 0, "image_ids": [], "seed": None, "text": said,
        "raw_text": said or "Sorry, I cannot", "n_tokens": 3, "mean_logprob": -0.1,
        "status": "ok" if text else "refused", "prompt_sha256": "0" * 64, "is_validation": is_validation,
    }  # fmt: skip
