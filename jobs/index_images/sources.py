"""What an image set is, whatever its source: blocks to list, the records of a block, and one record read again."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from jobs.protocol import FileInfo, Files
from miclip_core.images import EXTENSIONS
from schemas.errors import BadRef, EmptyImageSet, ImageChanged, KeyMissing
from schemas.refs import ImageSetRef

if TYPE_CHECKING:
    from schemas.cells import Images

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
    ]
)
NOTHING: Mapping[str, str] = MappingProxyType({})


class Record(NamedTuple):
    """One image of a set. `name` is what a labels file calls it; `data` is None where `Source.read(uri)` fetches it."""

    uri: str
    name: str
    size: int
    data: bytes | None = None
    label: str | None = None
    caption: str | None = None
    attributes: Mapping[str, str] = NOTHING


class Source(ABC):
    """One image set. A block is a row of its listing and is read as a whole by one shard: a file, a tar, ..."""

    looked_for = "files"
    """What `blocks` looks for, for the person whose image set is empty."""
    has_folders = False
    """Whether names have folders that `from_folders` can take labels from."""

    def __init__(self, ref: ImageSetRef, files: Files) -> None:
        self.ref = ref
        self.files = files

    @abstractmethod
    def blocks(self) -> list[FileInfo]:
        """The blocks in their order.

        Raises:
            BadRef: there is nothing of this kind at the location. KeyMissing: there is nothing at all.
        """

    def known_names(self, blocks: Iterable[FileInfo]) -> list[str]:
        """What labels files may call the images, as far as the listing alone tells."""
        return []

    @abstractmethod
    def records(self, block: FileInfo) -> Iterator[Record]:
        """The images of one block in their order.

        Raises:
            KeyMissing: the block is gone. ImageChanged: it is not what was listed. BadRef, UnsafeName: it cannot be used.
        """

    @abstractmethod
    def read(self, uri: str) -> bytes:
        """The bytes of one record; may be called from several threads.

        Raises:
            KeyMissing: its file is gone. ImageChanged: the file holds no such record any more.
        """


class FolderSource(Source):
    """Every file with an image's extension below a folder."""

    looked_for = f"files that end in {', '.join(EXTENSIONS)}"
    has_folders = True

    @property
    def root(self) -> str:
        """The folder that names are relative to."""
        return self.ref.location

    def blocks(self) -> list[FileInfo]:
        found = self.files.list(self.ref.location)
        if [file.uri for file in found] == [self.ref.location]:
            raise BadRef(f"images {self.ref}: this is one file; expected a folder, or glob:{self.ref.location}")
        return [FileInfo(*file) for file in found if file.uri.lower().endswith(EXTENSIONS)]

    def records(self, block: FileInfo) -> Iterator[Record]:
        yield Record(block.uri, self._name(block), block.size)

    def known_names(self, blocks: Iterable[FileInfo]) -> list[str]:
        return [self._name(block) for block in blocks]

    def _name(self, block: FileInfo) -> str:
        return block.uri.removeprefix(self.root.rstrip("/") + "/")

    def read(self, uri: str) -> bytes:
        return self.files.read(uri)


class GlobSource(FolderSource):
    """Every file that matches a pattern, whatever its extension."""

    looked_for = "files that match"

    @property
    def root(self) -> str:
        """The folder before the first wildcard."""
        fixed = re.split(r"[*?\[]", self.ref.location, maxsplit=1)[0]
        return fixed.rpartition("/")[0]

    def blocks(self) -> list[FileInfo]:
        return [FileInfo(*file) for file in self.files.list(self.ref.location)]


_SOURCES = {
    "folder": "jobs.index_images.sources:FolderSource",
    "glob": "jobs.index_images.sources:GlobSource",
    "parquet": "jobs.index_images.rows:ParquetSource",
    "wds": "jobs.index_images.tars:TarSource",
    "hf": "jobs.index_images.rows:SavedDatasetSource",
    "world": "jobs.index_images.world:WorldSource",
    "generated": "jobs.index_images.generated:GeneratedSource",
}


def open_source(ref: ImageSetRef, files: Files) -> Source:
    """The reader of one image set; nothing is read yet. Raises BadRef for a location that cannot be one."""
    module, _, name = _SOURCES[ref.source].partition(":")
    source: Source = getattr(import_module(module), name)(ref, files)
    return source


def canonical_images(images: Images) -> Images:
    """The same image set with absolute paths, so that every machine and every working folder means the same.

    Raises:
        BadRef: the location cannot be an image set, or `from_folders` where there are no folders.
    """
    ref = ImageSetRef.parse(images.ref)
    if ref.source == "world":
        from miclip_core.world.location import canonical_location

        ref = ImageSetRef(source="world", location=canonical_location(ref))
    elif ref.source == "generated":
        from miclip_core.generate.location import parse_generated

        ref = ImageSetRef(source="generated", location=str(parse_generated(ref)))
    else:
        ref = ImageSetRef(source=ref.source, location=absolute(ref.location))
    source = import_module(_SOURCES[ref.source].partition(":")[0])
    if images.labels == "from_folders" and not getattr(source, _SOURCES[ref.source].partition(":")[2]).has_folders:
        raise BadRef(
            f"images {ref}: labels: from_folders takes labels from the folders of a folder, glob or wds set; "
            f"found source {ref.source}, whose records carry their own labels. Remove it, or give labels: file:PATH"
        )
    labels = images.labels
    if labels.startswith("file:"):
        labels = f"file:{absolute(labels.removeprefix('file:'))}"
    return images.model_copy(update={"ref": str(ref), "labels": labels})


def absolute(location: str) -> str:
    """An s3:// uri as it is, a local path made absolute; no trailing slash. Raises BadRef for a NUL character."""
    if "\0" in location:
        raise BadRef(f"location {location!r} holds a NUL character")
    if location.startswith("s3://"):
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location))


def list_source(ref: ImageSetRef, files: Files) -> pa.Table:
    """The blocks of an image set as rows (uri, size, stamp), which is what gets frozen as its listing.

    Raises:
        BadRef: nothing is at the location, or not what the source expects.
        EmptyImageSet: nothing there could be an image.
    """
    source = open_source(ref, files)
    try:
        blocks = source.blocks()
    except (KeyMissing, ImageChanged) as error:
        raise BadRef(f"images {ref}: {error}; expected {source.looked_for}") from error
    if not blocks:
        raise EmptyImageSet(f"images {ref}: no {source.looked_for} found; correct images.ref")
    columns = zip(*blocks, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTING)], schema=LISTING)
