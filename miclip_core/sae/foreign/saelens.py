"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, as versions before and after 6.0 write it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from miclip_core.sae.foreign.convert import require_plain
from miclip_core.sae.foreign.files import (
    Settings,
    find,
    get,
    get_settings,
    read_settings,
    take,
    write_settings,
    write_tensors,
)
from miclip_core.sae.sae import Sae
from miclip_core.zoo.checkpoint import read_checkpoint
from schemas.errors import BadSae, UnsupportedSae
from schemas.sae import Arch, SaeConfig

NAME = "saelens"
CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
FORMAT = "6.0.0"
"""From this version on the settings are read as they are written here."""
_ARCHS: dict[str, Arch] = {
    "standard": "relu", "gated": "gated", "topk": "topk", "jumprelu": "jumprelu",
    "batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka",
}  # fmt: skip
_WRITTEN: dict[Arch, str] = {
    "relu": "standard", "gated": "gated", "topk": "topk", "jumprelu": "jumprelu",
    "batchtopk": "jumprelu", "matryoshka": "jumprelu",
}  # fmt: skip
_INPUT_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}


def load(path: Path) -> Sae:
    """Read such a folder, of an SAE for use or of a training checkpoint.

    Raises:
        BadRef, BadSae: files, settings or tensors are missing or do not fit. UnsupportedSae: another architecture, or a
        normalisation of the input that was not folded in.
    """
    file = find(path, CONFIG)
    settings = _newest_words(read_settings(file), file)
    named = get(settings, "architecture", str, file)
    if named not in _ARCHS:
        raise UnsupportedSae(f"{file}: architecture {named!r} is not read; expected one of {', '.join(_ARCHS)}")
    arch, d, m = _ARCHS[named], get(settings, "d_in", int, file), get(settings, "d_sae", int, file)
    weights = file.parent / WEIGHTS
    tensors = _take(read_checkpoint(find(weights)), arch, named, d, m, weights)
    input_norm, factor = _normalisation(settings, file)
    config = SaeConfig(
        arch=arch,
        d=d,
        latents=m,
        k=round(get(settings, "k", float, file)) if "topk" in named else None,
        group_sizes=_group_sizes(settings, m, file) if arch == "matryoshka" else (),
        apply_b_dec_to_input=get(settings, "apply_b_dec_to_input", bool, file, True),
        input_norm=input_norm,
        source=NAME,
    )
    sae = Sae.from_tensors(config, tensors)
    if get(settings, "rescale_acts_by_decoder_norm", bool, file, False):
        sae = _rescaled(sae)
    return replace(sae, W_enc=sae.W_enc * factor, W_dec=sae.W_dec / factor, b_dec=sae.b_dec / factor)


def _newest_words(settings: Settings, file: Path) -> dict[str, Any]:
    """Settings of versions before 6.0 in the words of today."""
    activation = settings.get("activation_fn", settings.get("activation_fn_str", "relu"))
    if activation not in ("relu", "topk"):
        raise UnsupportedSae(f"{file}: activation_fn {activation!r} is not read; expected relu or topk")
    if settings.get("finetuning_scaling_factor"):
        raise UnsupportedSae(f"{file}: a finetuning_scaling_factor is not read; fold it into W_dec and save again")
    words = {"architecture": "standard", **get_settings(settings, "activation_fn_kwargs", file), **settings}
    return {**words, "architecture": "topk"} if activation == "topk" else words


def _take(tensors: dict[str, Tensor], arch: Arch, named: str, d: int, m: int, path: Path) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, m), "W_dec": (m, d), "b_dec": (d,)}
    if arch == "gated":
        shapes |= {"b_gate": (m,), "b_mag": (m,), "r_mag": (m,)}
    else:
        shapes |= {"b_enc": (m,)}
    if named == "jumprelu":
        shapes["threshold"] = (m,)
    if arch in ("batchtopk", "matryoshka"):
        shapes["topk_threshold"] = ()
    ones = "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all())
    own = take(tensors, shapes, path, ignored=("scaling_factor",) if ones else ())
    own["W_enc"] = own["W_enc"].T.contiguous()
    if arch == "gated":
        own["b_enc"] = own["b_gate"].new_zeros(m)
    if "threshold" in own:  # relu comes first, so that a negative threshold passes what 0 passes
        own["threshold"] = own["threshold"].clamp(min=0)
    if "topk_threshold" in own:
        own["threshold"] = own.pop("topk_threshold").expand(m).contiguous()
    return own


def _normalisation(settings: Settings, file: Path) -> tuple[Any, float]:
    """The normalisation that stays at run time, and the factor of one that is folded into the weights here."""
    kind = settings.get("normalize_activations") or "none"
    if isinstance(kind, str) and kind in _INPUT_NORMS:
        return _INPUT_NORMS[kind], 1.0
    scaler = file.parent / SCALER
    if kind in ("expected_average_only_in", True) and scaler.is_file():
        factor = get(read_settings(scaler), "scaling_factor", float, scaler)
        if factor <= 0:
            raise BadSae(f"{scaler}: scaling_factor is {factor}; expected a positive number")
        return "none", factor
    raise UnsupportedSae(
        f"{file}: inputs are to be normalised by {kind!r}, and the files do not hold the numbers; fold it in with SAELens "
        "(fold_activation_norm_scaling_factor or fold_activation_whitening) and save again"
    )


def _group_sizes(settings: Settings, m: int, file: Path) -> tuple[int, ...]:
    widths = settings.get("matryoshka_widths")
    ends = [*widths, m] if isinstance(widths, list) and all(type(width) is int for width in widths) else []
    sizes = [end - start for start, end in zip([0, *ends], ends)]
    if not sizes or min(sizes[:-1], default=0) < 1 or sizes[-1] < 0:
        raise BadSae(f"{file}: matryoshka_widths is {widths!r}; expected growing widths up to the {m} latents")
    return tuple(size for size in sizes if size)


def _rescaled(sae: Sae) -> Sae:
    """Pre-activations are compared after multiplication with the norms of the decoder's rows: fold these in."""
    norm_U = sae.W_dec.norm(dim=1)
    return replace(sae, W_enc=sae.W_enc * norm_U[:, None], b_enc=sae.b_enc * norm_U, W_dec=sae.W_dec / norm_U[:, None])


def save(sae: Sae, folder: Path) -> None:
    """Write such a folder. BatchTopK and Matryoshka become jumprelu with a constant threshold, as SAELens saves them.

    Raises:
        UnsupportedSae: it keeps negative codes, or one latent per group.
    """
    require_plain(sae, "SAELens", input_norm=True)
    config = sae.config
    names = {value: key for key, value in _INPUT_NORMS.items()}
    settings: dict[str, Any] = {
        "architecture": _WRITTEN[config.arch],
        "d_in": config.d,
        "d_sae": config.latents,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": names[config.input_norm],
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT,
            "sae_lens_training_version": None,
            "model_name": config.model,
            "hook_name": config.site,
            "miclip": config.model_dump(mode="json"),
        },
    }
    if config.arch == "topk":
        settings |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    unused = {"gated": ("b_enc",), "topk": ("threshold",)}.get(config.arch, ())
    tensors = {name: tensor for name, tensor in sae.tensors().items() if name not in unused}
    write_settings(folder / CONFIG, settings)
    write_tensors(folder / WEIGHTS, {**tensors, "W_enc": sae.W_enc.T})
