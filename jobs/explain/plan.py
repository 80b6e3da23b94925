"""Explain cells to plans: one stage per SAE, method, masking, direction and alpha, and those that choose alphas; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue

from jobs.activations import get_facts, model_digest
from jobs.explain.asked import AUTO
from jobs.explain.cost import estimate
from jobs.explain.source import Source, find_sources, get_vlm, vlm_forward
from jobs.model_folders import check_folder
from jobs.protocol import Cell, Known
from miclip_core.explain.prompts import HEATMAPS, MASKS, STEERING
from schemas.base import digest
from schemas.explain_specs import SEES_IMAGES, STEERS, ExplainMethod, ExplainSpec, Masking
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec

__all__ = ["ARTIFACTS", "TABLES", "estimate", "make_plans"]

METHOD = 1
EXPLAIN, TRY, CHOOSE = "explain", "try", "choose"
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "explanations": {EXPLAIN: ("explanations",)},
    "alphas": {TRY: (), CHOOSE: ("explanation_alphas",)},
}
"""What is tried only goes on to the choice."""
ARTIFACTS: dict[str, tuple[str, ...]] = {"explanations": (), "alphas": ()}
NO_MASKING = "none"


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of every way to explain the features of every SAE that is read, after those that choose their alphas.

    Raises:
        NotInspected: a model is not known yet. NoLanguageModel: there is no model that writes text.
        BadSpec, NotTheTower, EditNotRead: as `find_sources`.
    """
    facts, vlm = get_facts(cell, known), get_vlm(cell, known)
    assert isinstance(cell.spec, ExplainSpec)
    if cell.spec.chooses_alpha:
        check_folder(cell.name, "segmenter", cell.spec.segmenter)
    planner = _Planner(cell, known, facts, vlm)
    sources = find_sources(cell, known, facts, vlm)
    return tuple(plan for source in sources for plan in planner.plans(source))


