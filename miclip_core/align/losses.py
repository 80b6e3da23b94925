"""The losses of MICLIP on one batch and their gradients, written out by hand.

Suffixes: B images of the batch, E embedding, C classes, K keys: what the images of a batch are compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PLAIN = 40.0
"""Logits up to this size need no maximum taken off: exp and sums of 1e20 of them stay well inside float32."""


class AlignLoss(NamedTuple):
    """loss = w_out L_out + w_in L_in, its gradients to n [B,E] and to the scale, and each part beside its top-1 retrieval.

    retrieval: share of the images whose best key is their own (their class; their image). None where the weight is 0.
    """

    loss: Tensor
    to_n_BE: Tensor
    to_scale: Tensor
    loss_out: Tensor | None
    loss_in: Tensor | None
    retrieval_out: Tensor | None
    retrieval_in: Tensor | None


def alignment_loss(
    n_BE: Tensor, c_CE: Tensor, yhat_B: Tensor, x_BE: Tensor, scale: Tensor | float, w_out: float = 1.0, w_in: float = 1.0,
    multi_positive: bool = False,
) -> AlignLoss:  # fmt: skip
    """`w_out * L_out + w_in * L_in` of neuron embeddings n [B,E], with cosines times `scale` as logits.

    c [C,E]: unit vectors of the class texts; yhat int64 [B] in [0,C): the predicted class of each image; x [B,E]: unit
    vectors of the images. n has any length; a row of length 0 has cosine 0 with everything and no gradient.
    L_out contrasts n_i with c_yhat(j) over the images j of the batch, L_in with x_j; rows and columns count half each.
    multi_positive spreads the target of L_in evenly over the images with the same predicted class.

    Source: MICLIP, Algorithm 1 and equations of L_out and L_in, with the denominators of the equations: Algorithm 1 has
    S^x in the rows of L_out and sums the columns of L_in over the wrong index.
    """
    length_B1 = n_BE.norm(dim=1, keepdim=True)
    inverse_B1 = torch.where(length_B1 > torch.finfo(n_BE.dtype).tiny, 1 / length_B1, 0.0)
    u_BE = n_BE * inverse_B1
    scale = torch.as_tensor(scale, dtype=n_BE.dtype, device=n_BE.device)
    to_u_BE, loss = torch.zeros_like(u_BE), torch.zeros((), dtype=torch.float64, device=n_BE.device)
    loss_out = loss_in = retrieval_out = retrieval_in = None
    classes_K, own_B, count_K = yhat_B.unique(return_inverse=True, return_counts=True)
    if w_out:  # images of one class share their key, so each class is one key that counts as often
        c_KE = c_CE[classes_K]
        loss_out, to_u, best_B = _contrast(u_BE, c_KE, count_K.to(n_BE), c_KE[own_B], scale)
        retrieval_out = (best_B == own_B).double().mean()
        loss, to_u_BE = loss + w_out * loss_out, to_u_BE.add_(to_u, alpha=w_out)
    if w_in:
        target_BE = _class_means(x_BE, own_B, count_K)[own_B] if multi_positive else x_BE
        loss_in, to_u, best_B = _contrast(u_BE, x_BE, n_BE.new_ones(len(x_BE)), target_BE, scale)
        found_B = own_B[best_B] == own_B if multi_positive else best_B == torch.arange(len(x_BE), device=x_BE.device)
        retrieval_in = found_B.double().mean()
        loss, to_u_BE = loss + w_in * loss_in, to_u_BE.add_(to_u, alpha=w_in)
    along_B1 = (u_BE * to_u_BE).sum(1, keepdim=True)
    to_n_BE = to_u_BE.addcmul_(u_BE, along_B1, value=-1).mul_(inverse_B1)
    to_scale = along_B1.sum() / scale  # u . dL/du is the sum of S dL/dS over the keys
    return AlignLoss(loss, to_n_BE, to_scale, loss_out, loss_in, retrieval_out, retrieval_in)


def _contrast(
    u_BE: Tensor, key_KE: Tensor, count_K: Tensor, target_BE: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The symmetric contrast of u with keys that occur `count` times each, its gradient to u, and each row's best key.

    With z = scale * u @ key^T: [sum_i log sum_k count_k e^z_ik + sum_k count_k log sum_i e^z_ik - 2 scale sum_i u_i . target_i] / 2B.
    One matrix of exponentials serves rows and columns where logits are small; elsewhere each takes its own maxima off.
    """
    z_BK = (u_BE * scale) @ key_KE.T
    best_B = z_BK.argmax(1)
    low, high = z_BK.aminmax()
    if max(-float(low), float(high)) <= _PLAIN:
        e_BK = z_BK.exp_()
        rows_B, columns_K = e_BK @ count_K, e_BK.sum(0)
        log_rows_B, log_columns_K = rows_B.log(), columns_K.log()
        p_BK = e_BK.mul_(torch.add(1 / rows_B[:, None], 1 / columns_K))
    else:
        log_rows_B = (z_BK + count_K.log()).logsumexp(1)
        log_columns_K = z_BK.logsumexp(0)
        p_BK = (z_BK - log_rows_B[:, None]).exp_().add_((z_BK - log_columns_K).exp_())
    half = 1 / (2 * len(u_BE))
    logs = log_rows_B.double().sum() + (log_columns_K.double() * count_K).sum()
    loss = half * (logs - 2 * scale.double() * (u_BE * target_BE).sum(1).double().sum())
    to_u_BE = torch.addmm(target_BE, p_BK, key_KE * count_K[:, None], beta=-2).mul_(scale * half)
    return loss, to_u_BE, best_B


def _class_means(x_BE: Tensor, own_B: Tensor, count_K: Tensor) -> Tensor:
    sums_KE = x_BE.new_zeros(len(count_K), x_BE.shape[1]).index_add_(0, own_B, x_BE)
    return sums_KE / count_K[:, None]
