"""The parts of a sparse autoencoder that decide its speed: exact selection over blocks, sparse decode, sparse gradients.

Active latents of N tokens come in two forms. Rectangular: `latents` and `values` [N,K]. Ragged, as in `Codes`: flat
`latents` and `values` with `offsets` [N+1], where token n owns entries offsets[n] to offsets[n+1]; a "token" may be any
group of entries that share one vector, such as one level of one token. Everything is exact and, on CPU, the same bits
every time. Suffixes: N tokens, U latents, D width, K kept per token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from miclip_core.sae.codes import Codes

BLOCK_LATENTS = 8192
"""Latents whose pre-activations exist at once; over 64 k they meet the fast path of torch.topk."""
BLOCK_TOKENS = {"cpu": 1024}
"""Tokens whose pre-activations exist at once; with 8192 latents 32 MB, which stay in the last cache."""
BLOCK_TOKENS_ACCELERATOR = 16384
_SUM = 0  # the mode of torch's embedding bags


def pre_activations(x_ND: Tensor, W_UD: Tensor, b_U: Tensor) -> Tensor:
    """`x @ W^T + b` [N,U] in the dtype of b; where x and W are bf16 the product is too, and the sum is not."""
    if W_UD.dtype == b_U.dtype:
        return torch.addmm(b_U, x_ND, W_UD.T)
    return (x_ND @ W_UD.T).to(b_U.dtype).add_(b_U)


def blockwise_topk(
    x_ND: Tensor, W_UD: Tensor, b_U: Tensor, k: int, block: int = BLOCK_LATENTS, among: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each token and their latents; at most 1024 x `block` of them exist at once on CPU.

    x [N,D], W [U,D], b [U], `among` int64 [<= U] ascending: choose from these latents only. Gives values [N,k]
    descending and latents int64 [N,k]. Of equal values the lowest latent is kept and stands first. k is at most the
    number of latents to choose from.
    """
    parts = [_topk_of_tokens(x, W_UD, b_U, k, block, among) for x in x_ND.split(_token_block(x_ND))]
    return (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])) if len(parts) > 1 else parts[0]


