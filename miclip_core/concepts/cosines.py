"""Cosines of all units with all concepts, never all at once: the best of each for the other, the same bits however cut.

Sums of floats depend on how a library cuts a product, which would decide between units that tie. So a cosine is here a
sum of integers: unit vectors are rounded to multiples of 2^-26, whose products and their sums (at most 2^52, by Cauchy
and Schwarz) float64 holds exactly in any order. It is then rounded to float32, and is within sqrt(E) 2^-26 of the cosine.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from miclip_core.concepts.memory import CACHED, CONCEPT_BLOCK, SLACK, UNIT_BLOCK
from miclip_core.concepts.top import NONE, TopLists, TopScores
from schemas.errors import BadSpec

_ONE = 2.0**26


@torch.no_grad()
def score_blocks(
    units_UE: Tensor,
    concepts_ME: Tensor,
    tau: int,
    alive_U: Tensor | None = None,
    first_unit: int = 0,
    total_units: int | None = None,
    unit_block: int = UNIT_BLOCK,
    concept_block: int = CONCEPT_BLOCK,
) -> TopScores:
    """The tau concepts of largest cosine for each unit and the reverse: sim(u,c) and the top tau of MICLIP, Algorithm 2.

    units [U,E] and concepts [M,E] of any length and float type, on one device; a vector of length 0, or that is not
    finite, is in no list and has an empty one. A shard of the units says where it begins and how many there are in
    all, and its result merges with those of the others to exactly that of the whole. alive bool [all units]: as for
    TopScores.
    Never more than unit_block x concept_block scores at once; `scoring_bytes` says what memory that takes.

    A float32 product, whose error is bounded, finds tau + 3 candidates; a row whose tau exact scores do not clear the
    last candidate by that bound is done again with exact products, so ties cost time and never the result.

    Raises:
        BadSpec: vectors of different widths; a tau above the number of living units that have a direction.
        ValueError: a shard that is not among all units.
    """
    if units_UE.shape[1] != concepts_ME.shape[1]:
        raise BadSpec(
            f"units have {units_UE.shape[1]} dimensions and concepts {concepts_ME.shape[1]}; "
            "embed the concepts with the model whose space the units were mapped to"
        )
    total = len(units_UE) if total_units is None else total_units
    if not 0 <= first_unit <= total - len(units_UE):
        raise ValueError(f"{len(units_UE)} units from {first_unit} on are not among {total}")
    out = TopScores(total, len(concepts_ME), tau, alive_U, units_UE.device)
    units, concepts = _Vectors(units_UE), _Vectors(concepts_ME)
    alive_U = out.alive_U[first_unit : first_unit + len(units_UE)]
    living = (units.scored_N & alive_U).nonzero()[:, 0]
    if len(units_UE) == total and tau > len(living):
        raise BadSpec(
            f"tau is {tau}, but of {total} units only {len(living)} are alive and have a direction; lower tau"
        )
    near = TopScores(len(units_UE), len(concepts_ME), tau + SLACK, alive_U, units_UE.device)
    _add_fast(near, units, concepts, unit_block, concept_block)
    described = _settle(near.concepts_of_unit, tau, units, concepts, concepts.scored, unit_block, concept_block)
    located = _settle(near.units_of_concept, tau, concepts, units, living, unit_block, concept_block)
    out.concepts_of_unit.put(first_unit, described)
    out.units_of_concept.put(0, located, first_unit)
    return out


class _Vectors:
    """Vectors [N,E] as unit vectors on demand. scored bool [N]: those that have a direction."""

    def __init__(self, x_NE: Tensor) -> None:
        self.x_NE = x_NE
        squares = [_sum_rows(x.double().square()) for x in x_NE.split(512)]
        self.norm_N = torch.cat(squares).sqrt() if squares else x_NE.new_zeros(0, dtype=torch.float64)
        self.scored_N = self.norm_N.isfinite() & (self.norm_N > 0)

    @cached_property
    def scored(self) -> Tensor:
        """Numbers of those that have a direction, ascending."""
        return self.scored_N.nonzero()[:, 0]

    def exact(self, rows_R: Tensor) -> Tensor:
        """Float64 [R,E] whole numbers: the unit vectors times 2^26, rounded."""
        return self.x_NE[rows_R].double().div_(self.norm_N[rows_R, None] / _ONE).round_()

    def fast(self, rows_R: Tensor) -> Tensor:
        """Float32 [R,E] unit vectors."""
        return self.exact(rows_R).div_(_ONE).float()


def _sum_rows(x_NE: Tensor) -> Tensor:
    """Sums [N] by halving, so that their bits depend on no library's way to reduce a row."""
    while x_NE.shape[1] > 1:
        half = (x_NE.shape[1] + 1) // 2
        head = x_NE[:, :half].clone()
        head[:, : x_NE.shape[1] - half] += x_NE[:, half:]
        x_NE = head
    return x_NE[:, 0]


def _to_cosines(products: Tensor) -> Tensor:
    """Float32 cosines of exact products, which are overwritten."""
    return products.mul_(_ONE**-2).float().clamp_(-1, 1)


def _margin(width: int) -> float:
    """How far a float32 product of two rounded unit vectors can be from their exact cosine.

    Each of E terms meets at most E roundings of 2^-24, and the terms' magnitudes sum to at most 1; five more are for
    rounding the vectors and the exact cosine to float32, and for what is of second order.
    """
    return (width + 5) * 2.0**-24


def _add_fast(near: TopScores, units: _Vectors, concepts: _Vectors, unit_block: int, concept_block: int) -> None:
    """Float32 products of all that have a direction."""
    blocks = concepts.scored.split(concept_block)
    fast = [concepts.fast(columns) for columns in blocks]
    for rows in units.scored.split(unit_block):
        rows_UE = units.fast(rows)
        for columns, columns_ME in zip(blocks, fast):
            near.add_at(rows, columns, rows_UE @ columns_ME.T)


def _settle(
    near: TopLists, tau: int, a: _Vectors, b: _Vectors, among: Tensor, unit_block: int, concept_block: int
) -> TopLists:
    """For every row of a the exact tau best of these rows of b, from candidates where they suffice."""
    out = TopLists.empty(len(near.ids_NK), tau, near.ids_NK.device)
    if not len(among):
        return out
    width = a.x_NE.shape[1]
    margin = _margin(width)
    unsure, trusted = [], True
    for rows in a.scored.split(max(1, CACHED // (near.k * max(width, 1)))):
        ids, fast = near.ids_NK[rows], near.scores_NK[rows]
        b_RKE = b.exact(ids.clamp(min=0).flatten()).view(*ids.shape, width)
        known = ids != NONE
        exact = _to_cosines(b_RKE @ a.exact(rows)[:, :, None])[:, :, 0].masked_fill_(~known, -torch.inf)
        out.add_lists(rows, ids, exact)
        # whatever is in no list scores at most its last by float32, so at most `margin` above that
        unsure.append(rows[known[:, -1] & (out.scores_NK[rows, -1] <= fast[:, -1] + margin)])
        trusted &= bool(((exact - fast).abs()[known] <= margin).all())
    # a device that was told to multiply in fewer bits breaks the bound
    again = torch.cat(unsure) if trusted and unsure else a.scored
    out.clear(again)
    for rows in again.split(unit_block):
        rows_E = a.exact(rows)
        for columns in among.split(concept_block):
            out.add(rows, columns, _to_cosines(rows_E @ b.exact(columns).T))
    return out
