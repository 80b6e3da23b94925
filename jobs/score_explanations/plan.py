"""Score_explanations cells to plans: a stage per measure and way to explain, one of random images, one summary; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint, get_facts, model_digest
from jobs.explained import Explained
from jobs.protocol import Cell, Known
from jobs.score_explanations.checks import check_scored, find_clip, find_labeller
from jobs.score_explanations.cost import estimate
from jobs.score_explanations.scored import Scored, find_scored
from jobs.text_encoders import find_encoder
from schemas.base import canonical_json, digest
from schemas.explain_specs import ScoreExplanationsSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec

__all__ = ["ARTIFACTS", "TABLES", "estimate", "make_plans"]

METHOD = 1
TABLES = {
    "iou": {"iou": ("explanation_iou",)},
    "clip": {"clip": ("explanation_clip",)},
    "synthetic": {"synthetic": ("explanation_synthetic",)},
    "naming": {"naming": ("explanation_naming",)},
    "random": {"random": ("explanation_synthetic",)},
    "summary": {
        "label": (),
        "summarise": (
            "explanation_scores",
            "explanation_summary",
            "explanation_tests",
            "explanation_agreement",
            "selected_explanations",
        ),
    },
}
"""A measure's round has its name, so that people see which one is at work."""
ARTIFACTS: dict[str, tuple[str, ...]] = dict.fromkeys(TABLES, ())


class _Measure(NamedTuple):
    """What a measure asks for beside texts and features: what decides it, digests of what it reads, and how it is done here."""

    params: dict[str, JsonValue]
    inputs: dict[str, str]
    effort: dict[str, JsonValue]


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """Every measure of every way to explain, random images to compare made ones with, and a summary per SAE and model that wrote.

    Raises:
        NotInspected: a model is not known yet.
        BadSpec: nothing is read that can be scored, or scored on images that no text was made from, or a measure lacks
            what it needs.
    """
    return _Planner(cell, known).plans()


