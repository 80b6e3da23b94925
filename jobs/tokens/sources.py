"""Where tokens come from: a published table of activations, or a forward pass over the images; both give equal rows."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from jobs.forward import ImageBatch, IndexForward
from jobs.protocol import ImageBytes, Inputs
from jobs.rows import ROUND_TO, Rows, stop_for, usable_rows
from jobs.sae_tokens import SiteTokens
from miclip_core.zoo.model import VisionModel
from schemas.errors import NonFiniteActivation, TableMismatch
from schemas.refs import Site

_COLUMNS = ("image_id", "image_index", "token", "act")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Tokens of one site, ordered by (image_index, token).

    values: [N, d] in the stored dtype, on the CPU. image_of_row: int32 [N], position in `images`. token: int32 [N],
    position inside the site. images: (image_index, image_id) of every image that gave rows.
    """

    values: Tensor
    image_of_row: np.ndarray
    token: np.ndarray
    images: tuple[tuple[int, str], ...]


class Source(Protocol):
    """Rows of an index as tokens: a pure function of the stages it serves and the range that is asked for."""

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        """For each of the disjoint ranges of rows of the index, in order: what its images gave at each of `sites`.

        Raises:
            NonFiniteActivation: a value is NaN or infinite.
        """
        ...


class TableSource:
    """Tokens of stored `activations`; no more is read than the row groups and columns that hold them."""

    def __init__(self, inputs: Inputs, tokens: Iterable[SiteTokens]) -> None:
        self._inputs = inputs
        self._tokens = {t.site: t for t in tokens}

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        """As `Source.read`; all ranges are held at once, because a row group that serves several is read once.

        Raises:
            KeyMissing: a stage is not published. DamagedPart: its parts are not whole.
        """
        found = {site: self._read(self._tokens[site], ranges) for site in sites}
        for start, stop in ranges:
            yield {site: _cut(pieces, start, stop, self._tokens[site].round_to) for site, pieces in found.items()}

    def _read(self, tokens: SiteTokens, ranges: Sequence[tuple[int, int]]) -> list[_Piece]:
        """Rows of all ranges, in pieces by (image_index, token)."""
        stage = tokens.stage.digest
        pieces = []
        for batch in self._inputs.table(stage, "activations", _COLUMNS, ("image_index", ranges)):
            piece = _Piece(
                # a copy in any case: a view would keep the whole row group in memory
                _to_matrix(batch.column("act"), stage).to(ROUND_TO[tokens.round_to], copy=True),
                batch.column("image_index").to_numpy(),
                batch.column("token").to_numpy(),
                batch.column("image_id"),
            )
            _refuse_nonfinite(piece, tokens)
            pieces.append(piece)
        return _sorted(pieces)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some rows of a table of activations; every array is [N], N > 0."""

    values: Tensor
    image_index: np.ndarray
    token: np.ndarray
    image_id: pa.Array

    def slice(self, low: int, high: int) -> _Piece:
        """Rows [low, high), without a copy."""
        ids = self.image_id.slice(low, high - low)
        return _Piece(self.values[low:high], self.image_index[low:high], self.token[low:high], ids)


def _sorted(pieces: list[_Piece]) -> list[_Piece]:
    """The same rows by (image_index, token), as they are in every table of ours already."""
    if not pieces:
        return []
    index = np.concatenate([piece.image_index for piece in pieces])
    order = np.lexsort((np.concatenate([piece.token for piece in pieces]), index))
    if (order[1:] > order[:-1]).all():
        return pieces
    whole, to = _join_pieces(pieces), torch.from_numpy(order)
    return [
        _Piece(whole.values[to], whole.image_index[order], whole.token[order], whole.image_id.take(pa.array(order)))
    ]


def _join_pieces(pieces: Sequence[_Piece]) -> _Piece:
    if len(pieces) == 1:
        return pieces[0]
    return _Piece(
        torch.cat([piece.values for piece in pieces]),
        np.concatenate([piece.image_index for piece in pieces]),
        np.concatenate([piece.token for piece in pieces]),
        pa.concat_arrays([piece.image_id for piece in pieces]),
    )


def _cut(pieces: Sequence[_Piece], start: int, stop: int, round_to: str) -> TokenRows:
    """The rows of one range; an image's id is looked up once, not once per row."""
    inside = []
    for i in range(bisect_left(pieces, start, key=lambda piece: piece.image_index[-1]), len(pieces)):
        if pieces[i].image_index[0] >= stop:
            break
        low, high = np.searchsorted(pieces[i].image_index, [start, stop]).tolist()
        if low < high:
            inside.append(pieces[i].slice(low, high))
    if not inside:
        return _no_rows(round_to)
    rows = _join_pieces(inside)
    first = np.flatnonzero(np.diff(rows.image_index, prepend=-1))
    image_of_row = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(first, append=len(rows.image_index)))
    names = rows.image_id.take(pa.array(first)).to_pylist()
    images = tuple(zip(rows.image_index[first].tolist(), names, strict=True))
    return TokenRows(rows.values, image_of_row, rows.token, images)


