"""One model to one stage of one shard; its digest changes when its files or the libraries that build it do."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.protocol import Estimate, Files, Known
from miclip_core.zoo.shipped import find_folder
from schemas.errors import KeyMissing, UnknownModel
from schemas.plans import Plan, Round, StageSpec
from schemas.refs import ModelRef

METHOD = 2
TABLES = {"models": {"inspect": ("models",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"models": ()}
LIBRARIES = ("torch", "open_clip_torch", "transformers", "timm")


def make_inspect_plan(model: str, stamp: list[str], modules: tuple[str, ...] = ()) -> Plan:
    """The plan that inspects one model; `modules` are raw module sites whose shape must be recorded."""
    params: dict[str, Any] = {
        "model": model,
        "stamp": list(stamp),
        "modules": list(modules),
        "libraries": [f"{name} {_version(name)}" for name in LIBRARIES],
    }
    return Plan(
        stage=StageSpec(kind="inspect", method=METHOD, subject=model, output="models", params=params),
        rounds=(Round(name="inspect", rows=1, shard_rows=1),),
        worker=f"inspect {model}",  # not shared: a model that cannot be inspected must not fail the others
    )


def make_stamp(model: str, files: Files) -> list[str]:
    """What tells one state of a model's files from another without reading them; hub refs are named by their revision.

    Raises:
        UnknownModel: the folder or file that the ref names is not there, or there is no such demo model.
    """
    ref = ModelRef.parse(model)
    location = ref.location
    if ref.source == "demo":
        location = f"file:{find_folder(ref)}"
    if location is None:
        return []
    path = location.removeprefix("file:")
    try:
        found = files.list(path)
    except KeyMissing:
        found = []
    if not found:
        raise UnknownModel(f"{model}: nothing at {path}; expected a folder with weights and config, or a weights file")
    return [f"{f.uri.removeprefix(path).lstrip('/')} {f.size} {f.stamp}" for f in found]


def estimate(plan: Plan, known: Known) -> Estimate:
    """Reading the weights once; too little to count."""
    return Estimate()


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
