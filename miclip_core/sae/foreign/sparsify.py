"""sparsify: a folder per hookpoint with `cfg.json` and `sae.safetensors`; top-k or one latent per group."""

from __future__ import annotations

from pathlib import Path

from miclip_core.sae.foreign.convert import require_plain, with_pre_bias
from miclip_core.sae.foreign.files import find, get, read_settings, take, write_settings, write_tensors
from miclip_core.sae.sae import Sae
from miclip_core.zoo.checkpoint import read_checkpoint
from schemas.errors import UnsupportedSae
from schemas.sae import SaeConfig

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_NOT_AUTOENCODERS = {
    "transcode": "it predicts another module's output",
    "skip_connection": "it adds a linear map of its input to the reconstruction",
    "signed": "its codes may be negative",
}


def load(path: Path) -> Sae:
    """Read the folder of one hookpoint.

    Raises:
        BadRef, BadSae: files, settings or tensors are missing or do not fit. UnsupportedSae: a transcoder, a skip
        connection, or another activation than topk and groupmax.
    """
    file = find(path, CONFIG)
    settings = read_settings(file)
    for key, why in _NOT_AUTOENCODERS.items():
        if settings.get(key):
            raise UnsupportedSae(f"{file}: {key} is set: {why}, so it is no sparse autoencoder as they are used here")
    activation = settings.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise UnsupportedSae(f"{file}: activation {activation!r} is not read; expected topk or groupmax")
    d = get(settings, "d_in", int, file)
    m = get(settings, "num_latents", int, file, 0) or d * get(settings, "expansion_factor", int, file)
    weights = find(file.parent / WEIGHTS)
    shapes = {"encoder.weight": (m, d), "encoder.bias": (m,), "W_dec": (m, d), "b_dec": (d,)}
    own = take(read_checkpoint(weights), shapes, weights)
    config = SaeConfig(
        arch="topk", d=d, latents=m, k=get(settings, "k", int, file), groupmax=activation == "groupmax", source=NAME
    )
    return Sae(config, own["encoder.weight"], own["encoder.bias"], own["W_dec"], own["b_dec"])


def save(sae: Sae, folder: Path) -> None:
    """Write the folder of one hookpoint.

    Raises:
        UnsupportedSae: not top-k, or something else that sparsify does not do.
    """
    require_plain(sae, "sparsify", groupmax=True)
    config = sae.config
    if config.arch != "topk":
        raise UnsupportedSae(f"sparsify keeps k latents per token; this SAE is {config.arch}. Export it as saelens")
    sae = with_pre_bias(sae, True)
    unit = bool(((sae.W_dec.norm(dim=1) - 1).abs() < 1e-4).all())
    settings = {
        "activation": "groupmax" if config.groupmax else "topk",
        "expansion_factor": max(1, config.latents // config.d),
        "normalize_decoder": unit,
        "num_latents": config.latents,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": config.d,
    }
    write_settings(folder / CONFIG, settings)
    own = {"encoder.weight": sae.W_enc, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    write_tensors(folder / WEIGHTS, own)
