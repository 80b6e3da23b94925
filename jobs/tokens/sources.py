"""Where tokens come from: a published table of activations, or a forward pass over the images; both give equal rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
            yield {site: _cut(rows, start, stop) for site, rows in found.items()}

    def _read(self, tokens: SiteTokens, ranges: Sequence[tuple[int, int]]) -> _Table:
        stage, dtype = tokens.stage.digest, ROUND_TO[tokens.round_to]
        ids, indices, positions, values = [], [], [], []
        for batch in self._inputs.table(stage, "activations", _COLUMNS, ("image_index", ranges)):
            ids.append(batch.column("image_id"))
            indices.append(batch.column("image_index").to_numpy())
            positions.append(batch.column("token").to_numpy())
            values.append(_to_matrix(batch.column("act"), stage).to(dtype))
        if not values:
            return _Table(torch.empty(0, 0, dtype=dtype), np.empty(0, np.int64), np.empty(0, np.int32), pa.nulls(0))
        table = _Table(torch.cat(values), np.concatenate(indices), np.concatenate(positions), pa.chunked_array(ids))
        _refuse_nonfinite(table, tokens)
        return table.sorted()


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows of a table of activations; every array is [N]."""

    values: Tensor
    image_index: np.ndarray
    token: np.ndarray
    image_id: pa.ChunkedArray

    def sorted(self) -> _Table:
        """By (image_index, token), as every table of ours is already."""
        order = np.lexsort((self.token, self.image_index))
        if (order[1:] > order[:-1]).all():
            return self
        values = self.values[torch.from_numpy(order)]
        return _Table(values, self.image_index[order], self.token[order], self.image_id.take(pa.array(order)))


def _cut(table: _Table, start: int, stop: int) -> TokenRows:
    """The rows of one range; an image's id is looked up once, not once per row."""
    low, high = np.searchsorted(table.image_index, [start, stop]).tolist()
    index = table.image_index[low:high]
    first = np.flatnonzero(np.diff(index, prepend=-1))
    names = table.image_id.take(pa.array(first + low)).to_pylist()
    return TokenRows(
        table.values[low:high],
        np.repeat(np.arange(len(first), dtype=np.int32), np.diff(first, append=len(index))),
        table.token[low:high],
        tuple(zip(index[first].tolist(), names, strict=True)),
    )


class LiveSource:
    """The tokens that extraction would store, computed when they are asked for; nothing is stored.

    Images are run in batches of the forward's `batch_size`; ranges that are a multiple of it waste nothing.
    """

    def __init__(self, model: VisionModel, inputs: Inputs, tokens: Sequence[SiteTokens], threads: int) -> None:
        """tokens: sites of one forward pass. threads: those that decode images."""
        self._model = model
        self._inputs = inputs
        self._tokens = {t.site: t for t in tokens}
        self._stops = tokens[0].forward.params["on_nonfinite"] == "stop"
        self._forward = IndexForward(model, tokens[0].forward, threads)
        self.notes = self._forward.notes

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        """As `Source.read`; images that cannot be used are left out or stop it, as the forward says."""
        parsed = {name: Site.parse(name) for name in sites}
        for start, stop in ranges:
            found: dict[str, list[Rows]] = {name: [] for name in sites}
            for batch in self._forward.run(self._inputs, start, stop, list(parsed.values())):
                for name, site in parsed.items() if batch.out is not None else ():
                    found[name] += self._rows(batch, self._tokens[name], site)
            yield {name: _join(rows, ROUND_TO[self._tokens[name].round_to]) for name, rows in found.items()}

    def _rows(self, batch: ImageBatch, tokens: SiteTokens, site: Site) -> Iterator[Rows]:
        assert batch.out is not None
        rows, unusable = usable_rows(batch.out, site, batch.images, tokens.round_to)
        if unusable and self._stops:
            raise stop_for(unusable[0], self._model.facts.model)
        if rows is not None:
            yield Rows(rows.values.to(ROUND_TO[tokens.round_to]).cpu(), rows.positions, rows.images)


def _join(batches: Sequence[Rows], dtype: torch.dtype) -> TokenRows:
    if not batches:
        return TokenRows(torch.empty(0, 0, dtype=dtype), np.empty(0, np.int32), np.empty(0, np.int32), ())
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


def _refuse_nonfinite(table: _Table, tokens: SiteTokens) -> None:
    finite = torch.isfinite(table.values)
    if finite.all():
        return
    row = int((~finite.all(1)).nonzero()[0])
    raise NonFiniteActivation(
        f"stage {tokens.stage.digest}: {tokens.site} of {tokens.forward.model} is NaN or infinite for image "
        f"{table.image_id[row]} (image_index {table.image_index[row]}, token {table.token[row]}); no autoencoder can be "
        "trained on that; extract it again with dtype: fp32 and on_nonfinite: quarantine"
    )