def _no_rows(round_to: str) -> TokenRows:
    empty = np.empty(0, np.int32)
    return TokenRows(torch.empty(0, 0, dtype=ROUND_TO[round_to]), empty, empty, ())


class LiveSource:
    """The tokens that extraction would store, computed when they are asked for; nothing is stored."""

    def __init__(self, model: VisionModel, inputs: Inputs, tokens: Sequence[SiteTokens], threads: int) -> None:
        """tokens: sites of one forward pass. threads: those that decode images."""
        self._model = model
        self._inputs = inputs
        self._tokens = {t.site: t for t in tokens}
        self._stops = tokens[0].forward.params["on_nonfinite"] == "stop"
        self._forward = IndexForward(model, tokens[0].forward, threads)
        self.notes = self._forward.notes

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        """As `Source.read`; images that cannot be used are left out or stop it, as the forward says.

        Batches are filled across ranges, so that short ones waste no forward pass.
        """
        parsed = {name: Site.parse(name) for name in sites}
        waiting = deque((range(start, stop), {name: list[Rows]() for name in sites}) for start, stop in ranges)
        for batch in self._forward.run(self._inputs, ranges, list(parsed.values())):
            for name, site in parsed.items() if batch.out is not None else ():
                for rows in self._rows(batch, self._tokens[name], site):
                    _share(rows, ((images, found[name]) for images, found in waiting))
            while batch.images and batch.images[-1].image_index not in waiting[0][0]:
                yield self._joined(waiting.popleft()[1])
        for _, found in waiting:
            yield self._joined(found)

    def _joined(self, found: Mapping[str, list[Rows]]) -> dict[str, TokenRows]:
        return {name: _join(rows) if rows else _no_rows(self._tokens[name].round_to) for name, rows in found.items()}

    def _rows(self, batch: ImageBatch, tokens: SiteTokens, site: Site) -> Iterator[Rows]:
        assert batch.out is not None
        rows, unusable = usable_rows(batch.out, site, batch.images, tokens.round_to)
        if unusable and self._stops:
            raise stop_for(unusable[0], self._model.facts.model)
        if rows is not None:
            yield Rows(rows.values.to(ROUND_TO[tokens.round_to]).cpu(), rows.positions, rows.images)


def _share(rows: Rows, ranges: Iterable[tuple[range, list[Rows]]]) -> None:
    """Give each range the rows of its images, which stand together and in the order of the ranges."""
    low = 0
    for images, found in ranges:
        high = low
        while high < len(rows.images) and rows.images[high].image_index in images:
            high += 1
        if high > low:
            positions = rows.positions if rows.positions.ndim == 1 else rows.positions[low:high]
            found.append(Rows(rows.values[low:high], positions, rows.images[low:high]))
        if high == len(rows.images):
            return
        low = high


def _join(batches: Sequence[Rows]) -> TokenRows:
    per_image = batches[0].values.shape[1]
    images: list[ImageBytes] = [image for rows in batches for image in rows.images]
    return TokenRows(
        torch.cat([rows.values.flatten(0, 1) for rows in batches]),
        np.repeat(np.arange(len(images), dtype=np.int32), per_image),
        np.concatenate([rows.position_matrix().reshape(-1) for rows in batches]).astype(np.int32),
        tuple((image.image_index, image.image_id) for image in images),
    )


def _to_matrix(column: pa.ListArray, stage: str) -> Tensor:
    """[rows, width] float32 over the memory of the column."""
    lengths = pc.min_max(pc.list_value_length(column))
    low, high = lengths["min"].as_py(), lengths["max"].as_py()
    if low != high:
        raise TableMismatch(f"activations of stage {stage}: expected vectors of one width, found {low} to {high}")
    return torch.from_dlpack(column.flatten()).reshape(len(column), low)


def _refuse_nonfinite(piece: _Piece, tokens: SiteTokens) -> None:
    if all(torch.isfinite(bound) for bound in torch.aminmax(piece.values)):  # one pass, and NaN comes through
        return
    row = int((~torch.isfinite(piece.values).all(1)).nonzero()[0])
    raise NonFiniteActivation(
        f"stage {tokens.stage.digest}: {tokens.site} of {tokens.forward.model} is NaN or infinite for image "
        f"{piece.image_id[row]} (image_index {piece.image_index[row]}, token {piece.token[row]}); no autoencoder can be "
        "trained on that; extract it again with dtype: fp32 and on_nonfinite: quarantine"
    )