def batch_topk(x_ND: Tensor, W_UD: Tensor, b_U: Tensor, total: int) -> Codes:
    """The `total` largest positive pre-activations of all tokens together (fewer where fewer are positive).

    Of equal values at the border the lowest (token, latent) are kept. Each token first gives its 2 total / N largest;
    the total-th largest of those is a floor under what is sought, so only tokens whose last value is not below it are
    asked for more. Never N x U at once.
    """
    n, m = x_ND.shape[0], W_UD.shape[0]
    open_N, width = torch.arange(n, device=x_ND.device), min(m, -(-2 * total // max(n, 1)))
    closed: list[tuple[Tensor, Tensor, Tensor]] = []
    while True:
        values, latents = blockwise_topk(x_ND if len(open_N) == n else x_ND[open_N], W_UD, b_U, width)
        floor = _kth_largest(torch.cat([values.flatten(), *(c[2] for c in closed)]), total).clamp_(min=0)
        done = (values[:, -1] < floor) | (values[:, -1] <= 0) | (width == m)
        closed.append((open_N[done].repeat_interleave(width), latents[done].flatten(), values[done].flatten()))
        if done.all():
            break
        open_N, width = open_N[~done], min(m, 4 * width)
    rows, latents, values = (torch.cat(column) for column in zip(*closed))
    kept = ((values >= floor) & (values > 0)).nonzero()[:, 0]
    kept = kept[(rows[kept] * m + latents[kept]).argsort()]
    if len(kept) > total:
        at_floor = values[kept] == floor
        kept = kept[~at_floor | (at_floor.cumsum(0) <= total - (~at_floor).sum())]
    offsets = torch.searchsorted(rows[kept], torch.arange(n + 1, device=rows.device))
    return Codes(offsets, latents[kept].int(), values[kept], m)


def sparse_decode(latents: Tensor, values: Tensor, W_UD: Tensor, offsets: Tensor | None = None) -> Tensor:
    """`sum_j values[n,j] * W[latents[n,j]]` [N,D], rectangular or ragged."""
    if offsets is None:
        latents, offsets, values = latents.flatten(), _regular_offsets(latents), values.flatten()
    return embedding_bag(latents, W_UD, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def sparse_dots(latents: Tensor, rows_ND: Tensor, W_UD: Tensor, offsets: Tensor | None = None) -> Tensor:
    """`rows[n] . W[latents[n,j]]` in the shape of `latents`: the gradient of `sparse_decode` to its values.

    torch's own kernel for that gradient, which does not write out the gathered rows (100 MB for 1024 x 32 x 768).
    """
    owner = _owners(latents, offsets)
    flat = latents.flatten()
    ends = _regular_offsets(latents) if offsets is None else offsets
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(rows_ND, W_UD, flat, ends[:-1], owner, _SUM)
    return dots.view(latents.shape)


def accumulate_rows(
    out_UD: Tensor, latents: Tensor, coef: Tensor, rows_ND: Tensor, offsets: Tensor | None = None
) -> None:
    """`out[latents[n,j]] += coef[n,j] * rows[n]` in place; each row of `out` gets the sum over its tokens in their order."""
    owner, latents, coef = _owners(latents, offsets), latents.flatten(), coef.flatten()
    ascending, order = latents.sort(stable=True)
    touched, counts = ascending.unique_consecutive(return_counts=True)
    ends = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    out_UD.index_add_(0, touched, sparse_decode(owner[order], coef[order], rows_ND, ends))


def _topk_of_tokens(
    x_ND: Tensor, W_UD: Tensor, b_U: Tensor, k: int, block: int, among: Tensor | None
) -> tuple[Tensor, Tensor]:
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, W_UD.shape[0] if among is None else len(among), block):
        stop = start + block
        if among is None:
            values, latents = lowest_topk(pre_activations(x_ND, W_UD[start:stop], b_U[start:stop]), k)
            latents += start
        else:
            chosen_U = among[start:stop]
            values, places = lowest_topk(pre_activations(x_ND, W_UD[chosen_U], b_U[chosen_U]), k)
            latents = chosen_U[places]
        if best is not None:
            values, latents = torch.cat((best[0], values), 1), torch.cat((best[1], latents), 1)
            values, order = lowest_topk(values, k)
            latents = latents.gather(1, order)
        best = values, latents
    assert best is not None
    return best


def lowest_topk(p_NU: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending, and their columns; of equal values the lowest columns, in order.

    All of the row where it has fewer than k. torch.topk leaves open which of equal values it gives; one value more than
    asked for shows whether that matters, and only such rows are done again.
    """
    width = min(k, p_NU.shape[1])
    values, columns = p_NU.topk(min(k + 1, p_NU.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    values, columns = values[:, :width], columns[:, :width]
    if len(tied):
        values, columns = values.contiguous(), columns.contiguous()
        last = values[tied, -1:]
        rows = p_NU[tied]
        above, equal = rows > last, rows == last
        kept = above | (equal & (equal.cumsum(1) <= width - above.sum(1, keepdim=True)))
        ascending = kept.nonzero()[:, 1].view(len(tied), width)
        values[tied], order = rows.gather(1, ascending).sort(dim=1, descending=True, stable=True)
        columns[tied] = ascending.gather(1, order)
    return values, columns


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of a flat tensor; minus infinity where there are fewer."""
    if len(values) < k:
        return values.new_tensor(-torch.inf)
    return values.kthvalue(len(values) - k + 1).values


def _token_block(x_ND: Tensor) -> int:
    return BLOCK_TOKENS.get(x_ND.device.type, BLOCK_TOKENS_ACCELERATOR)


def _owners(latents: Tensor, offsets: Tensor | None) -> Tensor:
    """The token of every entry, flat."""
    if offsets is None:
        return torch.arange(latents.shape[0], device=latents.device).repeat_interleave(latents.shape[1])
    return torch.arange(len(offsets) - 1, device=latents.device).repeat_interleave(offsets.diff())


def _regular_offsets(latents_NK: Tensor) -> Tensor:
    n, k = latents_NK.shape
    return torch.arange(0, n * k + 1, k, device=latents_NK.device, dtype=latents_NK.dtype)
