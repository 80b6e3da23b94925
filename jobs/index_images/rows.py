"""Tables that hold image bytes as an image set: Parquet files, and data sets saved by Hugging Face `datasets`."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.index_images.ranges import open_ranges
from jobs.index_images.sources import Record, Source
from jobs.index_images.texts import as_texts
from jobs.protocol import FileInfo, Files
from schemas.errors import BadRef, ImageChanged, KeyMissing
from schemas.refs import ImageSetRef

BATCH_ROWS = 64
KEPT_GROUPS = 2  # groups of image bytes that `read` keeps, because neighbours are read next


class RowSource(Source):
    """Rows with a column of encoded images: binary, or a struct with `bytes` and perhaps `path`.

    Columns `label` and `caption` are taken as they are (numbers by the names of their class, if the file has them);
    other plain columns become attributes. A record's uri is `file#group,row`: row within a group that is read at once.
    """

    def __init__(self, ref: ImageSetRef, files: Files) -> None:
        super().__init__(ref, files)
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    @abstractmethod
    def _schema(self, file: BinaryIO) -> pa.Schema: ...

    @abstractmethod
    def _batches(self, file: BinaryIO, columns: list[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """(group, first row within it, batch) in order."""

    @abstractmethod
    def _read_group(self, file: BinaryIO, group: int) -> pa.ChunkedArray:
        """The images of one group."""

    def _features(self, schema: pa.Schema) -> dict[str, Any]:
        """Hugging Face's description of the columns, where the file carries it."""
        stored = (schema.metadata or {}).get(b"huggingface")
        return (json.loads(stored).get("info") or {}).get("features") or {} if stored else {}

    def records(self, block: FileInfo) -> Iterator[Record]:
        with open_ranges(self.files, block) as file, _arrow_errors(block.uri):
            schema = self._schema(file)
            image = self._image_column(schema, block.uri)
            plain = [f.name for f in schema if f.name != image and _is_plain(f.type)]
            names = _class_names(self._features(schema))
            for group, first, batch in self._batches(file, [image, *plain]):
                paths = _paths(batch.column(image))
                for i, row in enumerate(batch.select(plain).to_pylist()):
                    data = _bytes_at(batch.column(image), i)
                    texts = as_texts({k: _named(v, names.get(k)) for k, v in row.items()})
                    uri = f"{block.uri}#{group},{first + i}"
                    yield Record(uri, paths[i] or f"{group},{first + i}", len(data), data, *texts)

    def read(self, uri: str) -> bytes:
        container, _, place = uri.rpartition("#")
        group, row = map(int, place.split(","))
        images = self._group(container, group)
        if row >= len(images):
            raise ImageChanged(f"{uri}: the file was replaced, there is no such row; index the image set again")
        return _bytes_at(images, row)

    def _group(self, container: str, group: int) -> pa.ChunkedArray:
        with self._lock:
            if (container, group) not in self._groups:
                found = self.files.list(container)
                if not found:
                    raise KeyMissing(f"{container} is gone")
                with open_ranges(self.files, FileInfo(*found[0])) as file, _arrow_errors(container):
                    self._groups[container, group] = self._read_group(file, group)
                while len(self._groups) > KEPT_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end((container, group))
            return self._groups[container, group]

    def _image_column(self, schema: pa.Schema, uri: str) -> str:
        described = [k for k, v in self._features(schema).items() if isinstance(v, dict) and v.get("_type") == "Image"]
        name = described[0] if described else "image"
        column = schema.field(name).type if name in schema.names else None
        inner = column.field("bytes").type if isinstance(column, pa.StructType) and _has(column, "bytes") else column
        if inner is None or not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise BadRef(
                f"images {self.ref}: {uri} needs a column {name!r} of bytes or of a struct with bytes; found "
                + ", ".join(f"{f.name} {f.type}" for f in schema)
            )
        return name


