"""The measure_sae worker: SAEs of one model, on the held-out images of their sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.measure_sae.evaluation import Evaluation, Measured
from jobs.models import open_model
from jobs.protocol import Inputs, Keep, Part, Setting
from jobs.sae_files import WEIGHTS
from jobs.sae_measurement import OF_THE_SAE
from jobs.sae_tokens import tokens_of
from jobs.threads import use_cpus
from jobs.tokens.sources import LiveSource, Source, TableSource
from miclip_core.sae.weights import load_sae
from schemas.base import canonical_json
from schemas.plans import Plan, Shard, load_json
from schemas.sae import SaeSettings


class MeasureSaeWorker:
    """Holds one model; `notes` says what people should know, such as a batch that was halved."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        use_cpus(setting)
        tokens = [tokens_of(plan) for plan in setting.plans]
        self._model = open_model(tokens[0].forward, inputs, setting.device, [t.site for t in tokens])
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """A row of sae_summary for every SAE that asks."""
        self.notes.clear()
        alike: dict[str, list[Plan]] = {}
        for plan in (self._plans[stage] for stage in stages):
            about = {name: value for name, value in plan.stage.params.items() if name not in OF_THE_SAE}
            alike.setdefault(canonical_json([about, plan.stage.inputs.get("labels")]), []).append(plan)
        for plans in alike.values():
            source = self._make_source(plans[0], inputs)
            evaluation = Evaluation(
                tokens=tokens_of(plans[0]),
                params=plans[0].stage.params,
                source=source,
                model=self._model,
                inputs=inputs,
                threads=self._setting.resources.decode_threads,
            )
            yield from evaluation.measure([self._load(plan, inputs) for plan in plans])
            if isinstance(source, LiveSource):
                self.notes += source.notes

    def _make_source(self, plan: Plan, inputs: Inputs) -> Source:
        tokens = tokens_of(plan)
        if tokens.stored:
            return TableSource(inputs, [tokens])
        return LiveSource(self._model, inputs, [tokens], self._setting.resources.decode_threads)

    def _load(self, plan: Plan, inputs: Inputs) -> Measured:
        """The weights, and what only its training can say."""
        stage = plan.stage.inputs["sae"]
        sae = load_sae(inputs.published(stage, WEIGHTS)).to(self._setting.device)
        if "sae" not in plan.stage.params:
            return Measured(plan, sae)
        settings = load_json(SaeSettings, canonical_json(plan.stage.params["sae"]))
        columns = {
            "l1": settings.l1,
            "lr": settings.lr,
            "steps": settings.steps,
            "dead_at_end": _last_dead(stage, inputs),
        }
        return Measured(plan, sae, columns)


def _last_dead(stage: str, inputs: Inputs) -> int | None:
    dead: int | None = None
    for batch in inputs.table(stage, "sae_metrics", ["dead"]):
        dead = batch["dead"][-1].as_py() if len(batch) else dead
    return dead


def open_worker(setting: Setting, inputs: Inputs) -> MeasureSaeWorker:
    """Load the model onto the device the spec states."""
    return MeasureSaeWorker(setting, inputs)
