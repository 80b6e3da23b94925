"""Integers in the order of floating-point numbers."""

import torch

from miclip_core.dissect.ordered import from_ordered, to_ordered


def test_keys_sort_as_the_numbers_and_give_them_back() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat((torch.randn(500, generator=generator) * 10.0 ** torch.arange(-45, 35).repeat(7)[:500],
                        torch.tensor([0.0, 1e-45, -1e-45, torch.inf, -torch.inf])))  # fmt: skip
    keys = to_ordered(values)
    assert keys.dtype == torch.int32
    assert torch.equal(values[keys.argsort()], values.sort().values)
    assert torch.equal(from_ordered(keys), values + 0.0)


def test_both_zeros_are_one_number() -> None:
    assert to_ordered(torch.tensor([-0.0, 0.0])).tolist() == [0, 0]