class ParquetSource(RowSource):
    """A folder, glob or single .parquet with a column `image`; a group is a row group."""

    looked_for = "files that end in .parquet"

    def blocks(self) -> list[FileInfo]:
        found = [FileInfo(*file) for file in self.files.list(self.ref.location) if file.uri.endswith(".parquet")]
        for first in found[:1]:
            with open_ranges(self.files, first) as file, _arrow_errors(first.uri):
                self._image_column(self._schema(file), first.uri)
        return found

    def _schema(self, file: BinaryIO) -> pa.Schema:
        return pq.read_schema(file)

    def _batches(self, file: BinaryIO, columns: list[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            first = 0
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                yield group, first, batch
                first += batch.num_rows

    def _read_group(self, file: BinaryIO, group: int) -> pa.ChunkedArray:
        parquet = pq.ParquetFile(file)
        if group >= parquet.num_row_groups:
            raise ImageChanged("there is no such row group")
        name = self._image_column(parquet.schema_arrow, "it")
        return parquet.read_row_group(group, columns=[name]).column(name)


class SavedDatasetSource(RowSource):
    """A folder written by `datasets.save_to_disk`, read without that library; a group is one Arrow record batch."""

    looked_for = "a folder with state.json and .arrow files, as datasets.save_to_disk writes it"

    def __init__(self, ref: ImageSetRef, files: Files) -> None:
        super().__init__(ref, files)
        self._info: dict[str, Any] | None = None

    def blocks(self) -> list[FileInfo]:
        found = {file.uri: FileInfo(*file) for file in self.files.list(self.ref.location)}
        if f"{self.ref.location}/dataset_dict.json" in found:
            splits = self._json("dataset_dict.json").get("splits", [])
            choices = ", ".join(f"hf:{self.ref.location}/{split}" for split in splits)
            raise BadRef(f"images {self.ref}: this folder holds several splits; choose one of {choices}")
        names = [str(entry["filename"]) for entry in self._json("state.json").get("_data_files", [])]
        if unsafe := [name for name in names if "/" in name or name.startswith(".")]:
            raise BadRef(f"images {self.ref}: state.json names {unsafe[0]!r}; expected files of the same folder")
        uris = [f"{self.ref.location}/{name}" for name in names]
        if gone := [uri for uri in uris if uri not in found]:
            raise BadRef(f"images {self.ref}: {gone[0]} is named by state.json and is not there")
        return [found[uri] for uri in uris]

    def _json(self, name: str) -> dict[str, Any]:
        value = json.loads(self.files.read(f"{self.ref.location}/{name}"))
        return value if isinstance(value, dict) else {}

    def _features(self, schema: pa.Schema) -> dict[str, Any]:
        if self._info is None:
            try:
                self._info = self._json("dataset_info.json")
            except KeyMissing:
                self._info = {}
        return self._info.get("features") or super()._features(schema)

    def _schema(self, file: BinaryIO) -> pa.Schema:
        file.seek(0)
        return pa.ipc.read_schema(pa.ipc.read_message(file))

    def _batches(self, file: BinaryIO, columns: list[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        schema = self._schema(file)
        while True:
            offset = file.tell()
            try:
                message = pa.ipc.read_message(file)
            except EOFError:
                return
            yield offset, 0, _record_batch(message, schema).select(columns)

    def _read_group(self, file: BinaryIO, group: int) -> pa.ChunkedArray:
        schema = self._schema(file)
        file.seek(group)
        batch = _record_batch(pa.ipc.read_message(file), schema)
        return pa.chunked_array([batch.column(self._image_column(schema, "it"))])


def _record_batch(message: pa.ipc.Message, schema: pa.Schema) -> pa.RecordBatch:
    if message.type != "record batch":
        raise BadRef(f"an Arrow {message.type} instead of a record batch; columns of dictionary type are not read")
    return pa.ipc.read_record_batch(message, schema)


@contextmanager
def _arrow_errors(uri: str) -> Iterator[None]:
    """Say which file Arrow could not follow; it was whole when it was listed or indexed."""
    try:
        yield
    except (pa.ArrowException, EOFError, OSError) as error:
        raise ImageChanged(f"{uri}: {error}; the file is damaged or was changed, put it back whole") from error


def _has(struct: pa.StructType, name: str) -> bool:
    return struct.get_field_index(name) >= 0


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)
    captions = pa.types.is_list(kind) and pa.types.is_string(kind.value_type)
    return texts or captions or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)


def _bytes_at(images: pa.Array | pa.ChunkedArray, row: int) -> bytes:
    value = images[row].as_py()
    if isinstance(value, Mapping):
        value = value["bytes"]
    return value or b""


def _paths(images: pa.Array) -> list[str | None]:
    if isinstance(images.type, pa.StructType) and _has(images.type, "path"):
        return pc.struct_field(images, "path").to_pylist()
    return [None] * len(images)


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    return {key: value["names"] for key, value in features.items() if isinstance(value, dict) and "names" in value}


def _named(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
