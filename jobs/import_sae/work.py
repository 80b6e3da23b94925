"""The import_sae worker: reads one foreign SAE, publishes it as ours, then measures it as trained ones are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from jobs.models import open_model
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_evaluation import Evaluation, Measured
from jobs.sae_files import WEIGHTS, hash_tree
from jobs.sae_tokens import tokens_of
from jobs.tokens.sources import LiveSource, Source, TableSource
from miclip_core.sae.foreign import load_foreign
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae, save_sae
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadRef, BadSae, WeightsMissing
from schemas.plans import Plan, Shard


class ImportSaeWorker:
    """Holds the plan of one SAE; `notes` says what people should know, such as a batch that was halved."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        # sums are cut by threads, so their last bits follow the stated CPUs and not what the machine happens to have
        torch.set_num_threads(max(1, int(setting.resources.cpus)))
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Our file of the SAE, or its row of sae_summary."""
        self.notes.clear()
        for plan in (self._plans[stage] for stage in stages):
            if plan.rounds[shard.round].name == "import":
                yield Artifact(plan.digest, WEIGHTS, save_sae(read_planned(plan, inputs)))
            else:
                yield from self._evaluate(plan, inputs)

    def _evaluate(self, plan: Plan, inputs: Inputs) -> Iterator[Part]:
        tokens, threads = tokens_of(plan), self._setting.resources.decode_threads
        model = open_model(tokens.forward, inputs, self._setting.device, [tokens.site])
        source = self._source(plan, model, inputs)
        evaluation = Evaluation(tokens, plan.stage.params, source, model, inputs, threads)
        sae = load_sae(inputs.artifact(plan.digest, 0, WEIGHTS)).to(self._setting.device)
        yield from evaluation.measure([Measured(plan, sae)])
        if isinstance(source, LiveSource):
            self.notes += source.notes

    def _source(self, plan: Plan, model: VisionModel, inputs: Inputs) -> Source:
        tokens = tokens_of(plan)
        if tokens.stored:
            return TableSource(inputs, [tokens])
        return LiveSource(model, inputs, [tokens], self._setting.resources.decode_threads)


def read_planned(plan: Plan, inputs: Inputs) -> Sae:
    """The SAE of a plan in float32, with the model and site that the spec gives it.

    Raises:
        BadRef: one file is named where a folder makes the SAE.
        WeightsMissing: the files are not those that were planned with.
        BadSae: its width is not that of the site. Others: as `load_foreign`.
    """
    location, params = str(plan.effort["location"]), plan.stage.params
    path = inputs.local_path(location if "://" in location else f"file:{location}")
    if path.is_file() and params["format"] != "miclip":
        raise BadRef(
            f"{location} is one file of a {params['format']} SAE; name the folder that holds it and its settings, so that a "
            "change of either makes another import"
        )
    found = hash_tree(path)
    if found != params["sha256"]:
        raise WeightsMissing(
            f"{location}: its files changed since the run was planned (expected sha256 {str(params['sha256'])[:12]}..., "
            f"found {found[:12]}...); run the spec again"
        )
    sae = load_foreign(str(params["format"]), path)
    if sae.config.d != plan.effort["width"]:
        raise BadSae(
            f"{location}: expected d={plan.effort['width']}, the width of {params['site']} of {plan.stage.subject}, got "
            f"d={sae.config.d}; name the site and the model that this SAE was trained on"
        )
    return sae.to(torch.float32).with_config(model=plan.stage.subject, site=params["site"])


def open_worker(setting: Setting, inputs: Inputs) -> ImportSaeWorker:
    """Nothing is loaded before the first shard."""
    return ImportSaeWorker(setting)
