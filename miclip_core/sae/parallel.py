"""How the workers of one data-parallel training agree: sums, maxima and lists over all of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist


class Group(Protocol):
    """The workers that train one SAE together; every method is called by all of them, in the same order."""

    rank: int
    size: int

    def all_sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the workers, in place."""

    def all_max(self, tensor: Tensor) -> None:
        """Replace `tensor` by its maximum over the workers, in place."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The 1-d tensors of all workers, of any lengths, in the order of their ranks."""
        ...


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def all_sum(self, tensor: Tensor) -> None:
        """It is the sum already."""

    def all_max(self, tensor: Tensor) -> None:
        """It is the maximum already."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The one tensor."""
        return [tensor]


class TorchGroup:
    """A process group of torch.distributed (gloo on CPUs, NCCL on GPUs); None is the default group."""

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.process_group = process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)

    def all_sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the workers, in place."""
        dist.all_reduce(tensor, dist.ReduceOp.SUM, self.process_group)

    def all_max(self, tensor: Tensor) -> None:
        """Replace `tensor` by its maximum over the workers, in place."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self.process_group)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The 1-d tensors of all workers, of any lengths, in the order of their ranks."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=tensor.device)
        lengths[self.rank] = len(tensor)
        self.all_sum(lengths)
        padded = tensor.new_zeros(int(lengths.max()))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, self.process_group)
        return [part[:length] for part, length in zip(parts, lengths.tolist())]
