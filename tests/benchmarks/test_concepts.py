"""What finding the best concepts of many units costs beside the bare product, in time and memory; run with `make bench`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from miclip_core.concepts.cosines import score_blocks
from miclip_core.concepts.memory import CONCEPT_BLOCK, UNIT_BLOCK, scoring_bytes
from miclip_core.concepts.top import TopScores
from tests.benchmarks.measures import run_child, seconds

E, TAU = 512, 5


def make_vectors(n: int, seed: int = 0, distinct: int | None = None) -> Tensor:
    """Gaussian vectors; with `distinct`, that many of them over and over, as decoded latents that are not active tie."""
    x = torch.randn(distinct or n, E, generator=torch.Generator().manual_seed(seed))
    return x if distinct is None else x.repeat(-(-n // distinct), 1)[:n].contiguous()


def bare(units: Tensor, concepts: Tensor, dtype: torch.dtype) -> None:
    """The product alone, block by block, each thrown away."""
    units, concepts = units.to(dtype), concepts.to(dtype)
    for rows in units.split(UNIT_BLOCK):
        for columns in concepts.split(CONCEPT_BLOCK):
            rows @ columns.T


def kept(units: Tensor, concepts: Tensor) -> None:
    """Float32 products and the top lists of both directions: what any method's blocks cost beside making them."""
    top = TopScores(len(units), len(concepts), TAU)
    for u in range(0, len(units), UNIT_BLOCK):
        for c in range(0, len(concepts), CONCEPT_BLOCK):
            top.add(u, c, units[u : u + UNIT_BLOCK] @ concepts[c : c + CONCEPT_BLOCK].T)


@pytest.mark.bench
@pytest.mark.parametrize("threads", [1, 2])
def test_exact_top_lists_of_both_directions_against_the_bare_product(threads: int) -> None:
    """Units of one vector each, and units of which 50 each are the same, so that all concepts are scored again exactly."""
    torch.set_num_threads(threads)
    units, tied, concepts = make_vectors(16384), make_vectors(16384, 0, 328), make_vectors(8192, 1)
    taken = seconds(
        3,
        {
            "bare float32 product": lambda: bare(units, concepts, torch.float32),
            "bare float64 product": lambda: bare(units, concepts, torch.float64),
            "float32 product and top lists": lambda: kept(units, concepts),
            "exact top lists": lambda: score_blocks(units, concepts, TAU),
            "exact top lists with ties": lambda: score_blocks(tied, concepts, TAU),
        },
    )
    print(f"\n{len(units)} units x {len(concepts)} concepts, width {E}, tau {TAU}, {threads} threads")
    for name, s in taken.items():
        print(f"{name}: {s:.2f} s, {s / taken['bare float32 product']:.2f} of the bare product")


CHILD = """
import json, sys, torch
from miclip_core.concepts.cosines import score_blocks
from tests.benchmarks.measures import peak
from tests.benchmarks.test_concepts import TAU, make_vectors
torch.set_num_threads(2)
units, concepts, distinct = map(int, sys.argv[1:])
score_blocks(make_vectors(64), make_vectors(64, 1), TAU)  # libraries are loaded and threads have their stacks
units, concepts = make_vectors(units, 0, distinct or None), make_vectors(concepts, 1)
before = peak()
top = score_blocks(units, concepts, TAU)
full = bool((top.concepts_of_unit.ids_NK >= 0).all() and (top.units_of_concept.ids_NK >= 0).all())
print(json.dumps({"taken": peak() - before, "full": full}))
"""


@pytest.mark.bench
@pytest.mark.parametrize("units, concepts, distinct", [(100_000, 20_000, 0), (100_000, 4_000, 40)])
def test_the_memory_of_a_hundred_thousand_units_is_as_stated(units: int, concepts: int, distinct: int) -> None:
    """With vectors that all differ, and with 40 vectors that repeat, so that every score of a block ties."""
    found = run_child(CHILD, units, concepts, distinct, timeout=900)
    stated = scoring_bytes(units, concepts, E, TAU)
    print(
        f"\n{units} units x {concepts} concepts: peak {found['taken'] / 2**20:.0f} MiB, stated {stated / 2**20:.0f} MiB, "
        f"all scores at once {4 * units * concepts / 2**20:.0f} MiB"
    )
    assert found["full"]
    assert found["taken"] <= stated
