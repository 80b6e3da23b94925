"""Exact rewritings of an SAE that formats ask for: the bias inside or outside the encoder, one threshold for all latents."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from miclip_core.sae.sae import Sae
from schemas.errors import UnsupportedSae


def with_pre_bias(sae: Sae, wanted: bool) -> Sae:
    """The same codes and reconstructions, with b_dec taken off the input or not, as `wanted`.

    (x - b_dec) W + b = x W + (b - W b_dec); where b_dec is long, float32 loses digits of the small codes in that sum.
    """
    if sae.config.apply_b_dec_to_input == wanted:
        return sae
    shift_U = sae.W_enc.double() @ sae.b_dec.double() * (1 if wanted else -1)
    moved = sae.with_config(apply_b_dec_to_input=wanted)
    if not sae.gate:
        return replace(moved, b_enc=_add(sae.b_enc, shift_U))
    gate = {
        **sae.gate,
        "b_gate": _add(sae.gate["b_gate"], shift_U),
        "b_mag": _add(sae.gate["b_mag"], shift_U * sae.gate["r_mag"].double().exp()),
    }
    return replace(moved, gate=gate)


def _add(bias_U: Tensor, shift_U: Tensor) -> Tensor:
    return (bias_U.double() + shift_U).to(bias_U)


def one_threshold(sae: Sae) -> float | None:
    """The threshold that all latents share, or None if they have none, or several."""
    if sae.threshold is None or bool((sae.threshold != sae.threshold[0]).any()):
        return None
    return float(sae.threshold[0])


def at_least(threshold_U: Tensor) -> Tensor:
    """Thresholds t such that `p > t` says what `p >= threshold` says, for p > 0."""
    return torch.nextafter(threshold_U, torch.zeros_like(threshold_U)).clamp(min=0)


def require_plain(sae: Sae, library: str, input_norm: bool = False, groupmax: bool = False) -> None:
    """Refuse what nearly no format can hold.

    input_norm, groupmax: what this format can hold.

    Raises:
        UnsupportedSae: names the first such property.
    """
    config = sae.config
    if not config.post_topk_relu:
        reason = "keeps negative codes (post_topk_relu false)"
    elif config.groupmax and not groupmax:
        reason = "keeps one latent per group (groupmax)"
    elif config.input_norm != "none" and not input_norm:
        reason = f"normalises every token by its own {config.input_norm}"
    else:
        return
    raise UnsupportedSae(f"this SAE {reason}, which {library} cannot express; export it as miclip")
