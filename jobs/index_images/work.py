"""Shards of an index: read and describe every image once, then number and compare them, then write the tables."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.ahead import in_order
from jobs.index_images.plan import DUPLICATES, READ
from jobs.index_images.sources import Record, Source, open_source
from jobs.index_images.texts import LabelsFile, read_labels
from jobs.parquet import read_parquet
from jobs.protocol import Artifact, FileInfo, Inputs, Keep, Part, Setting
from miclip_core.images import RULES_VERSION, Orientation, describe
from schemas.base import canonical_json
from schemas.columns import ATTRIBUTES
from schemas.errors import BadRef, EmptyImageSet, ImageChanged, ImageUndecodable, KeyMissing
from schemas.plans import Plan, Shard
from schemas.refs import ImageSetRef
from schemas.tables import TABLES

IMAGE_ID_LENGTH = 32
READERS = 8  # threads that wait for files
AHEAD_BYTES = 64 << 20

# What the read round leaves to the others: `ids` for the comparison of all, `records` with everything else.
_IDS = pa.schema(
    [
        ("image_id", pa.string()),
        ("usable", pa.bool_()),
        ("uri", pa.string()),
        ("name", pa.string()),
        ("labels_row", pa.int64()),
    ]
)
_FACTS = ("width", "height", "format", "mode", "thumbnail")
_RECORDS = pa.schema(
    [
        *[TABLES["images"].schema.field(name) for name in ("image_id", "uri", "bytes", "sha256")],
        *[TABLES["images"].schema.field(name).with_nullable(True) for name in _FACTS],
        *[("label", pa.string()), ("caption", pa.string()), ("attributes", ATTRIBUTES)],
        *[("reason", pa.string()), ("detail", pa.string())],
    ]
)


def open_worker(setting: Setting, inputs: Inputs) -> IndexWorker:
    """Nothing is read yet but the labels file, if there is one."""
    return IndexWorker(setting.plans[0], setting.resources.decode_threads, inputs)


class IndexWorker:
    """Indexes one image set."""

    def __init__(self, plan: Plan, threads: int, inputs: Inputs) -> None:
        params: Mapping[str, Any] = plan.stage.params
        self.notes: list[str] = []
        self._plan = plan
        self._threads = threads
        self._ref = ImageSetRef.parse(plan.stage.subject)
        self._orientation: Orientation = params["orientation"]
        self._labels = params["labels"]
        self._listing: pa.Table | None = None
        self._labels_file: LabelsFile | None = None
        if self._labels.startswith("file:"):
            path = self._labels.removeprefix("file:")
            self._labels_file, _ = read_labels(path, inputs.files, params["labels_sha256"])

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterable[Part | Artifact]:
        """Do one shard of any round.

        Raises:
            KeyMissing, ImageChanged: a file vanished or changed since it was listed.
            EmptyImageSet: there is not one image in all blocks. BadRef: the labels file does not fit the images.
        """
        self.notes = []
        if shard.round == READ:
            return self._read(shard, inputs)
        return self._compare(inputs) if shard.round == DUPLICATES else self._write(shard, inputs)

    # ------------------------------------------------------------ first round

    def _read(self, shard: Shard, inputs: Inputs) -> Iterator[Artifact]:
        if self._listing is None:
            self._listing = inputs.listing(str(self._plan.stage.params["listing"]))
        blocks = [FileInfo(**row) for row in self._listing.slice(shard.start, shard.stop - shard.start).to_pylist()]
        source = open_source(self._ref, inputs.files)
        records = (record for block in blocks for record in source.records(block))
        loaded = in_order(
            lambda record: _load(source, record), records, READERS, 4 * READERS, lambda record: record.size, AHEAD_BYTES
        )
        rows = list(in_order(self._describe, loaded, self._threads, 2 * self._threads))
        labels_rows = self._join_labels(rows)
        ids = [{**row, "usable": row["reason"] is None, "labels_row": n} for row, n in zip(rows, labels_rows)]
        yield Artifact(self._plan.digest, "ids", _to_parquet(ids, _IDS))
        yield Artifact(self._plan.digest, "records", _to_parquet(rows, _RECORDS))

    def _describe(self, record: Record) -> dict[str, Any]:
        assert record.data is not None
        sha256 = hashlib.sha256(record.data).hexdigest()
        row: dict[str, Any] = {
            "name": record.name,
            "image_id": sha256[:IMAGE_ID_LENGTH],
            "uri": record.uri,
            "bytes": len(record.data),
            "sha256": sha256,
            "label": record.label,
            "caption": record.caption,
            "attributes": sorted(record.attributes.items()),
            "reason": None,
        }
        try:
            return {**row, **describe(record.data, self._orientation)._asdict()}
        except ImageUndecodable as error:
            return {**row, "reason": error.reason, "detail": error.detail}

    def _join_labels(self, rows: list[dict[str, Any]]) -> list[int | None]:
        """Put labels into the rows; returns the row of the labels file that each took."""
        if self._labels == "from_folders":
            for row in rows:
                folder, slash, _ = row["name"].partition("/")
                row["label"] = folder if slash else None
        if self._labels_file is None:
            return [None] * len(rows)
        found = self._labels_file.find([row["name"] for row in rows])
        for row, number in zip(rows, found, strict=True):
            if number is not None:
                label, caption, attributes = self._labels_file.texts(number)
                row["label"] = label or row["label"]
                row["caption"] = caption or row["caption"]
                row["attributes"] = sorted({**dict(row["attributes"]), **attributes}.items())
        return found

    # ------------------------------------------------------------ second round

    def _compare(self, inputs: Inputs) -> Iterator[Artifact]:
        parts = [self._artifact(inputs, shard.number, "ids") for shard in self._plan.shards(READ)]
        ids = pa.concat_tables(parts).combine_chunks()
        if not len(ids):
            raise EmptyImageSet(
                f"images {self._ref}: {len(parts)} blocks were read and hold no image; correct images.ref"
            )
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        index, first = find_duplicates(ids)
        duplicates = pa.table({"image_index": index, "duplicate_of": ids.column("uri").take(pa.array(first))})
        usable = int(pc.sum(ids.column("usable")).as_py() or 0)
        summary = {
            "starts": starts,
            "rows": len(ids),
            "bad": len(ids) - usable,
            "duplicates": len(index),
            **self._check_labels(ids),
        }
        self.notes = _say(summary)
        yield Artifact(self._plan.digest, "duplicates", _write_parquet(duplicates))
        yield Artifact(self._plan.digest, "summary", canonical_json(summary).encode())
        yield Artifact(self._plan.digest, "content", content_of(ids, usable - len(index), self._orientation))

    def _check_labels(self, ids: pa.Table) -> dict[str, int]:
        """How many images and rows of the labels file found each other."""
        if self._labels_file is None:
            return {}
        labelled = ids.filter(pc.is_valid(ids.column("labels_row")))
        if not len(labelled):
            self._labels_file.check_fits(ids.column("name").to_pylist(), str(self._ref))
        rows, counts = np.unique(labelled.column("labels_row").to_numpy(), return_counts=True)
        if counts.max() > 1:
            row = rows[counts.argmax()]
            both = labelled.filter(pc.equal(labelled.column("labels_row"), row)).column("uri").to_pylist()[:2]
            raise BadRef(
                f"labels {self._labels_file.path}: {self._labels_file.name(int(row))!r} could be {both[0]} or {both[1]}; "
                "write paths below the root of the image set in column 'file'"
            )
        return {
            "labelled": len(labelled),
            "unlabelled": len(ids) - len(labelled),
            "labels_unused": len(self._labels_file) - len(rows),
        }

    # ------------------------------------------------------------ third round

    def _write(self, shard: Shard, inputs: Inputs) -> Iterator[Part]:
        merged = next(iter(self._plan.shards(DUPLICATES))).number
        part = shard.number - merged - 1
        start, stop = json.loads(inputs.artifact(self._plan.digest, merged, "summary"))["starts"][part : part + 2]
        duplicates = self._artifact(inputs, merged, "duplicates")
        index = duplicates.column("image_index").to_numpy()
        first, last = np.searchsorted(index, [start, stop]).tolist()
        duplicate_of = dict(zip(*duplicates.slice(first, last - first).to_pydict().values(), strict=True))
        records = self._artifact(inputs, part, "records")
        numbers = range(start, stop)
        for name, kind, values in (
            ("stage", pa.string(), [self._plan.digest] * len(records)),
            ("image_index", pa.int64(), numbers),
            ("duplicate_of", pa.string(), [duplicate_of.get(number) for number in numbers]),
        ):
            records = records.append_column(name, pa.array(values, kind))
        good = pc.is_null(records.column("reason"))
        for table, wanted in (("images", good), ("bad_inputs", pc.invert(good))):
            schema = TABLES[table].schema
            rows = records.filter(wanted).select(schema.names).cast(schema)
            for batch in rows.to_batches():
                yield Part(self._plan.digest, table, batch)

    def _artifact(self, inputs: Inputs, shard: int, name: str) -> pa.Table:
        return read_parquet(inputs.artifact(self._plan.digest, shard, name))


def _say(summary: Mapping[str, Any]) -> list[str]:
    """What a person should hear about the whole set."""
    notes = [
        f"{summary['rows']} images, of which {summary['bad']} cannot be used and {summary['duplicates']} repeat others"
    ]
    if "labelled" in summary:
        notes.append(
            f"the labels file names {summary['labelled']} of them; {summary['unlabelled']} are not in it, and "
            f"{summary['labels_unused']} of its rows name none"
        )
    return notes


def find_duplicates(ids: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose usable image occurred before, ascending, and for each the row of its first occurrence."""
    usable = np.flatnonzero(ids.column("usable").to_numpy())
    packed = np.array([bytes.fromhex(i) for i in ids.column("image_id").take(pa.array(usable)).to_pylist()], "S16")
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    original = first[inverse]  # np.unique names the first of equal values
    again = original != np.arange(len(usable))
    return usable[again], usable[original[again]]


