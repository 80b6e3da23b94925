"""Writes a piece of the demo world as ordinary files: images, per-pixel masks, and a table of captions, labels and truth."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, MAX_OBJECTS, OBJECT_FIELDS, World, attributes
from miclip_core.world.truth import truth_rows
from schemas.errors import BadSpec

_BATCH = 256


@dataclass(frozen=True)
class Exported:
    """What an export left on disk: where the images and the table are, and how many image files were new or kept."""

    images: Path
    labels: Path
    written: int
    kept: int


def labels_schema() -> pa.Schema:
    """Columns of labels.parquet: the file's name below `images/`, then one plain column per fact; null where nothing is there."""
    fields = [("file", pa.string()), ("seed", pa.int64()), ("index", pa.int64())]
    fields += [("caption", pa.string()), ("label", pa.string()), ("objects", pa.int8())]
    for ending in ("", *(f"_{k}" for k in range(2, MAX_OBJECTS + 1))):
        fields += [(field + ending, pa.string()) for field in OBJECT_FIELDS]
        fields += [(field + ending, pa.int16()) for field in ("x", "y", "radius")]
    fields += [("background", pa.string()), ("word", pa.string()), ("watermark", pa.bool_())]
    return pa.schema([pa.field(name, kind) for name, kind in fields])


def export_world(
    directory: Path,
    world: World | None = None,
    n: int = 2400,
    *,
    by_class: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write n held-out images of `world` below `directory`; run again it keeps what is already there and equal.

    `images/000000.png` ... (or `images/red_circle/000000.png` with `by_class`), their label maps under the same names
    in `masks/` (0 background, 1-4 object, 8 text, 9 watermark), labels.parquet and labels.csv, and world.json with the
    settings. `progress(done, n)` is called now and then. Raises BadSpec when the folder holds an export with other
    settings or n is out of range.
    """
    world = world or World()
    if not 0 < n <= len(HELD_OUT_INDICES):
        raise BadSpec(f"n={n}: expected 1 to {len(HELD_OUT_INDICES)} images")
    _claim(directory, {"world": dataclasses.asdict(world), "n": n, "by_class": by_class})
    rows: list[dict[str, Any]] = []
    written = 0
    for start in range(0, n, _BATCH):
        scenes = attributes(world, HELD_OUT_INDICES.start + np.arange(start, min(start + _BATCH, n)))
        images, masks = render_scenes(scenes)
        for b, row in enumerate(truth_rows(scenes)):
            folder = row["label"].replace(" ", "_") + "/" if by_class else ""
            row |= {"file": f"{folder}{start + b:06d}.png", "seed": world.seed, "index": int(scenes.index[b])}
            written += _put(directory / "images" / row["file"], _png(images[b]))
            _put(directory / "masks" / row["file"], _png(masks[b]))
            rows.append(row)
        if progress:
            progress(len(rows), n)
    table = pa.Table.from_pylist(rows, schema=labels_schema())
    sink, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    pyarrow.csv.write_csv(table, text)
    _put(directory / "labels.parquet", sink.getvalue().to_pybytes())
    _put(directory / "labels.csv", text.getvalue().to_pybytes())
    return Exported(directory / "images", directory / "labels.parquet", written, n - written)


def _claim(directory: Path, settings: dict[str, Any]) -> None:
    """Write world.json, or check that the one that is there says the same."""
    path = directory / "world.json"
    wanted = json.dumps(settings, indent=2) + "\n"
    if path.exists() and path.read_text() != wanted:
        raise BadSpec(f"{directory}: holds an export with other settings, see {path.name}; choose another folder")
    if not path.exists() and (directory / "images").exists():
        raise BadSpec(f"{directory}: has a folder images/ that is no export of the demo world; choose another folder")
    _put(path, wanted.encode())


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _put(path: Path, data: bytes) -> bool:
    """Make `path` hold `data` in one step, so that no reader sees half a file; True if it did not already."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True
