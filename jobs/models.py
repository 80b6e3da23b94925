"""The model, vision-language model or generator of a plan on a device, if it is still the one that was inspected."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jobs.activations import Forward
from jobs.locate import locate_through
from jobs.protocol import Inputs
from miclip_core.explain.vlm import Vlm, load_vlm
from miclip_core.generate.generator import Generator
from miclip_core.generate.load import load_generator
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import WeightsMissing
from schemas.models import ModelFacts
from schemas.refs import ModelRef, Site

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_model(forward: Forward, inputs: Inputs, device: str, sites: Sequence[str]) -> VisionModel:
    """The model of a forward pass, with the plain modules that `sites` name.

    Raises:
        WeightsMissing: the checkpoint changed since.
    """
    modules = tuple(sorted({Site.parse(site).path for site in sites if site.startswith("module:")}))
    if device == "cuda":
        _compute_exactly()
    model = load_model(
        _ref(forward),
        locate=locate_through(inputs),
        device=device,
        dtype=DTYPES[str(forward.params["dtype"])],
        modules=modules,
    )
    _check_files(forward, model.facts)
    return model


def open_vlm(forward: Forward, inputs: Inputs, device: str) -> Vlm:
    """The vision-language model of a forward pass, whole, in the pass's precision.

    Raises:
        WeightsMissing: the checkpoint changed since. NoLanguageModel: the model writes no text.
    """
    if device == "cuda":
        _compute_exactly()
    vlm = load_vlm(_ref(forward), locate_through(inputs), device, DTYPES[str(forward.params["dtype"])])
    _check_files(forward, vlm.tower.facts)
    return vlm


def open_generator(forward: Forward, inputs: Inputs, device: str) -> Generator:
    """The generator of a forward pass, in fp32.

    Raises:
        WeightsMissing: the checkpoint changed since. NoGenerator: the model draws no images.
    """
    if device == "cuda":
        _compute_exactly()
    generator = load_generator(_ref(forward), locate_through(inputs), device)
    _check_files(forward, generator.facts)
    return generator


def _ref(forward: Forward) -> ModelRef:
    """The model at the revision that was inspected."""
    ref = ModelRef.parse(forward.model)
    if ref.location is None and forward.effort["revision"]:
        return ref.model_copy(update={"revision": forward.effort["revision"]})
    return ref


def _check_files(forward: Forward, found: ModelFacts) -> None:
    wanted = str(forward.effort["files"])
    if found.files_sha256 != wanted:
        raise WeightsMissing(
            f"{forward.model}: its weights, configuration or tokeniser changed since it was inspected (expected sha256 "
            f"{wanted[:12]}..., found {found.files_sha256[:12]}...); run the spec again to inspect it anew"
        )


def notes_of_cut(model: VisionModel, texts: Sequence[str]) -> list[str]:
    """What people should know of texts that a model's text tower does not see to their end: one note, or none."""
    if model.text is None or not (cut := model.text.cut(texts)):
        return []
    return [
        f"{len(cut)} of {len(texts)} texts are longer than the context of {model.facts.model} and lose their end, the first is "
        f"{cut[0][:60]!r}"
    ]


def _compute_exactly() -> None:
    """Let fp32 mean fp32 on a GPU, and equal input give equal bits: no TF32, no kernel chosen by timing."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
