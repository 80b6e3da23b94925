"""overcomplete: a state dict beside `overcomplete.json`, which says what a state dict does not: the class and its arguments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.sae.foreign.convert import at_least, require_plain, with_pre_bias
from miclip_core.sae.foreign.files import (
    find,
    get,
    get_settings,
    read_settings,
    shape_of,
    take,
    write_settings,
    write_tensors,
)
from miclip_core.sae.sae import Sae
from miclip_core.zoo.checkpoint import read_checkpoint
from schemas.errors import BadRef, BadSae, ThresholdUnset, UnsafeCheckpoint, UnsupportedSae
from schemas.sae import Arch, SaeConfig

NAME = "overcomplete"
CONFIG, WEIGHTS, MEAN = "overcomplete.json", "sae.safetensors", "b_dec.safetensors"
_NAMES = (WEIGHTS, "sae.pt", "sae.pth")
_ENCODER, _DICTIONARY = "encoder.final_block.0", "dictionary"
_ARCHS: dict[str, Arch] = {"SAE": "relu", "TopKSAE": "topk", "BatchTopKSAE": "batchtopk", "JumpSAE": "jumprelu"}
_NORMS = {"l2": (2, False), "max_l2": (2, True), "l1": (1, False), "max_l1": (1, True)}
ADVICE = (
    "Where the library is installed and the file is trusted, save what it holds:\n"
    '    safetensors.torch.save_file(sae.state_dict(), "sae.safetensors")\n'
    f'    json.dump({{"class": "TopKSAE", "arguments": {{"top_k": 32}}}}, open("{CONFIG}", "w"))\n'
    f'with the class ({", ".join(_ARCHS)}), for BatchTopKSAE also "running_threshold", and name the folder of both'
)


def load(path: Path) -> Sae:
    """Read a folder with a state dict (`sae.safetensors` or `sae.pt`) and `overcomplete.json`; a whole module is refused.

    Raises:
        BadRef, BadSae: files, settings or tensors are missing or do not fit. ThresholdUnset. UnsupportedSae: another
        class. UnsafeCheckpoint: a pickled module, which is code.
    """
    file = find(path, *_NAMES)
    try:
        tensors = read_checkpoint(file)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{error}.\n{ADVICE}") from error
    if not (file.parent / CONFIG).is_file():
        raise BadRef(f"{file}: a state dict does not say of which class it is, and there is no {CONFIG}.\n{ADVICE}")
    settings_file = file.parent / CONFIG
    settings = read_settings(settings_file)
    name = get(settings, "class", str, settings_file)
    if name not in _ARCHS:
        raise UnsupportedSae(f"{settings_file}: class {name!r} is not read; expected one of {', '.join(_ARCHS)}")
    arguments = get_settings(settings, "arguments", settings_file)
    m, d = shape_of(tensors, f"{_ENCODER}.weight", file)
    shapes: dict[str, tuple[int, ...]] = {
        f"{_ENCODER}.weight": (m, d), f"{_ENCODER}.bias": (m,),
        f"{_DICTIONARY}._weights": (m, d), f"{_DICTIONARY}.multiplier": (),
    }  # fmt: skip
    own = take(tensors, {**shapes, **({"thresholds": (m,)} if name == "JumpSAE" else {})}, file)
    W_dec = _normalised(own[f"{_DICTIONARY}._weights"], arguments, settings_file)
    config = SaeConfig(
        arch=_ARCHS[name],
        d=d,
        latents=m,
        k=get(arguments, "top_k", int, settings_file) if name == "TopKSAE" else None,
        apply_b_dec_to_input=False,
        source=NAME,
    )
    sae = Sae(
        config,
        own[f"{_ENCODER}.weight"],
        own[f"{_ENCODER}.bias"],
        W_dec * own[f"{_DICTIONARY}.multiplier"].exp(),
        W_dec.new_zeros(d),
        _threshold(name, own, settings, settings_file),
    )
    mean = file.parent / MEAN
    return replace(sae, b_dec=take(read_checkpoint(mean), {"b_dec": (d,)}, mean)["b_dec"]) if mean.is_file() else sae


def _normalised(weights_Ud: Tensor, arguments: dict[str, Any], file: Path) -> Tensor:
    """Rows of the dictionary as the library uses them: it normalises them whenever they are read."""
    kind = get(get_settings(arguments, "dictionary_params", file), "normalization", str, file, "l2")
    if kind == "identity":
        return weights_Ud
    if kind not in _NORMS:
        raise UnsupportedSae(f"{file}: normalization {kind!r} is not read; expected identity, {', '.join(_NORMS)}")
    order, by_longest = _NORMS[kind]
    norm_U1 = torch.linalg.vector_norm(weights_Ud, order, dim=1, keepdim=True)
    return weights_Ud / (norm_U1.amax() if by_longest else norm_U1 + 1e-8)


def _threshold(name: str, own: dict[str, Tensor], settings: dict[str, Any], file: Path) -> Tensor | None:
    """Values at the threshold fire there, which are those above the number just below it."""
    if name == "JumpSAE":
        return at_least(own["thresholds"].exp())
    if name != "BatchTopKSAE":
        return None
    if settings.get("running_threshold") is None:
        raise ThresholdUnset(
            f"{file}: running_threshold is missing: a state dict of BatchTopKSAE does not hold it, and without it "
            "nothing is known about what fires; take it from the trained object: float(sae.running_threshold)"
        )
    bias = own[f"{_ENCODER}.bias"]
    return at_least(torch.full_like(bias, get(settings, "running_threshold", float, file)))


def save(sae: Sae, folder: Path) -> None:
    """Write such a folder. What fires above a threshold becomes a JumpSAE.

    There is no decoder bias in overcomplete: b_dec is absorbed by the encoder's bias and written beside the state dict,
    to be added to reconstructions by whoever uses it.

    Raises:
        UnsupportedSae: gated, negative codes, groups or a normalisation per token.
    """
    require_plain(sae, NAME)
    config = sae.config
    if config.arch == "gated":
        raise UnsupportedSae(f"{NAME} has no gated SAE; export it as saelens")
    sae = with_pre_bias(sae, False)
    arguments: dict[str, Any] = {"input_shape": config.d, "nb_concepts": config.latents}
    own = {
        f"{_ENCODER}.weight": sae.W_enc,
        f"{_ENCODER}.bias": sae.b_enc,
        f"{_DICTIONARY}._weights": sae.W_dec,
        f"{_DICTIONARY}.multiplier": sae.b_enc.new_zeros(()),
    }
    if config.arch in ("relu", "topk"):
        name = "SAE" if config.arch == "relu" else "TopKSAE"
        arguments |= {"top_k": config.k} if config.arch == "topk" else {}
    else:
        if sae.threshold is None or bool((sae.threshold < 0).any()):
            raise BadSae(f"the threshold of this {config.arch} SAE is missing or negative; {NAME} keeps its logarithm")
        name, own["thresholds"] = "JumpSAE", sae.threshold.log()
    arguments["dictionary_params"] = {"normalization": "identity"}
    write_settings(folder / CONFIG, {"class": name, "arguments": arguments})
    write_tensors(folder / WEIGHTS, own)
    write_tensors(folder / MEAN, {"b_dec": sae.b_dec})
