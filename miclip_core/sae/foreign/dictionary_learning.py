"""dictionary_learning: a folder with `ae.pt`, a pickled state dict, and `config.json`; the norm is folded in already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.sae.foreign.convert import one_threshold, require_plain, with_pre_bias
from miclip_core.sae.foreign.files import find, get, plain, read_settings, shape_of, take, write_settings
from miclip_core.sae.sae import Sae
from miclip_core.zoo.checkpoint import read_pickle
from schemas.errors import BadRef, BadSae, ThresholdUnset, UnsupportedSae
from schemas.sae import Arch, SaeConfig

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"
Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, Tensor]


def load(path: Path) -> Sae:
    """Read such a folder, or a `.pt` file of one.

    Raises:
        BadRef, BadSae: files, settings or tensors are missing or do not fit, k is not that of the settings, or it is the
        backup of a run that is not finished. ThresholdUnset. UnsupportedSae: another class. UnsafeCheckpoint: code.
    """
    file = find(path, WEIGHTS)
    settings_file = _find_settings(file)
    settings = read_settings(settings_file).get("trainer")
    if not isinstance(settings, dict):
        raise BadSae(f"{settings_file}: no settings under 'trainer'; expected dict_class, k and others there")
    name = get(settings, "dict_class", str, settings_file)
    if name not in _READERS:
        raise UnsupportedSae(f"{settings_file}: dict_class {name!r} is not read; expected one of {', '.join(_READERS)}")
    tensors = _read_state(file)
    sae = _READERS[name](tensors, file)
    stated = settings.get("k", sae.config.k)
    if sae.config.k is not None and stated != sae.config.k:
        raise BadSae(f"{file}: its k is {sae.config.k}, but {settings_file.name} says {stated}; which one is right?")
    return sae


def _find_settings(file: Path) -> Path:
    """Beside the weights, or above them where they are one of checkpoints/."""
    for folder in (file.parent, file.parent.parent):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    raise BadRef(f"{file}: there is no {CONFIG} beside it or one folder above; it says which class the weights are of")


def _read_state(file: Path) -> dict[str, Tensor]:
    content = read_pickle(file)
    if isinstance(content, Mapping) and "ae" in content:
        raise BadSae(
            f"{file}: the backup of a run that was not finished (it has the key 'ae'): its biases are not scaled back "
            "to the model's units by a factor that the file does not hold. Finish the run, or use a file of checkpoints/"
        )
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadSae(f"{file}: expected a state dict, a dictionary of tensors; found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


# ---------------------------------------------------------------- one reader per class


def _linear_topk(arch: Arch) -> Callable[[dict[str, Tensor], Path], Sae]:
    def read(tensors: dict[str, Tensor], file: Path) -> Sae:
        m, d = shape_of(tensors, "encoder.weight", file)
        shapes: Shapes = {"encoder.weight": (m, d), "encoder.bias": (m,), "decoder.weight": (d, m), "b_dec": (d,)}
        own = take(tensors, {**shapes, "k": (), "threshold": ()}, file)
        config = SaeConfig(arch=arch, d=d, latents=m, k=int(own["k"]), source=NAME)
        return Sae(config, own["encoder.weight"], own["encoder.bias"], own["decoder.weight"].T.contiguous(),
                   own["b_dec"], _spread(own["threshold"], m, arch, file))  # fmt: skip

    return read


def _matryoshka(tensors: dict[str, Tensor], file: Path) -> Sae:
    d, m = shape_of(tensors, "W_enc", file)
    groups = tensors.get("group_sizes", torch.empty(0))
    shapes: Shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,)}
    own = take(tensors, {**shapes, "k": (), "threshold": (), "group_sizes": (groups.numel(),)}, file)
    sizes = tuple(int(size) for size in own["group_sizes"])
    if sum(sizes) != m or min(sizes) < 1:
        raise BadSae(f"{file}: group_sizes {list(sizes)} sum to {sum(sizes)}; expected the {m} latents")
    config = SaeConfig(arch="matryoshka", d=d, latents=m, k=int(own["k"]), group_sizes=sizes, source=NAME)
    threshold = _spread(own["threshold"], m, "matryoshka", file)
    return Sae(config, own["W_enc"].T.contiguous(), own["b_enc"], own["W_dec"], own["b_dec"], threshold)


def _spread(threshold: Tensor, m: int, arch: Arch, file: Path) -> Tensor | None:
    """One value as [U]; -1 means that training has not measured it, and only top-k does without."""
    if float(threshold) < 0:
        if arch == "topk":
            return None
        raise ThresholdUnset(
            f"{file}: its threshold is {float(threshold):g}, which means that training ended before it was measured "
            "(threshold_start_step); with it every positive latent would fire. Train for more steps"
        )
    return threshold.expand(m).contiguous()


def _jumprelu(tensors: dict[str, Tensor], file: Path) -> Sae:
    d, m = shape_of(tensors, "W_enc", file)
    shapes: Shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,), "threshold": (m,)}
    own = take(tensors, shapes, file)
    config = SaeConfig(arch="jumprelu", d=d, latents=m, apply_b_dec_to_input=False, source=NAME)
    threshold = own["threshold"].clamp(min=0)  # relu comes as well, so that a negative one passes what 0 passes
    return Sae(config, own["W_enc"].T.contiguous(), own["b_enc"], own["W_dec"], own["b_dec"], threshold)


def _relu(bias: str, taken_off: bool) -> Callable[[dict[str, Tensor], Path], Sae]:
    def read(tensors: dict[str, Tensor], file: Path) -> Sae:
        m, d = shape_of(tensors, "encoder.weight", file)
        shapes: Shapes = {"encoder.weight": (m, d), "encoder.bias": (m,), "decoder.weight": (d, m), bias: (d,)}
        own = take(tensors, shapes, file)
        config = SaeConfig(arch="relu", d=d, latents=m, apply_b_dec_to_input=taken_off, source=NAME)
        W_dec = own["decoder.weight"].T.contiguous()
        return Sae(config, own["encoder.weight"], own["encoder.bias"], W_dec, own[bias])

    return read


def _gated(tensors: dict[str, Tensor], file: Path) -> Sae:
    m, d = shape_of(tensors, "encoder.weight", file)
    shapes: Shapes = {"encoder.weight": (m, d), "decoder.weight": (d, m), "decoder_bias": (d,)}
    own = take(tensors, {**shapes, "gate_bias": (m,), "mag_bias": (m,), "r_mag": (m,)}, file)
    gate = {"b_gate": own["gate_bias"], "b_mag": own["mag_bias"], "r_mag": own["r_mag"]}
    config = SaeConfig(arch="gated", d=d, latents=m, source=NAME)
    W_dec = own["decoder.weight"].T.contiguous()
    return Sae(config, own["encoder.weight"], own["r_mag"].new_zeros(m), W_dec, own["decoder_bias"], gate=gate)


_READERS: dict[str, Callable[[dict[str, Tensor], Path], Sae]] = {
    "AutoEncoderTopK": _linear_topk("topk"),
    "BatchTopKSAE": _linear_topk("batchtopk"),
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoder": _relu("bias", True),
    "AutoEncoderNew": _relu("decoder.bias", False),
    "GatedAutoEncoder": _gated,
}


# ---------------------------------------------------------------- writing

_CLASSES: dict[Arch, str] = {
    "topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE", "matryoshka": "MatryoshkaBatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder", "relu": "AutoEncoder", "gated": "GatedAutoEncoder",
}  # fmt: skip


def save(sae: Sae, folder: Path) -> None:
    """Write such a folder. JumpReLU has no pre-bias there, all others have one; it is folded as needed.

    Raises:
        UnsupportedSae: negative codes, groups, a normalisation per token, several thresholds where one is kept, no k.
    """
    require_plain(sae, NAME)
    config = sae.config
    sae = with_pre_bias(sae, config.arch != "jumprelu")
    trainer: dict[str, Any] = {
        "dict_class": _CLASSES[config.arch],
        "activation_dim": config.d,
        "dict_size": config.latents,
        "k": config.k,
        "lm_name": config.model,
        "submodule_name": config.site,
        "seed": config.seed,
    }
    torch.save(plain(_state(sae)), folder / WEIGHTS)
    write_settings(folder / CONFIG, {"trainer": trainer, "buffer": {}})


def _state(sae: Sae) -> Weights:
    arch, W_enc, b_enc, W_dec, b_dec = sae.config.arch, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec
    linear = {"encoder.weight": W_enc, "decoder.weight": W_dec.T}
    matrices = {"W_enc": W_enc.T, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if arch == "relu":
        return {"bias": b_dec, **linear, "encoder.bias": b_enc}
    if arch == "gated":
        gate = {"gate_bias": sae.gate["b_gate"], "mag_bias": sae.gate["b_mag"], "r_mag": sae.gate["r_mag"]}
        return {"decoder_bias": b_dec, **gate, **linear}
    if arch == "jumprelu":
        assert sae.threshold is not None
        return {**matrices, "threshold": sae.threshold}
    if arch == "matryoshka":
        return {**_buffers(sae), "group_sizes": torch.tensor(sae.config.group_sizes), **matrices}
    return {"b_dec": b_dec, **_buffers(sae), **linear, "encoder.bias": b_enc}


def _buffers(sae: Sae) -> Weights:
    """k and the one threshold, which is -1 where it was never measured."""
    if sae.config.k is None:
        raise UnsupportedSae(f"{NAME} needs k, which this {sae.config.arch} SAE does not have; export it as saelens")
    threshold = one_threshold(sae)
    if threshold is None and sae.config.arch != "topk":
        raise UnsupportedSae(f"{NAME} keeps one threshold, this SAE has one for each latent; export it as saelens")
    unset = -1.0 if threshold is None else threshold
    return {"k": torch.tensor(sae.config.k, dtype=torch.int32), "threshold": torch.tensor(unset, dtype=sae.W_enc.dtype)}
