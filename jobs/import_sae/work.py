"""The import_sae worker: reads one foreign SAE and publishes it as ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from jobs.files import open_planned
from jobs.protocol import Artifact, Inputs, Keep, Setting
from jobs.sae_files import WEIGHTS
from miclip_core.sae.foreign import load_foreign
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import save_sae
from schemas.errors import BadRef, BadSae
from schemas.plans import Plan, Shard


class ImportSaeWorker:
    """Holds the plan of one SAE."""

    def __init__(self, setting: Setting) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Artifact]:
        """Our file of the SAE."""
        for plan in (self._plans[stage] for stage in stages):
            yield Artifact(plan.digest, WEIGHTS, save_sae(read_planned(plan, inputs)))


def read_planned(plan: Plan, inputs: Inputs) -> Sae:
    """The SAE of a plan in float32, with the model and site that the spec gives it.

    Raises:
        BadRef: one file is named where a folder makes the SAE.
        WeightsMissing: the files are not those that were planned with.
        BadSae: its width is not that of the site, or its file says that it was trained at another one. Others: as
        `load_foreign`.
    """
    location, params = str(plan.effort["location"]), plan.stage.params
    path = open_planned(inputs, location, str(params["sha256"]))
    if path.is_file() and params["format"] != "miclip":
        raise BadRef(
            f"{location} is one file of a {params['format']} SAE; name the folder that holds it and its settings, so that a "
            "change of either makes another import"
        )
    sae = load_foreign(str(params["format"]), path)
    try:
        sae.config.check(str(params["site"]), int(str(plan.effort["width"])))
    except BadSae as error:
        raise BadSae(f"{location}, as one of {plan.stage.subject}: {error}") from None
    return sae.to(torch.float32).with_config(model=plan.stage.subject, site=params["site"])


def open_worker(setting: Setting, inputs: Inputs) -> ImportSaeWorker:
    """Nothing is loaded before the first shard."""
    return ImportSaeWorker(setting)
