"""The fast parts of a sparse autoencoder against sorted lists, dense matrices and loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from miclip_core.sae import kernels
from miclip_core.sae.kernels import (
    accumulate_rows,
    batch_topk,
    blockwise_topk,
    lowest_topk,
    pre_activations,
    sparse_decode,
    sparse_dots,
)


def make(n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, encoder rows and biases in fp64."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((n, d), (m, d), (m,)))


def by_sorting(p: Tensor, k: int) -> tuple[list, list]:
    """The k largest of each row as python sorts them: by falling value, then by rising column."""
    rows = [sorted(enumerate(row), key=lambda pair: (-pair[1], pair[0]))[:k] for row in p.tolist()]
    return [[v for _, v in row] for row in rows], [[i for i, _ in row] for row in rows]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_topk_over_blocks_is_the_topk_of_all_for_any_block(block: int) -> None:
    x, W, b = make(20, 130, 6)
    values, latents = blockwise_topk(x, W, b, 9, block=block)
    expected = by_sorting(x @ W.T + b, 9)
    assert latents.tolist() == expected[1]
    torch.testing.assert_close(values, torch.tensor(expected[0]).double())


@pytest.mark.parametrize("block", [2, 5, 40])
def test_of_equal_values_the_lowest_latents_are_kept_and_stand_first(block: int) -> None:
    """Small whole numbers: most values occur many times, at the border and above it, inside a block and across blocks."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(-1, 2, (30, 3), generator=draw).float()
    W = torch.randint(-1, 2, (40, 3), generator=draw).float()
    values, latents = blockwise_topk(x, W, torch.zeros(40), 6, block=block)
    assert [values.tolist(), latents.tolist()] == list(by_sorting(x @ W.T, 6))


def test_rows_without_ties_are_left_as_torch_gives_them_beside_rows_with_ties() -> None:
    p = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 5.0, 5.0], [-1.0, -1.0, -1.0, -2.0]])
    values, columns = lowest_topk(p, 2)
    assert values.tolist() == [[3, 2], [5, 5], [-1, -1]]
    assert columns.tolist() == [[0, 2], [1, 2], [0, 1]]


@pytest.mark.parametrize("width", [6, 100, 5000])
def test_a_tie_that_begins_behind_the_last_kept_value_is_seen(width: int) -> None:
    """One 1 among zeros: the second of two is any zero by value, and must be the first zero."""
    p = torch.eye(width)[torch.arange(20) % width]
    values, columns = lowest_topk(p, 2)
    assert values.tolist() == [[1, 0]] * 20
    assert columns.tolist() == [[i % width, 1 if i % width == 0 else 0] for i in range(20)]


def test_a_row_shorter_than_k_is_given_whole() -> None:
    values, columns = lowest_topk(torch.tensor([[1.0, 1.0, 2.0]]), 5)
    assert values.tolist() == [[2, 1, 1]] and columns.tolist() == [[2, 0, 1]]


def test_tokens_in_blocks_give_what_they_give_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b = make(25, 50, 6)
    whole = blockwise_topk(x, W, b, 4)
    monkeypatch.setitem(kernels.BLOCK_TOKENS, "cpu", 8)
    parts = blockwise_topk(x, W, b, 4)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_choosing_among_some_latents_never_gives_another() -> None:
    x, W, b = make(12, 60, 5)
    some = torch.tensor([3, 4, 20, 21, 40, 59])
    masked = torch.full((12, 60), -torch.inf, dtype=torch.float64)
    masked[:, some] = (x @ W.T + b)[:, some]
    expected = masked.topk(4, 1)
    for block in (2, 100):
        values, latents = blockwise_topk(x, W, b, 4, block=block, among=some)
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(latents, expected.indices)


def test_bf16_rounds_the_matrix_product_and_nothing_else() -> None:
    """1 + 2^-9 is not a bf16, so it is lost in the product and kept in the bias."""
    x, W = torch.ones(1, 1), torch.tensor([[1 + 2.0**-9]])
    b = torch.tensor([2.0**-9])
    assert pre_activations(x.bfloat16(), W.bfloat16(), b).item() == 1 + 2.0**-9
    assert pre_activations(x, W, b).item() == 1 + 2.0**-8


def test_decode_dots_and_accumulation_are_products_with_the_dense_code() -> None:
    x, W, _ = make(14, 30, 6)
    draw = torch.Generator().manual_seed(2)
    latents = torch.stack([torch.randperm(30, generator=draw)[:5] for _ in range(14)])
    values = torch.randn(14, 5, generator=draw, dtype=torch.float64)
    f = torch.zeros(14, 30, dtype=torch.float64).scatter(1, latents, values)
    torch.testing.assert_close(sparse_decode(latents, values, W), f @ W)
    torch.testing.assert_close(sparse_dots(latents, x, W), (x @ W.T).gather(1, latents))
    out = torch.ones_like(W)
    accumulate_rows(out, latents, values, x)
    torch.testing.assert_close(out, 1 + f.T @ x)


