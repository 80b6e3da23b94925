"""Publishes texts about features of an SAE, their scores and the chosen ones, as explain and score_explanations would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.stores.base import Store
from jobs.explained import Variant, about
from schemas.plans import Plan, StageSpec
from tests.made_up_descriptions import Row, publish_rows

MODEL, SITE, VLM = "demo:clip-p8", "resid_post.3@patch", "demo:llava-p8"
SAE = "5ae" + "0" * 17
STEERING = Variant(VLM, "steering", "none", "sae", "all", "auto", "token_norm")
TOPK = Variant(VLM, "topk", "masks", "sae", "none", "0", "token_norm")
RANDOM = STEERING._replace(direction="random")
Texts = Mapping[int, str | None]


def explanations_stage(variant: Variant, model: str = MODEL, site: str = SITE, sae: str = SAE) -> StageSpec:
    """What the stage of one variant is called."""
    params: dict[str, Any] = {"site": site, **variant._asdict()}
    return StageSpec(
        kind="explain",
        method=1,
        subject=model,
        output="explanations",
        params=params,
        inputs={"sae": sae, "features": "f"},
    )


def publish_texts(store: Store, variant: Variant, texts: Texts, **stage: Any) -> Plan:
    """Feature -> its text by one variant; None is a refused one."""
    named = explanations_stage(variant, **stage)
    rows = [
        {
            **about(named), **variant._asdict(), "feature": feature, "sequence": 0, "alpha": 1.0, "strength": 2.0,
            "alpha_rel": 0.5, "realised": 1.0, "k_eff": 0, "full_masks": 0, "image_ids": [], "seed": None, "text": text,
            "raw_text": text or "Sorry", "n_tokens": 3, "mean_logprob": -0.1, "status": "ok" if text else "refused",
            "prompt_sha256": "0" * 64, "is_validation": False,
        }
        for feature, text in texts.items()
    ]  # fmt: skip
    return publish_rows(store, named, {"explanations": rows})


Chosen = tuple[int, Variant, str, str, float | None]
"""Feature, variant, vote (masks or heatmaps), text, IoU."""


def publish_summary(
    store: Store, explained: Sequence[Plan], chosen: Sequence[Chosen], scored: Sequence[Chosen] = ()
) -> Plan:
    """The stage that chooses texts of `explained`; `scored` are texts that have scores beside the chosen ones."""
    first = explained[0].stage
    inputs = {"sae": first.inputs["sae"], **{f"explanations.{n}": plan.digest for n, plan in enumerate(explained)}}
    params: dict[str, Any] = {
        "site": first.params["site"],
        "vlm": VLM,
        "chosen": [list(map(str, one)) for one in chosen],
    }
    stage = StageSpec(
        kind="score_explanations", method=1, subject=first.subject, output="summary", params=params, inputs=inputs
    )
    seen = {(feature, variant): (text, iou) for feature, variant, _, text, iou in [*chosen, *scored]}
    scores = [_score(stage, feature, variant, text, iou) for (feature, variant), (text, iou) in seen.items()]
    tables = {"explanation_scores": scores, "selected_explanations": [_choice(stage, *one) for one in chosen]}
    return publish_rows(store, stage, tables)


def _of(stage: StageSpec, feature: int, variant: Variant) -> Row:
    return {**about(stage), **variant._asdict(), "feature": feature, "sequence": 0}


def _score(stage: StageSpec, feature: int, variant: Variant, text: str, iou: float | None) -> Row:
    none = dict.fromkeys(("clip", "synthetic", "auroc", "named", "abstraction", "context"))
    return {**_of(stage, feature, variant), **none, "alpha": 1.0, "status": "ok", "text": text, "iou": iou}


def _choice(stage: StageSpec, feature: int, variant: Variant, vote: str, text: str, iou: float | None) -> Row:
    none = dict.fromkeys(("clip", "synthetic", "abstraction", "context"))
    found = {"vote": vote, "text": text, "mean_rank": 1.0, "is_tie": False, "n_methods": 2, "iou": iou, "passed": True}
    return {**_of(stage, feature, variant), **none, **found}
