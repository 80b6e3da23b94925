"""The images that excite all units of an entry most: ranked, merged over shards, and the rows of their maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.mine_rosetta.maps import Maps
from jobs.mine_rosetta.shown import Shown
from jobs.rows import make_batch
from schemas.columns import VECTOR

DIGITS = 4
"""Scores are compared after so many, so that the order in which a device sums decides no rank."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Images of entries, by entry and rank: int64 entry, rank and image_index [N], float32 score [N]."""

    entry: np.ndarray
    rank: np.ndarray
    image_index: np.ndarray
    score: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of(self, entries: np.ndarray) -> Chosen:
        """Those of some entries alone."""
        kept = np.isin(self.entry, entries)
        return Chosen(**{name: values[kept] for name, values in self.arrays.items()})

    @classmethod
    def of_scores(cls, scores: np.ndarray, first: int, most: int) -> Chosen:
        """The best images of every entry from scores float64 [rows, entries] of the rows `first` and on; NaN is no score."""
        row, entry = np.isfinite(scores).nonzero()
        return cls._best(entry, row + first, scores[row, entry].astype(np.float32), most)

    @classmethod
    def merged(cls, parts: Iterable[Mapping[str, np.ndarray]], most: int) -> Chosen:
        """The best of what several shards of images chose, as their `arrays`."""
        every = list(parts)
        entry, index, score = (
            np.concatenate([part[name] for part in every]) for name in ("entry", "image_index", "score")
        )
        return cls._best(entry, index, score, most)

    @classmethod
    def _best(cls, entry: np.ndarray, image_index: np.ndarray, score: np.ndarray, most: int) -> Chosen:
        """The best by score, of equal ones the first images."""
        order = np.lexsort((image_index, -np.round(score.astype(np.float64), DIGITS), entry))
        entry = entry[order].astype(np.int64)
        rank = np.arange(len(entry)) - np.searchsorted(entry, entry)
        kept = rank < most
        return cls(entry[kept], rank[kept], image_index[order][kept].astype(np.int64), score[order][kept])


class ExemplarRows:
    """Rows of the units of one member on the images of their entries; uris: of each image."""

    def __init__(self, stage: str, shown: Shown, chosen: Chosen, uris: Mapping[int, str | None]) -> None:
        self._stage, self._shown, self._chosen, self._uris = stage, shown, chosen, uris
        self._rows: list[dict[str, Any]] = []
        self.numbers = 0
        """Of the maps that wait."""

    def add(self, found: Maps) -> None:
        """The maps of some of the images."""
        for places, z_BPQ in self._shown.maps(found):
            maps_BQP = z_BPQ.transpose(1, 2).cpu().numpy()
            for (index, name), maps_QP in zip(found.images, maps_BQP, strict=True):
                for at in np.flatnonzero(self._chosen.image_index == index).tolist():
                    of_entry = np.flatnonzero(self._shown.entry[places] == self._chosen.entry[at])
                    self._rows += [self._row(at, name, int(places[i]), maps_QP[i]) for i in of_entry.tolist()]

    def _row(self, at: int, image_id: str, place: int, map_P: np.ndarray) -> dict[str, Any]:
        self.numbers += len(map_P)
        index = int(self._chosen.image_index[at])
        return {
            "entry": int(self._chosen.entry[at]),
            "rank": int(self._chosen.rank[at]),
            "image_id": image_id,
            "image_index": index,
            "uri": self._uris[index],
            "score": float(self._chosen.score[at]),
            "place": place,
            "peak": float(map_P.max()),
            "map": map_P,
        }

    def take(self) -> pa.RecordBatch:
        """The rows that wait, by entry, rank and unit."""
        rows = sorted(self._rows, key=lambda row: (row["entry"], row["rank"], row["place"]))
        self._rows, self.numbers = [], 0
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        units = self._shown.columns(np.array(columns.pop("place"), np.int64))
        maps = pa.array(columns.pop("map"), VECTOR)
        return make_batch("rosetta_exemplars", {"stage": self._stage, **columns, **units, "map": maps})
