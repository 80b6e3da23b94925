"""The best concepts of every unit and the best units of every concept, kept while blocks of scores go by.

A score is any float but NaN and minus infinity, which mean that a pair has none; scores are kept and compared as float32.
Of equal scores the lower number comes first. Lists depend on the scores alone, never on how they were cut into blocks or
in which order those came, and a list of tau is the beginning of a list of tau + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from miclip_core.sae.kernels import lowest_topk

NONE = -1
"""The number of what is not there: at the end of a list of fewer than its length."""


@dataclass(eq=False)
class TopLists:
    """For each of N rows its K best columns, best first.

    ids int64 [N,K]: numbers of columns, NONE at the end of a list that is not full. scores float32 [N,K]: minus
    infinity there.
    """

    ids_NK: Tensor
    scores_NK: Tensor

    @classmethod
    def empty(cls, rows: int, k: int, device: torch.device | str = "cpu") -> TopLists:
        """Lists of nothing."""
        return cls(
            torch.full((rows, k), NONE, dtype=torch.int64, device=device),
            torch.full((rows, k), -torch.inf, device=device),
        )

    @property
    def k(self) -> int:
        """Length of a full list."""
        return self.ids_NK.shape[1]

    def add(self, rows_R: Tensor, columns_C: Tensor, scores_RC: Tensor) -> None:
        """Take scores of these rows for these columns, both int64, columns ascending, none of either twice.

        Raises:
            ValueError: scores of another shape, or of a pair that a list holds already.
        """
        if scores_RC.shape != (len(rows_R), len(columns_C)):
            raise ValueError(f"scores {tuple(scores_RC.shape)} for {len(rows_R)} rows and {len(columns_C)} columns")
        if scores_RC.numel() == 0:
            return
        scores_RC = scores_RC.detach().float()
        maxima, chunk = _maxima(scores_RC, self.k)
        best_R = maxima.amax(1)
        if best_R.isnan().any():
            scores_RC = scores_RC.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
            maxima, chunk = _maxima(scores_RC, self.k)
            best_R = maxima.amax(1)
        open_R = (best_R >= self.scores_NK[rows_R, -1]).nonzero()[:, 0]
        if len(open_R):
            values, places = _best(scores_RC, open_R, maxima, chunk, self.k)
            self.add_lists(rows_R[open_R], columns_C[places], values)

    def merge(self, other: TopLists) -> None:
        """Take what lists of other columns found for the same rows.

        Raises:
            ValueError: other numbers of rows, another length, or a pair that both hold.
        """
        if other.ids_NK.shape != self.ids_NK.shape:
            raise ValueError(f"lists {tuple(other.ids_NK.shape)} cannot join lists {tuple(self.ids_NK.shape)}")
        rows = torch.arange(len(self.ids_NK), device=self.ids_NK.device)
        self.add_lists(rows, other.ids_NK, other.scores_NK)

    def add_lists(self, rows_R: Tensor, ids: Tensor, scores: Tensor) -> None:
        """Take some columns of each of these rows: int64 [R,any] and their scores, minus infinity where there is none.

        Raises:
            ValueError: a pair that a list holds already.
        """
        ids = torch.cat((self.ids_NK[rows_R], ids.where(scores > -torch.inf, NONE)), 1)
        ids, order = ids.sort(dim=1)
        twice = ((ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != NONE)).nonzero()
        if len(twice):
            row, place = twice[0].tolist()
            raise ValueError(f"row {int(rows_R[row])} and column {int(ids[row, place])} were scored twice")
        scores = torch.cat((self.scores_NK[rows_R], scores), 1).gather(1, order)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        self.ids_NK[rows_R] = ids.gather(1, order)[:, : self.k]
        self.scores_NK[rows_R] = scores[:, : self.k]

    def put(self, first_row: int, other: TopLists, first_column: int = 0) -> None:
        """Replace rows from `first_row` on by lists as long, whose columns are numbered from `first_column`."""
        rows = slice(first_row, first_row + len(other.ids_NK))
        self.ids_NK[rows] = other.ids_NK + first_column * (other.ids_NK != NONE)
        self.scores_NK[rows] = other.scores_NK

    def clear(self, rows_R: Tensor) -> None:
        """Forget what was found for these rows."""
        self.ids_NK[rows_R], self.scores_NK[rows_R] = NONE, -torch.inf


def _maxima(scores_RC: Tensor, k: int) -> tuple[Tensor, int]:
    """The maximum of each chunk of neighbouring columns, the last of which may be shorter, and how long a chunk is.

    With sqrt(C / k) columns in each, choosing among the maxima and then inside k chunks takes the fewest steps.
    """
    columns = scores_RC.shape[1]
    chunk = max(1, math.isqrt(columns // k))
    whole = columns - columns % chunk
    if scores_RC.stride(1) == 1:
        maxima = scores_RC[:, :whole].unflatten(1, (-1, chunk)).amax(2)
    else:  # a transpose: whole rows of what lies in memory are compared, which is many times faster
        maxima = scores_RC.T[:whole].unflatten(0, (-1, chunk)).amax(1).T
    if whole < columns:
        maxima = torch.cat((maxima, scores_RC[:, whole:].amax(1, keepdim=True)), 1)
    return maxima, chunk


def _best(scores_RC: Tensor, rows: Tensor, maxima: Tensor, chunk: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of these rows [rows, <= k] and their columns; of equal scores the lowest columns, in order.

    They are inside the k chunks of largest maxima, of equal ones the first: whatever is elsewhere has k chunks before
    its own, each with a larger score or an equal one further left. So all others need not be sorted.
    """
    _, chunks = lowest_topk(maxima[rows].contiguous(), k)
    columns = chunks.sort(dim=1).values[:, :, None] * chunk + torch.arange(chunk, device=chunks.device)
    columns = columns.flatten(1)
    beyond = columns >= scores_RC.shape[1]
    columns.masked_fill_(beyond, 0)
    values = scores_RC[rows[:, None], columns].masked_fill_(beyond, -torch.inf)
    values, places = lowest_topk(values, k)
    return values, columns.gather(1, places)


