"""What works hold back: the FLOPs planned for their tasks, and for the longest chain of stages that wait for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jobs.protocol import Estimate, flops_of
from schemas.plans import Plan


class HeldBack(NamedTuple):
    """FLOPs of one task, and of the longest chain of stages that cannot begin before all tasks are done; 0 if not planned."""

    task: float = 0.0
    after: float = 0.0


NOTHING = HeldBack()


def find_chains(plans: Sequence[Plan], estimates: Mapping[str, Estimate]) -> dict[str, int]:
    """Stage -> FLOPs of the longest chain of stages that read it, and read what is made of it."""
    stages = {plan.digest for plan in plans}
    inputs = {plan.digest: stages & set(plan.stage.inputs.values()) for plan in plans}
    unknown = Counter(read for reads in inputs.values() for read in reads)  # readers whose own chain is not known yet
    after = dict.fromkeys(inputs, 0)
    known = [stage for stage in inputs if not unknown[stage]]
    for stage in known:  # grows
        flops = after[stage] + flops_of([estimates.get(stage, Estimate())])
        for read in inputs[stage]:
            after[read] = max(after[read], flops)
            unknown[read] -= 1
            if not unknown[read]:
                known.append(read)
    return after


def join(plans: Iterable[Plan], estimates: Mapping[str, Estimate], chains: Mapping[str, int]) -> HeldBack:
    """What siblings hold back that one worker does in one pass."""
    plans = list(plans)
    flops = flops_of([estimates.get(plan.digest, Estimate()) for plan in plans])
    tasks = max(plan.n_shards for plan in plans)
    return HeldBack(flops / max(1, tasks), max(chains[plan.digest] for plan in plans))
