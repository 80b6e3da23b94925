"""Attributing-CLIP: a Lightning checkpoint of a weight-normed top-k SAE without decoder bias; its k is in the run's settings."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from miclip_core.sae.foreign.files import find, shape_of, take
from miclip_core.sae.sae import Sae
from miclip_core.zoo.checkpoint import read_checkpoint
from schemas.errors import BadRef, BadSae
from schemas.sae import SaeConfig

NAME = "attributing_clip"
WEIGHTS = "last.ckpt"
_K = re.compile(r"^[\s{]*\"?sae_k\"?\s*:\s*(\d+)\s*,?\s*}?\s*$", re.MULTILINE)


def load(path: Path) -> Sae:
    """Read a checkpoint file, or the `last.ckpt` of a folder, with the run's settings (a yaml or json) in the same folder.

    Raises:
        BadRef, BadSae: the file, a tensor or the number `sae_k` is missing. UnsafeCheckpoint: it holds code.
    """
    file = find(path, WEIGHTS)
    tensors = read_checkpoint(file)
    m, d = shape_of(tensors, "encoder.0.weight_v", file)
    shapes = {
        "encoder.0.weight_v": (m, d), "encoder.0.weight_g": (m, 1), "encoder.0.bias": (m,),
        "decoder.weight_v": (d, m), "decoder.weight_g": (1, m),
    }  # fmt: skip
    own = take(tensors, shapes, file)
    config = SaeConfig(
        arch="topk",
        d=d,
        latents=m,
        k=_find_k(file.parent),
        apply_b_dec_to_input=False,
        post_topk_relu=False,
        source=NAME,
    )
    W_enc = _scaled(own["encoder.0.weight_v"], own["encoder.0.weight_g"])
    W_dec = _scaled(own["decoder.weight_v"].T.contiguous(), own["decoder.weight_g"].T)
    return Sae(config, W_enc, own["encoder.0.bias"], W_dec, W_enc.new_zeros(d))


def _scaled(directions_Ud: Tensor, lengths_U1: Tensor) -> Tensor:
    """Weight normalisation: rows of these directions and lengths."""
    norms_U1 = directions_Ud.norm(dim=1, keepdim=True)
    if bool((norms_U1 == 0).any()):
        raise BadSae("a weight_v has rows without length, so they have no direction; the file is damaged")
    return lengths_U1 * directions_Ud / norms_U1


def _find_k(folder: Path) -> int:
    """`sae_k` of the settings beside the checkpoint, which must agree if there are several."""
    found = {
        int(match[1])
        for file in sorted(folder.iterdir())
        if file.suffix in (".yaml", ".yml", ".json") and (match := _K.search(file.read_text(errors="replace")))
    }
    if len(found) != 1:
        said = f"settings there say {sorted(found)}" if found else "no settings there say it"
        raise BadRef(
            f"{folder}: the checkpoint does not hold k, and {said}; put the run's yaml beside it, or a file sae.json with "
            '{"sae_k": 64}'
        )
    return found.pop()