class _Planner:
    """What all stages of one cell share."""

    def __init__(self, cell: Cell, known: Known) -> None:
        assert isinstance(cell.spec, ScoreExplanationsSpec)
        self.cell, self.spec, self.known = cell, cell.spec, known
        self.facts = get_facts(cell, known)
        self.clip, self.labeller = find_clip(cell, known), find_labeller(cell, known)

    def plans(self) -> tuple[Plan, ...]:
        """Of each SAE."""
        return tuple(plan for scored in find_scored(self.cell) for plan in self._of_sae(scored))

    def _of_sae(self, scored: Scored) -> list[Plan]:
        check_scored(self.cell, self.known, self.facts, scored)
        by_metric: dict[str, list[Plan]] = {
            metric: self._of_metric(metric, scored) for metric in dict.fromkeys(self.spec.metrics)
        }
        random = {"random": self._random(scored)} if "synthetic" in by_metric else {}
        summaries = [
            self._summary(scored, vlm, by_metric, random)
            for vlm in dict.fromkeys(one.variant.vlm for one in scored.explained)
        ]
        return [*(plan for plans in by_metric.values() for plan in plans), *random.values(), *summaries]

    # ---------------------------------------------------------------- measures

    def _of_metric(self, metric: str, scored: Scored) -> list[Plan]:
        """A stage per way to explain; their shards are the same features, looked at together."""
        params, inputs, effort = {
            "iou": self._iou, "clip": self._clip, "synthetic": self._synthetic, "naming": self._naming,
        }[metric](scored)  # fmt: skip
        return [
            self._plan(
                metric,
                scored,
                {**one.variant._asdict(), "variant": str(one.variant), "shown_rows": [one.rows], **params},
                {"explanations.0": one.digest, "shown.0": one.index, **inputs},
                effort,
                (self._buckets(metric, [one]),),
                shares=[scored.features.digest, one.index, one.rows, params],
            )
            for one in scored.explained
        ]

    def _iou(self, scored: Scored) -> _Measure:
        segmenter, folder = self._folder(self.spec.segmenter)
        params: dict[str, JsonValue] = {
            **self._top(scored),
            "segmenter": segmenter,
            "masks_scored": self.spec.masks_scored,
        }
        return _Measure(params, {}, {**self._pixels(scored), "folder": folder})

    def _clip(self, scored: Scored) -> _Measure:
        assert self.clip is not None
        params: dict[str, JsonValue] = {
            **self._top(scored),
            "clip": self.clip.model,
            "clip_view": self.spec.clip_view,
        }
        effort = {**self._pixels(scored), "clip": self._alone(self.clip, "fp32")}
        return _Measure(params, {"clip": model_digest(self.clip)}, effort)

    def _synthetic(self, scored: Scored) -> _Measure:
        spec = self.spec
        maker, folder = self._folder(spec.maker)
        params: dict[str, JsonValue] = {"maker": maker, **self._codes(scored)}
        if folder is not None:
            params |= {
                "maker_prefix": spec.maker_prefix,
                "maker_steps": spec.maker_steps,
                "maker_guidance": spec.maker_guidance,
                "maker_size": spec.maker_size,
            }
        return _Measure(params, {}, {**self._pixels(scored, spec.dtype), "folder": folder})

    def _naming(self, scored: Scored) -> _Measure:
        return _Measure({"least_auroc": self.spec.least_auroc, "level": self.spec.naming_level}, {}, {})

    def _random(self, scored: Scored) -> Plan:
        """Random images for all features that are explained; in which ways does not matter to them."""
        rounds = (self._buckets("random", scored.explained),)
        wanted = sorted({one.wanted for one in scored.explained}, key=canonical_json)
        shown = sorted({(one.index, one.rows) for one in scored.explained})
        params: dict[str, JsonValue] = {
            "shown_rows": [rows for _, rows in shown],
            "wanted": [{"features": [*one.numbers], "most": one.most} for one in wanted],
            **self._codes(scored),
        }
        inputs = _numbered("described", (one.stage for one in wanted))
        inputs |= _numbered("shown", (index for index, _ in shown))
        return self._plan("random", scored, params, inputs, self._pixels(scored, self.spec.dtype), rounds)

    def _top(self, scored: Scored) -> dict[str, JsonValue]:
        """How many images a feature is scored on, of how many that there are."""
        return {"top": self.spec.top, "top_k": scored.params["top_k"]}

    def _codes(self, scored: Scored) -> dict[str, JsonValue]:
        """What decides a feature's activation on images that the SAE has not seen."""
        names = ("round_to", "first_patch", "grid")
        return {
            "maker_images": self.spec.maker_images,
            "random_seed": self.spec.seed,
            "dtype": self.spec.dtype,
            "tokens": scored.params["positions"],
            **{name: scored.params[name] for name in names},
        }

    # ---------------------------------------------------------------- summary

    def _summary(
        self, scored: Scored, vlm: str, by_metric: Mapping[str, Sequence[Plan]], random: Mapping[str, Plan]
    ) -> Plan:
        spec = self.spec
        chosen = [one.variant.vlm == vlm for one in scored.explained]
        explained = _pick(scored.explained, chosen)
        encoder = find_encoder(self.cell, self.known, spec.sentences)
        params: dict[str, JsonValue] = {
            "vlm": vlm,
            "metrics": [*sorted(spec.metrics)],
            "activation": spec.activation,
            "scored": spec.scored,
            "min_iou": spec.min_iou,
            "min_synthetic": spec.min_synthetic,
            "min_synthetic_percentile": spec.min_synthetic_percentile,
            "agreement": [*sorted(spec.agreement)],
            "sentences": encoder.files,
            "labels": spec.labels,
            "random_seed": spec.seed,
        }
        inputs = _numbered("explanations", (one.digest for one in explained))
        for metric, plans in by_metric.items():
            inputs |= _numbered(metric, (plan.digest for plan in _pick(plans, chosen)))
        inputs |= {name: plan.digest for name, plan in random.items()}
        effort: dict[str, JsonValue] = {
            "variants": [[*one.variant] for one in explained],
            "features": max(one.plan.rounds[0].rows for one in explained),
            "encoder": encoder.model_dump(mode="json"),
            "labeller": None,
        }
        if self.labeller is not None:
            inputs["labeller"], params["dtype"] = model_digest(self.labeller), spec.dtype
            effort["labeller"] = self._alone(self.labeller, spec.dtype)
        label = () if spec.labels == "none" else (self._buckets("label", explained),)
        return self._plan(
            "summary", scored, params, inputs, effort, (*label, Round(name="summarise", rows=1, shard_rows=1))
        )

    # ---------------------------------------------------------------- what they have in common

    def _plan(
        self,
        output: str,
        scored: Scored,
        params: dict[str, JsonValue],
        inputs: dict[str, str],
        effort: dict[str, JsonValue],
        rounds: tuple[Round, ...],
        shares: JsonValue = None,
    ) -> Plan:
        """shares: what the stages have in common that one worker looks at together; None for a stage of its own."""
        features = {"sae": scored.sae, "features": scored.features.digest, "index": scored.index}
        stage = StageSpec(
            kind="score_explanations",
            method=METHOD,
            subject=self.facts.model,
            output=output,
            params={"site": scored.site, "rows": scored.forward.rows, "on_shared": self.spec.on_shared, **params},
            inputs={**features, **inputs},
        )
        own = stage.digest if shares is None else digest([shares, [[r.rows, r.shard_rows] for r in rounds]])
        worker = f"score_explanations {output} {self.facts.model} {own}"
        return Plan(stage=stage, rounds=rounds, worker=worker, effort=effort)

    def _buckets(self, name: str, explained: Sequence[Explained]) -> Round:
        """As many rows as features are explained, as far as planning knows."""
        rows = max(one.plan.rounds[0].rows for one in explained)
        return Round(name=name, rows=rows, shard_rows=self.spec.shard_features)

    def _folder(self, named: str) -> tuple[str, str | None]:
        """What names a model in a digest, and where it lies; of a folder its content counts, not its place."""
        location = named.removeprefix("file:")
        if location in self.known.files and location in self.spec.folders:
            return self.known.files[location], location
        return named, None

    def _pixels(self, scored: Scored, dtype: str | None = None) -> dict[str, JsonValue]:
        """The model over the images to score on and how it sees them; dtype: of its passes, if there are any."""
        forward = scored.forward
        asked = forward.model_copy(
            update={
                "params": {**forward.params, "dtype": dtype or forward.params["dtype"]},
                "effort": {**forward.effort, "batch_size": self.spec.batch_size},
            }
        )
        return {
            "forward": asked.model_dump(mode="json"),
            "geometry": self.facts.geometry.model_dump(mode="json"),
        }

    def _alone(self, facts: ModelFacts, dtype: str) -> dict[str, JsonValue]:
        """A model over images or texts that are no image set."""
        return Forward(
            model=facts.model,
            inputs={"model": model_digest(facts)},
            params={"dtype": dtype},
            effort={"batch_size": self.spec.batch_size, **checkpoint(facts)},
        ).model_dump(mode="json")


def _pick(things: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    return [thing for thing, is_chosen in zip(things, chosen, strict=True) if is_chosen]


def _numbered(name: str, digests: Iterable[str]) -> dict[str, str]:
    """`name.0`, `name.1` ...: explained stages have an order of their own, so that of `reads` does not matter."""
    return {f"{name}.{number}": value for number, value in enumerate(digests)}
