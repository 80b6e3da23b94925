"""Thresholds against sorting all activations, in one pass over them or many shards."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from miclip_core.dissect.thresholds import SearchState, ThresholdSearch, find_thresholds
from miclip_core.sae.codes import Codes
from schemas.errors import NonFiniteActivation, TooFewTokens


def activations(n: int = 2113, units: int = 9, seed: int = 0) -> Tensor:
    """Units of many kinds: wide, tiny, all negative, mostly zero, few distinct values, constant, zero, huge."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, units, generator=generator)
    a[:, 1] *= 1e-30
    a[:, 2] = -a[:, 2].abs() - 5
    a[:, 3] = torch.where(torch.rand(n, generator=generator) < 0.003, a[:, 3].abs(), 0.0)
    a[:, 4] = (a[:, 4] * 2).round()
    a[:, 5] = -1.5
    a[:, 6] = 0.0
    a[:, 7] *= 1e30
    a[:, 8] = a[:, 8].relu()
    return a


def by_sorting(a_NU: Tensor, share: float) -> Tensor:
    """The value at rank k + 1 from the top, where k positions may be above."""
    return a_NU.sort(0, descending=True).values[int(Fraction(str(share)) * len(a_NU))]


@pytest.mark.parametrize("share", [0.005, 0.0001, 0.3, 0.9999])
def test_a_threshold_is_the_value_that_sorting_gives(share: float) -> None:
    a_NU = activations()
    found = find_thresholds(lambda: a_NU.split(500), a_NU.shape[1], share)
    assert torch.equal(found.value, by_sorting(a_NU, share))
    assert torch.equal(found.above, (a_NU > found.value).sum(0))
    assert found.n == 2113 and (found.above <= share * 2113).all()


def test_a_thousand_distinct_values_have_exactly_five_above() -> None:
    a_NU = torch.arange(1000.0)[torch.randperm(1000, generator=torch.Generator().manual_seed(1)), None]
    found = find_thresholds(lambda: [a_NU], 1)
    assert (found.value.item(), found.above.item()) == (994.0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_two_passes(dtype: torch.dtype) -> None:
    a_NU = activations().clamp(-6e4, 6e4).to(dtype)
    passes = []
    found = find_thresholds(lambda: passes.append(1) or [a_NU], 9, half=True)  # type: ignore[func-returns-value]
    assert len(passes) == 2 and torch.equal(found.value, by_sorting(a_NU.float(), 0.005))
    assert torch.equal(found.above, (a_NU.float() > found.value).sum(0))
    with pytest.raises(ValueError, match="float16"):
        find_thresholds(lambda: [a_NU.float()], 9, half=True)


def test_shards_in_any_order_give_the_same_as_one_pass() -> None:
    a_NU = activations()
    search = ThresholdSearch(9)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        parts = []
        for shard in order:
            parts.append(search.empty())
            parts[-1].add(a_NU[shard * 800 : shard * 800 + 800])
        for part in parts:
            search.merge(part)
        search.close()
    assert torch.equal(search.thresholds().value, by_sorting(a_NU, 0.005))


def test_blocks_of_units_go_on_from_what_was_found_and_take_in_what_shards_counted() -> None:
    a_NU = activations()
    state = ThresholdSearch(9, 0.02).state()
    for _ in range(3):
        shards = []
        for shard in (2, 0, 1):
            search = ThresholdSearch.resume(state, 0.02)
            search.add(a_NU[shard * 800 : shard * 800 + 800])
            shards.append((*search.counts(), search.n))
            assert int(shards[-1][1].min()) > 0  # zeros are not kept
        blocks = []
        for units in (slice(0, 4), slice(4, 9)):
            block = ThresholdSearch.resume(state[units], 0.02)
            for place, count, n in shards:
                ends = torch.tensor([units.start * block.bins, units.stop * block.bins])
                first, stop = torch.searchsorted(place, ends).tolist()
                block.add_counts(place[first:stop] - units.start * block.bins, count[first:stop], n)
            block.close()
            blocks.append(block)
        found = [block.state() for block in blocks]
        prefix, above = (torch.cat([getattr(part, name) for part in found]) for name in ("prefix", "above"))
        state = SearchState(prefix, above, found[0].passes, found[0].n)
    result = ThresholdSearch.resume(state, 0.02).thresholds()
    assert torch.equal(result.value, by_sorting(a_NU, 0.02))
    assert torch.equal(result.above, (a_NU > result.value).sum(0)) and result.n == 2113


def test_codes_count_their_zeros() -> None:
    generator = torch.Generator().manual_seed(2)
    a_NU = torch.randn(700, 5, generator=generator)
    a_NU[:, :2] *= torch.rand(700, 2, generator=generator) < 0.002
    a_NU[:, 2] = -a_NU[:, 2].abs()  # a code may be negative, so that zero is the largest
    a_NU[:650, 2] = 0
    parts = a_NU.split(300)
    dense = find_thresholds(lambda: parts, 5)
    sparse = find_thresholds(lambda: [Codes.from_dense(part) for part in parts], 5)
    assert torch.equal(dense.value, sparse.value) and torch.equal(dense.above, sparse.above)
    assert torch.equal(sparse.value, by_sorting(a_NU, 0.005)) and sparse.value[2] == 0


def test_more_units_than_are_counted_at_once() -> None:
    a_NU = torch.randn(300, 1100, generator=torch.Generator().manual_seed(3))
    assert torch.equal(find_thresholds(lambda: [a_NU], 1100, 0.02).value, by_sorting(a_NU, 0.02))
    sparse = find_thresholds(lambda: [Codes.from_dense(a_NU.relu())], 1100, 0.02)
    assert torch.equal(sparse.value, by_sorting(a_NU.relu(), 0.02))


def test_what_makes_no_threshold_is_refused() -> None:
    with pytest.raises(NonFiniteActivation):
        find_thresholds(lambda: [torch.tensor([[1.0], [torch.nan]])], 1)
    with pytest.raises(TooFewTokens):
        find_thresholds(list, 1)
    with pytest.raises(ValueError, match="share"):
        ThresholdSearch(1, 0.0)
    search = ThresholdSearch(2)
    with pytest.raises(ValueError, match="3 units"):
        search.add(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="0 passes"):
        search.thresholds()
    first = search.empty()
    search.add(torch.zeros(4, 2))
    search.close()
    with pytest.raises(ValueError, match="another pass"):
        search.merge(first)
    search.add(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="3 positions"):
        search.close()