class _Planner:
    """What all stages of one cell share."""

    def __init__(self, cell: Cell, known: Known, facts: ModelFacts, vlm: ModelFacts) -> None:
        assert isinstance(cell.spec, ExplainSpec)
        self.spec, self._known, self._facts = cell.spec, known, facts
        self._vlm, self._vlm_digest = vlm.model, model_digest(vlm)
        self._same: dict[str, JsonValue] = {
            "geometry": facts.geometry.model_dump(mode="json"),
            "vlm": vlm_forward(vlm, cell.spec.dtype).model_dump(mode="json"),
            "batch_features": cell.spec.batch_features,
        }

    def plans(self, source: Source) -> Iterator[Plan]:
        """Of one SAE."""
        spec, latents = self.spec, source.planned(self._facts)
        for method in dict.fromkeys(spec.methods):
            for masking in dict.fromkeys(spec.masking) if method in SEES_IMAGES else (NO_MASKING,):
                auto = self._alphas(source, latents, method, masking) if self._is_auto(method) else None
                yield from () if auto is None else (auto,)
                for direction in dict.fromkeys(spec.direction) if method in STEERS else ("sae",):
                    for alpha in self._asked_alphas(method):
                        stage = self._explanations(source, method, masking, direction, alpha, auto)
                        rows = min(len(spec.features) or latents, latents, spec.most or latents)
                        yield self._plan(source, stage, [(EXPLAIN, rows, spec.shard_features)])

    def _is_auto(self, method: ExplainMethod) -> bool:
        return method in STEERS and self.spec.alpha == AUTO

    def _asked_alphas(self, method: ExplainMethod) -> tuple[str, ...]:
        if method not in STEERS:
            return ("0",)
        return (AUTO,) if isinstance(self.spec.alpha, str) else tuple(map(_number, self.spec.alpha))

    # ---------------------------------------------------------------- stages

    def _alphas(
        self,
        source: Source,
        latents: int,
        method: ExplainMethod,
        masking: Masking | str,
    ) -> Plan:
        """The choice of an alpha for the features' own directions, which controls use as well."""
        spec = self.spec
        folder = spec.segmenter.removeprefix("file:")
        is_folder = spec.segmenter != "truth"
        params = self._params(source, method, masking, "sae", AUTO) | {
            "alphas": [float(_number(alpha)) for alpha in sorted(spec.alpha_grid)],
            "k": spec.k,
            "segmenter": self._known.files[folder] if is_folder else spec.segmenter,
            "masks_scored": spec.masks_scored,
        }
        stage = self._stage(source, "alphas", params, {})
        rows = max(1, min(latents // 2, spec.validation))  # as many as `choose_validation` takes if all are active
        rounds = [(TRY, rows, spec.shard_features), (CHOOSE, 1, 1)]
        return self._plan(source, stage, rounds, {"segmenter": spec.segmenter})

    def _explanations(
        self,
        source: Source,
        method: ExplainMethod,
        masking: Masking | str,
        direction: str,
        alpha: str,
        auto: Plan | None,
    ) -> StageSpec:
        spec = self.spec
        params = self._params(source, method, masking, direction, alpha)
        params |= {"features": list(spec.features), "most": spec.most, "sequences": spec.sequences}
        return self._stage(source, "explanations", params, {} if auto is None else {"alphas": auto.digest})

    def _params(
        self, source: Source, method: ExplainMethod, masking: Masking | str, direction: str, alpha: str
    ) -> dict[str, JsonValue]:
        """What both outputs need to know, and nothing else: another setting of another method changes no digest."""
        spec = self.spec
        blank = spec.blank if method == "steering" else None
        draws = direction == "random" or blank == "noise" or spec.decoding == "sample"
        positions = {"topk": "none", "steering": spec.steered, "informed": spec.informed}[method]
        unit = spec.alpha_unit if method in STEERS else "activation"
        words = [method, masking if method in SEES_IMAGES else None, positions if method in STEERS else None]
        words += [direction, f"alpha {alpha}", unit] if method in STEERS else []
        return {
            "site": source.tokens.site,
            "vlm": self._vlm,
            "variant": " ".join(word for word in words if word),
            "method": method,
            "masking": masking,
            "direction": direction,
            "positions": positions,
            "alpha_asked": alpha,
            "alpha_unit": unit,
            "prompt": self._prompt(masking),
            "k": spec.k if method in SEES_IMAGES else None,
            "operation": spec.operation if method in STEERS else None,
            "blank": blank,
            "validation": spec.validation if alpha == AUTO else None,
            "generation": self._generation(),
            "seed": spec.seed if draws else None,
            "dtype": spec.dtype,
            **({} if spec.dtype == "fp32" else {"batch_features": spec.batch_features}),  # shapes round short numbers
        }

    def _prompt(self, masking: Masking | str) -> str:
        spec = self.spec
        own = {NO_MASKING: spec.steering_prompt, "masks": spec.masks_prompt, "heatmaps": spec.heatmaps_prompt}
        usual = {NO_MASKING: STEERING, "masks": MASKS, "heatmaps": HEATMAPS}
        return own[masking] or usual[masking]

    def _generation(self) -> dict[str, JsonValue]:
        spec = self.spec
        greedy: dict[str, JsonValue] = {"max_new_tokens": spec.max_new_tokens, "sample": spec.decoding == "sample"}
        if spec.decoding == "greedy":
            return greedy
        return greedy | {"temperature": spec.temperature, "top_p": spec.top_p, "top_k": spec.top_k}

    def _stage(self, source: Source, output: str, params: dict[str, JsonValue], more: dict[str, str]) -> StageSpec:
        inputs = {"features": source.stage.digest, "sae": source.sae, "index": source.forward.index}
        return StageSpec(
            kind="explain",
            method=METHOD,
            subject=source.stage.subject,
            output=output,
            params=params,
            inputs={**inputs, "vlm": self._vlm_digest, **more},
        )

    def _plan(
        self,
        source: Source,
        stage: StageSpec,
        rounds: list[tuple[str, int, int]],
        more: dict[str, JsonValue] | None = None,
    ) -> Plan:
        """Plans of one SAE whose features, shown images and passes are alike have one worker."""
        spec = self.spec
        same: list[Any] = [stage.inputs["features"], self._vlm_digest, spec.dtype, stage.output]
        same += [list(spec.features), spec.most, spec.validation, spec.k]
        effort: dict[str, JsonValue] = {
            "forward": source.forward.model_dump(mode="json"),
            **self._same,
            **(more or {}),
        }
        return Plan(
            stage=stage,
            rounds=tuple(Round(name=name, rows=rows, shard_rows=each) for name, rows, each in rounds),
            worker=f"explain {self._vlm} {digest(same)}",
            effort=effort,
        )


def _number(alpha: float) -> str:
    """The shortest text that reads back as this number: 1, 1.5, 0.25."""
    return repr(float(alpha) + 0.0).removesuffix(".0")