class TopScores:
    """Both directions over one table of units x concepts: descriptions D_u and localisations L_c of MICLIP.

    concepts_of_unit: lists [U,tau] of concepts. units_of_concept: lists [M,tau] of units. States of different blocks of
    the same table merge, so any worker may score any block, each block once.
    """

    def __init__(
        self, units: int, concepts: int, tau: int, alive_U: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """alive bool [U]: units outside are described as others are, but found for no concept; None lets all in.

        Raises:
            ValueError: a tau below 1, or a mask of another length.
        """
        if tau < 1:
            raise ValueError(f"tau is {tau}; expected at least 1")
        if alive_U is not None and alive_U.shape != (units,):
            raise ValueError(f"alive is {tuple(alive_U.shape)}; expected one bool for each of {units} units")
        self.alive_U = torch.ones(units, dtype=torch.bool) if alive_U is None else alive_U.bool()
        self.alive_U = self.alive_U.to(device)
        self.concepts_of_unit = TopLists.empty(units, tau, device)
        self.units_of_concept = TopLists.empty(concepts, tau, device)

    def add(self, first_unit: int, first_concept: int, scores_UM: Tensor) -> None:
        """Take the scores of a block: units from `first_unit` and concepts from `first_concept` on.

        Raises:
            ValueError: a block that leaves the table, or one that was added before.
        """
        ends = (first_unit, first_unit + scores_UM.shape[0]), (first_concept, first_concept + scores_UM.shape[1])
        sizes = len(self.concepts_of_unit.ids_NK), len(self.units_of_concept.ids_NK)
        if any(not 0 <= start <= stop <= size for (start, stop), size in zip(ends, sizes)):
            raise ValueError(f"units and concepts {ends[0]}, {ends[1]} leave the table of {sizes[0]} x {sizes[1]}")
        units, concepts = (torch.arange(*end, device=scores_UM.device) for end in ends)
        self.add_at(units, concepts, scores_UM)

    def add_at(self, units_U: Tensor, concepts_M: Tensor, scores_UM: Tensor) -> None:
        """The same for a block of any units and concepts: int64, ascending."""
        self.concepts_of_unit.add(units_U, concepts_M, scores_UM)
        alive_U = self.alive_U[units_U]
        if not alive_U.all():
            units_U, scores_UM = units_U[alive_U], scores_UM[alive_U]
        self.units_of_concept.add(concepts_M, units_U, scores_UM.T)

    def merge(self, other: TopScores) -> None:
        """Take what another state found in other blocks of the same table.

        Raises:
            ValueError: the other is of another table, another tau or other living units, or a pair is in both.
        """
        if not torch.equal(self.alive_U, other.alive_U):
            raise ValueError("the other state knows other units as alive; give all the same mask")
        self.concepts_of_unit.merge(other.concepts_of_unit)
        self.units_of_concept.merge(other.units_of_concept)