def test_ragged_tokens_may_have_any_number_of_latents_even_none() -> None:
    x, W, _ = make(4, 10, 3)
    offsets, latents = torch.tensor([0, 3, 3, 4, 6]), torch.tensor([1, 4, 9, 4, 0, 9])
    values = torch.tensor([1.0, -2, 3, 4, 5, 6]).double()
    owner = [0, 0, 0, 2, 3, 3]
    f = torch.zeros(4, 10, dtype=torch.float64)
    f[owner, latents] = values
    torch.testing.assert_close(sparse_decode(latents, values, W, offsets), f @ W)
    torch.testing.assert_close(sparse_dots(latents, x, W, offsets), (x @ W.T)[owner, latents])
    out = torch.zeros_like(W)
    accumulate_rows(out, latents, values, x, offsets)
    torch.testing.assert_close(out, f.T @ x)
    assert (out[[2, 3, 5, 6, 7, 8]] == 0).all()


def test_nothing_active_decodes_to_zero_and_moves_nothing() -> None:
    W, none, out = torch.randn(5, 3), torch.empty(0, dtype=torch.long), torch.ones(5, 3)
    assert torch.equal(sparse_decode(none, torch.empty(0), W, torch.zeros(3, dtype=torch.long)), torch.zeros(2, 3))
    accumulate_rows(out, none, torch.empty(0), torch.randn(2, 3), torch.zeros(3, dtype=torch.long))
    assert torch.equal(out, torch.ones(5, 3))
    assert sparse_decode(torch.empty(0, 4, dtype=torch.long), torch.empty(0, 4), W).shape == (0, 3)


def test_gradients_have_the_same_bits_with_one_thread_and_with_two() -> None:
    draw = torch.Generator().manual_seed(3)
    x, W, b = (torch.randn(*shape, generator=draw) for shape in ((256, 64), (2048, 64), (2048,)))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        values, latents = blockwise_topk(x, W, b, 16)
        out = torch.zeros_like(W)
        accumulate_rows(out, latents, values, x)
        results.append((out, sparse_dots(latents, x, W), sparse_decode(latents, values, W)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results))


def best_of_batch(p: Tensor, total: int) -> list[tuple[int, int]]:
    """(token, latent) of the `total` largest positive values, in that order, as python sorts them."""
    cells = itertools.product(range(p.shape[0]), range(p.shape[1]))
    best = sorted((c for c in cells if p[c] > 0), key=lambda c: (-p[c].item(), c))[:total]
    return sorted(best)


@pytest.mark.parametrize("total", [1, 10, 60, 1200])
def test_the_largest_of_a_batch_wherever_they_are(total: int) -> None:
    """Tokens of very unequal length: one holds most of the largest values, so it is asked for more and more."""
    x, W, b = make(15, 80, 6)
    x *= torch.logspace(-2, 2, 15, dtype=torch.float64)[:, None]
    p = x @ W.T + b
    codes = batch_topk(x, W, b, total)
    cells = best_of_batch(p, total)
    assert list(zip(codes.rows().tolist(), codes.latents.tolist())) == cells
    torch.testing.assert_close(codes.values, p[tuple(torch.tensor(cells).T)])


def test_of_equal_values_at_the_border_of_a_batch_the_first_are_kept() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randint(-1, 2, (12, 3), generator=draw).double()
    W = torch.randint(-1, 2, (30, 3), generator=draw).double()
    for total in (5, 24, 60, 300):
        codes = batch_topk(x, W, torch.zeros(30).double(), total)
        assert list(zip(codes.rows().tolist(), codes.latents.tolist())) == best_of_batch(x @ W.T, total)


def test_a_batch_with_nothing_positive_is_empty() -> None:
    x, W, _ = make(3, 7, 4)
    codes = batch_topk(x, W, torch.full((7,), -1e3).double(), 6)
    assert codes.offsets.tolist() == [0, 0, 0, 0] and len(codes.values) == 0


def test_memory_is_bounded_by_the_block_however_many_tokens_and_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix of pre-activations that is made is seen; none is larger than a block of tokens x a block of latents."""
    made = []

    def watch(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        made.append((x.shape[0], W.shape[0]))
        return pre_activations(x, W, b)

    monkeypatch.setattr(kernels, "pre_activations", watch)
    monkeypatch.setitem(kernels.BLOCK_TOKENS, "cpu", 16)
    x, W, b = make(100, 90, 4)
    blockwise_topk(x, W, b, 3, block=32)
    batch_topk(x, W, b, 300)
    assert max(n for n, _ in made) <= 16 and sum(n * m for n, m in made[:21]) == 100 * 90
