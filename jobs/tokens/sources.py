"""Where tokens come from: a published table of activations, or a forward pass over the images; both give equal rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from jobs.forward import IndexForward
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

    def read(self, start: int, stop: int, sites: Sequence[str]) -> dict[str, TokenRows]:
        """What the images in rows [start, stop) of the index gave at each of `sites`.

        Raises:
            NonFiniteActivation: a value is NaN or infinite.
        """
        ...


class TableSource:
    """Tokens of stored `activations`; no more is read than the row groups and columns that hold them."""

    def __init__(self, inputs: Inputs, tokens: Iterable[SiteTokens]) -> None:
        self._inputs = inputs
        self._tokens = {t.site: t for t in tokens}

    def read(self, start: int, stop: int, sites: Sequence[str]) -> dict[str, TokenRows]:
        """As `Source.read`. Raises KeyMissing if a stage is not published, DamagedPart if its parts are not whole."""
        return {site: self._read(self._tokens[site], start, stop) for site in sites}

    def _read(self, tokens: SiteTokens, start: int, stop: int) -> TokenRows:
        between = ("image_index", start, stop)
        stage, dtype = tokens.stage.digest, ROUND_TO[tokens.round_to]
        ids, indices, positions, values = [], [], [], []
        for batch in self._inputs.table(stage, "activations", _COLUMNS, between):
            ids.append(batch.column("image_id"))
            indices.append(batch.column("image_index").to_numpy())
            positions.append(batch.column("token").to_numpy())
            values.append(_to_matrix(batch.column("act"), stage).to(dtype))
        if not values:
            return _join([], dtype)
        index, token, joined = np.concatenate(indices), np.concatenate(positions), torch.cat(values)
        order = np.lexsort((token, index))
        if (order[1:] < order[:-1]).any():  # no table of ours, but one may be imported
            index, token, joined = index[order], token[order], joined[torch.from_numpy(order)]
        else:
            order = np.arange(len(index))
        first = np.flatnonzero(np.diff(index, prepend=-1))
        names = pa.chunked_array(ids).take(pa.array(order[first])).to_pylist()
        images = tuple(zip(index[first].tolist(), names, strict=True))
        image_of_row = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(first, append=len(index)))
        rows = TokenRows(joined, image_of_row, token.astype(np.int32, copy=False), images)
        _refuse_nonfinite(rows, tokens)
        return rows


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

    def read(self, start: int, stop: int, sites: Sequence[str]) -> dict[str, TokenRows]:
        """As `Source.read`; images that cannot be used are left out or stop it, as the forward says."""
        found: dict[str, list[Rows]] = {site: [] for site in sites}
        parsed = {name: Site.parse(name) for name in sites}
        for batch in self._forward.run(self._inputs, start, stop, list(parsed.values())):
            if batch.out is None:
                continue
            for name, site in parsed.items():
                rows, unusable = usable_rows(batch.out, site, batch.images, self._tokens[name].round_to)
                if unusable and self._stops:
                    raise stop_for(unusable[0], self._model.facts.model)
                if rows is not None:
                    to = ROUND_TO[self._tokens[name].round_to]
                    found[name].append(Rows(rows.values.to(to).cpu(), rows.positions, rows.images))
        return {name: _join(rows, ROUND_TO[self._tokens[name].round_to]) for name, rows in found.items()}


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


def _refuse_nonfinite(rows: TokenRows, tokens: SiteTokens) -> None:
    finite = torch.isfinite(rows.values)
    if finite.all():
        return
    row = int((~finite.all(1)).nonzero()[0])
    index, image_id = rows.images[rows.image_of_row[row]]
    raise NonFiniteActivation(
        f"stage {tokens.stage.digest}: {tokens.site} of {tokens.forward.model} is NaN or infinite for image {image_id} "
        f"(image_index {index}, token {rows.token[row]}); no autoencoder can be trained on that; extract it again with "
        "dtype: fp32 and on_nonfinite: quarantine"
    )
