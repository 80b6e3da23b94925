"""WebDataset tars as an image set: members of one basename are one sample; nothing is ever unpacked to a disk."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from jobs.index_images.ranges import open_ranges
from jobs.index_images.sources import Record, Source
from jobs.index_images.texts import as_texts
from jobs.protocol import FileInfo
from miclip_core.images import EXTENSIONS
from schemas.errors import BadRef, ImageChanged, UnsafeName


class TarSource(Source):
    """A folder, glob or single .tar; images with .cls, .txt and .json beside them for label, caption and attributes.

    A record's uri is `x.tar#offset,size,name`, so that it is read again without the tar's table.
    """

    looked_for = "files that end in .tar"
    has_folders = True

    def blocks(self) -> list[FileInfo]:
        found = self.files.list(self.ref.location)
        if packed := [f.uri for f in found if f.uri.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz"))]:
            raise BadRef(f"images {self.ref}: {packed[0]} is compressed, so images cannot be read from its middle; "
                         "unpack it to .tar")  # fmt: skip
        return [FileInfo(*file) for file in found if file.uri.endswith(".tar")]

    def records(self, block: FileInfo) -> Iterator[Record]:
        with open_ranges(self.files, block) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    members = (m for m in tar if not m.isdir())
                    for _, group in groupby(members, key=lambda m: _split(m.name)[0]):
                        yield from _sample(block.uri, tar, list(group))
            except tarfile.ReadError as error:
                raise ImageChanged(
                    f"{block.uri}: {error}; the tar is cut off or was changed, put it back whole"
                ) from error

    def read(self, uri: str) -> bytes:
        container, _, place = uri.rpartition("#")
        offset, size, _ = place.split(",", 2)
        return self.files.read_range(container, int(offset), int(size))


def _split(name: str) -> tuple[str, str]:
    """Sample key and extension: the name is cut at the first dot of its last part, as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return folder + slash + stem, (dot + extension).lower()


def _sample(container: str, tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Iterator[Record]:
    """The images among members of one key, each with the texts beside it."""
    for member in members:
        check_member(container, member)
    images = [m for m in members if _split(m.name)[1] in EXTENSIONS]
    # A plain tar of photos may hold names such as a.v2.jpg, whose last ending alone tells.
    images = images or [m for m in members if m.name.lower().endswith(EXTENSIONS)]
    row: dict[str, Any] = {}
    for member in members if images else []:
        extension = _split(member.name)[1]
        if extension in (".json", ".cls", ".txt"):
            row |= _texts_of(f"{container}#{member.name}", extension, _read(tar, member))
    for member in images:
        # '#' separates the container, so a name may not hold one; everything else stays readable
        escaped = member.name.replace("%", "%25").replace("#", "%23")
        uri = f"{container}#{member.offset_data},{member.size},{escaped}"
        name = member.name.removeprefix("./")
        yield Record(uri, name, member.size, _read(tar, member), *as_texts(row))


def check_member(container: str, member: tarfile.TarInfo) -> None:
    """Refuse what a tar of data has no need for.

    Raises:
        UnsafeName: a name that leaves its folder, is absolute or no text; a link or device instead of a file.
    """
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
        raise UnsafeName(f"{container}: member {name!r} has an unsafe name; expected a relative path without '..'")
    if not member.isreg() or member.issparse():
        raise UnsafeName(
            f"{container}: member {name!r} is not a plain file (a link, a device or sparse); pack with "
            "tar --dereference --hard-dereference"
        )


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    data = file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"member {member.name!r} ends after {len(data)} of {member.size} bytes")
    return data


def _texts_of(where: str, extension: str, data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
        if extension != ".json":
            return {"label" if extension == ".cls" else "caption": text.strip()}
        value = json.loads(text)
    except ValueError as error:
        raise BadRef(f"{where}: {error}; expected {'JSON' if extension == '.json' else 'UTF-8 text'}") from error
    return value if isinstance(value, dict) else {"json": value}
