"""Which latents stand for a token in training: its own k largest, or the k per token largest of the whole batch."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from miclip_core.sae import kernels
from miclip_core.sae.batch import Batch, Weights, encoder_operands
from miclip_core.sae.codes import Codes
from schemas.sae import SaeSettings


class Selection(NamedTuple):
    """Kept latents and their values >= 0: rectangular [N,K], or flat with offsets [N * levels + 1] per token and level."""

    latents: Tensor
    values: Tensor
    offsets: Tensor | None
    levels: int


def select(settings: SaeSettings, weights: Weights, c_ND: Tensor, batch: Batch) -> Selection:
    """The kept pre-activations of tokens c = x - b_dec [N,D], after relu.

    batchtopk and matryoshka keep the k * B largest of the B tokens of all workers, exactly: of equal values the lowest
    (worker, token, latent). With scope `local` each worker's own tokens are a batch.
    """
    assert settings.k is not None
    W_enc_UD, dtype = encoder_operands(settings, weights)
    if settings.arch == "topk":
        values, latents = kernels.blockwise_topk(c_ND.to(dtype), W_enc_UD, weights["b_enc"], settings.k)
        return Selection(latents, values.relu_(), None, 1)
    everywhere = settings.scope == "global"
    total = settings.k * (batch.tokens if everywhere else len(c_ND))
    found = kernels.batch_topk(c_ND.to(dtype), W_enc_UD, weights["b_enc"], total)
    if everywhere and batch.group.size > 1:
        found = _of_all_workers(found, total, batch)
    if len(settings.group_sizes) < 2:
        return Selection(found.latents.long(), found.values, found.offsets, 1)
    return _by_level(found, settings.group_sizes)


def _of_all_workers(found: Codes, total: int, batch: Batch) -> Codes:
    """What of this worker's `total` largest is among the `total` largest of all workers."""
    parts = batch.group.gather(found.values)
    values = torch.cat(parts)
    if len(values) <= total:
        return found
    last = values.kthvalue(len(values) - total + 1).values
    ties = total - int((values > last).sum()) - sum(int((part == last).sum()) for part in parts[: batch.group.rank])
    at_last = found.values == last
    kept = (found.values > last) | (at_last & (at_last.cumsum(0) <= ties))
    counts_before = torch.cat((kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)))
    return Codes(counts_before[found.offsets], found.latents[kept], found.values[kept], found.width)


def _by_level(found: Codes, group_sizes: tuple[int, ...]) -> Selection:
    """The same entries, which ascend inside a token, with one group per token and level."""
    starts = torch.tensor([0, *accumulate(group_sizes)][:-1], device=found.latents.device)
    tokens = torch.arange(len(found), device=found.latents.device)
    places, firsts = found.rows() * found.width + found.latents, tokens[:, None] * found.width + starts
    first_of_group = torch.searchsorted(places, firsts.flatten())
    offsets = torch.cat((first_of_group, first_of_group.new_tensor([len(found.latents)])))
    return Selection(found.latents.long(), found.values, offsets, len(group_sizes))
