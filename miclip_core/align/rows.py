"""Rows of vectors as alignment takes them: of the expected width, finite, and brought to length 1."""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.errors import BadAlignment


def check_rows(name: str, rows_ND: Tensor, width: int) -> None:
    """Refuse rows that are not [N, width] or not finite.

    Raises:
        BadAlignment: names what the rows are, and the shapes or the first bad rows.
    """
    check_width(name, rows_ND, width)
    if bool(
        torch.isfinite(rows_ND.sum(dtype=torch.float32))
    ):  # one pass; an overflow of the sum alone is told apart below
        return
    bad = (~torch.isfinite(rows_ND).all(1)).nonzero().flatten().tolist()
    if bad:
        raise BadAlignment(
            f"{len(bad)} of {len(rows_ND)} {name} hold NaN or infinite values, the first are rows {bad[:5]}"
        )


def check_width(name: str, rows_ND: Tensor, width: int) -> None:
    """Refuse rows that are not [N, width]. Raises: BadAlignment."""
    if rows_ND.ndim != 2 or rows_ND.shape[1] != width:
        raise BadAlignment(
            f"expected {name} [N, {width}], got {tuple(rows_ND.shape)}; are they of the right site and CLIP?"
        )


def unit_rows(name: str, rows_NE: Tensor, ids_N: Tensor | None = None) -> Tensor:
    """The rows [N,E] at length 1. ids [N]: by what numbers a message calls the rows, if not by their places.

    Raises:
        BadAlignment: NaN or infinite values, or a row of length 0, so that no cosine with it is defined.
    """
    length_N1 = rows_NE.norm(dim=1, keepdim=True)
    good_N = (length_N1[:, 0] > 0) & length_N1[:, 0].isfinite()
    if not bool(good_N.all()):
        places = (~good_N).nonzero().flatten()
        bad = (places if ids_N is None else ids_N[places]).tolist()
        raise BadAlignment(
            f"{len(bad)} {name} have length 0 or hold NaN or infinite values, the first are {bad[:5]}; leave them out"
        )
    return rows_NE / length_N1
