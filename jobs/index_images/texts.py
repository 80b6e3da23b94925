"""Label, caption and attributes as text, from whatever a record or a labels file holds."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.parquet import read_parquet
from jobs.protocol import Files
from schemas.errors import BadRef, ImageChanged, KeyMissing


class Texts(NamedTuple):
    """What is said about one image."""

    label: str | None
    caption: str | None
    attributes: dict[str, str]


def as_texts(row: Mapping[str, Any]) -> Texts:
    """`label` and `caption` of a row (the first of several captions) and the rest as attributes, without empty ones."""
    texts = {key: text for key, value in row.items() if (text := _as_text(value))}
    captions = row.get("caption")
    if isinstance(captions, list) and captions:
        texts["captions"], texts["caption"] = texts["caption"], str(captions[0])
    return Texts(texts.pop("label", None), texts.pop("caption", None), texts)


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, bytes):
        return ""
    if isinstance(value, float) and math.isnan(value):
        return ""  # how tables of numbers say that there is none
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)


class LabelsFile:
    """A CSV or Parquet file whose column `file` names images: their path below the root, or their file name."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self._table = _read_parquet(path, data) if path.endswith(".parquet") else _read_csv(path, data)
        if "file" not in self._table.column_names:
            raise BadRef(f"labels {path}: no column 'file'; found {', '.join(self._table.column_names)}")
        names = pc.cast(self._table.column("file"), pa.string()).combine_chunks()
        self._names = pc.replace_substring_regex(names, r"^(\./)+", "")
        counts = pc.value_counts(self._names)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise BadRef(f"labels {path}: file {twice[0]['values'].as_py()!r} is named twice; keep one row")

    def __len__(self) -> int:
        return len(self._names)

    def find(self, names: Sequence[str]) -> list[int | None]:
        """The row for each image name: that of its whole path, else that of its last part, else None."""
        wanted = pa.array(sorted({*names, *(name.rpartition("/")[2] for name in names)}), pa.string())
        rows = np.flatnonzero(pc.is_in(self._names, value_set=wanted).to_numpy(zero_copy_only=False))
        row_of = dict(zip(self._names.take(pa.array(rows)).to_pylist(), rows.tolist()))
        return [row_of.get(name, row_of.get(name.rpartition("/")[2])) for name in names]

    def check_fits(self, names: Sequence[str], images: str) -> None:
        """Refuse a file that names none of these images.

        Raises:
            BadRef: with an example of both, so that the difference can be seen.
        """
        if not len(self):
            raise BadRef(f"labels {self.path}: the file has no rows")
        if names and not any(row is not None for row in self.find(names)):
            raise BadRef(
                f"labels {self.path}: none of its {len(self)} rows names an image of {images}; column 'file' holds "
                f"{self.name(0)!r}, an image is {names[0]!r}"
            )

    def texts(self, row: int) -> Texts:
        """What the file says in one row."""
        return as_texts({k: v for k, v in self._table.slice(row, 1).to_pylist()[0].items() if k != "file"})

    def name(self, row: int) -> str:
        """The name in one row."""
        return str(self._names[row].as_py())


def read_labels(path: str, files: Files, sha256: str | None = None) -> tuple[LabelsFile, str]:
    """A labels file and its sha256.

    Raises:
        BadRef: it is not there, not CSV or Parquet, or lacks the column `file`.
        ImageChanged: it is not the one with `sha256` any more.
    """
    if not path.endswith((".csv", ".parquet")):
        raise BadRef(f"labels {path}: expected a file that ends in .csv or .parquet")
    try:
        data = files.read(path)
    except KeyMissing as error:
        raise BadRef(f"labels {path}: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise ImageChanged(f"labels {path} changed since the plan was made; run again, so that it is planned anew")
    return LabelsFile(path, data), found


def _read_csv(path: str, data: bytes) -> pa.Table:
    """Every cell as text: a label 007 stays 007."""
    import csv

    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRef(f"labels {path}: {error}; expected comma-separated UTF-8 text") from error
    header, *body = [row for row in rows if row] or [[]]
    for row in body:
        if len(row) != len(header):
            raise BadRef(f"labels {path}: {len(row)} cells in {row!r}, expected {len(header)} ({', '.join(header)})")
    columns = list(zip(*body, strict=True)) or [()] * len(header)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=header)


def _read_parquet(path: str, data: bytes) -> pa.Table:
    try:
        return read_parquet(data)
    except pa.ArrowInvalid as error:
        raise BadRef(f"labels {path}: {error}") from error
