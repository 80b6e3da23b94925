"""The mine_rosetta worker: what each of its outputs does lies in a module of its own, loaded when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from jobs.protocol import Inputs, Setting, Worker
from jobs.threads import use_cpus

_MODULES = {
    "units": "jobs.mine_rosetta.units_work",
    "pair": "jobs.mine_rosetta.pair_work",
    "zoo": "jobs.mine_rosetta.zoo_work",
    "dictionary": "jobs.mine_rosetta.dictionary_work",
}


def open_worker(setting: Setting, inputs: Inputs) -> Worker:
    """The worker of the output that all plans of a setting share."""
    use_cpus(setting)
    module = import_module(_MODULES[setting.plans[0].stage.output])
    return cast(Worker, module.open_worker(setting, inputs))