def content_of(ids: pa.Table, usable: int, orientation: Orientation) -> bytes:
    """What results computed from these pixels depend on, as canonical JSON: its sha256 stands for the image set.

    The ordered image ids and which of them can be used, the orientation and the rules of decoding; no path, no time,
    no label.
    """
    hasher = hashlib.sha256()
    for image_id, good in zip(ids.column("image_id").to_pylist(), ids.column("usable").to_pylist(), strict=True):
        hasher.update(f"{image_id}{'+' if good else '-'}".encode())
    return canonical_json(
        {
            "ids": hasher.hexdigest(),
            "rows": len(ids),
            "usable": usable,
            "orientation": orientation,
            "decoding": RULES_VERSION,
        }
    ).encode()


def _load(source: Source, record: Record) -> Record:
    """The record with its bytes.

    Raises:
        KeyMissing: its file is gone. ImageChanged: the file has another size than listed.
    """
    if record.data is not None:
        return record
    try:
        data = source.read(record.uri)
    except KeyMissing as error:
        raise KeyMissing(
            f"{record.uri} was there when the image set was listed and is gone now; put it back, or run again so that "
            "the set is listed anew"
        ) from error
    if len(data) != record.size:
        raise ImageChanged(f"{record.uri} had {record.size} bytes when it was listed, now {len(data)}; run again")
    return record._replace(data=data)


def _to_parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return _write_parquet(pa.table(columns, schema=schema))


def _write_parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
