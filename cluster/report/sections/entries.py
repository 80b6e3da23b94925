"""The entries of a dictionary that a page shows: their units, the names that methods give to those, images, and maps."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.report.data import ReportData
from cluster.report.sections.variants import place
from cluster.report.sections.zoos import Member, Zoo
from jobs.shown import pool_map

DICTIONARY_BYTES = 7_000_000
"""What cards of entries may take beside all other cards of a page."""
CARD_BYTES, UNIT_BYTES, TILE_BYTES, THUMBNAIL_BYTES = 1500, 620, 14, 2400
"""Of a card without its units, of one unit without its maps, of a map without its values, of an image; as text."""
VALUE_BYTES = 1.4
MOST_GRID = 16
"""Rows and columns of a map on a page; finer ones are averaged."""
MOST_UNITS, MOST_EXEMPLARS = 12, 6

Key = tuple[Member, str, int]
"""A unit: whose, at which site, which."""


class Unit(NamedTuple):
    """One unit of an entry, and its mean r to the units that it is a buddy of."""

    member: Member
    site: str
    unit: int
    mean_r: float | None
    is_representative: bool

    @property
    def key(self) -> Key:
        """What it is told by in all tables."""
        return self.member, self.site, self.unit


class Entry(NamedTuple):
    """One entry. units: those that are shown, member by member; size: all of them."""

    number: int
    origin: str
    models: int
    size: int
    shares_training: bool | None
    units: tuple[Unit, ...]


class Exemplars(NamedTuple):
    """What is known of the images of entries: (image, score) by rank, and the maps of each unit on them.

    peaks: largest standardised activation, of the map as it was before it was averaged. stage: that made them.
    """

    images: Mapping[int, Sequence[tuple[str, float]]]
    maps: Mapping[tuple[int, Key], Mapping[int, np.ndarray]]
    peaks: Mapping[tuple[int, Key], Mapping[int, float]]
    stage: str


def load_entries(data: ReportData, zoo: Zoo) -> list[Entry]:
    """All entries of a zoo in their order."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in data.table("rosetta_entries", None, {"stage": zoo.stage}).to_pylist():
        found[row["entry"]].append(row)
    places = {member: i for i, member in enumerate(zoo.members)}
    return [_entry(number, found[number], places) for number in sorted(found)]


def _entry(number: int, rows: list[dict[str, Any]], places: Mapping[Member, int]) -> Entry:
    """Of very many units those of each member that are most alike to the others, members in turn."""
    units = [Unit(Member.of(r), r["site"], r["unit"], r["mean_r"], r["is_representative"]) for r in rows]
    units.sort(key=lambda u: (not u.is_representative, -(u.mean_r or 0.0), u.site, u.unit))
    seen: Counter[Member] = Counter()
    turns = []
    for unit in units:
        turns.append((seen[unit.member], places.get(unit.member, len(places))))
        seen[unit.member] += 1
    kept = [unit for _, unit in sorted(zip(turns, units), key=lambda item: item[0])][:MOST_UNITS]
    kept.sort(key=lambda u: (places.get(u.member, len(places)), u.site, u.unit))
    first = rows[0]
    return Entry(number, first["origin"], first["models"], first["size"], first["shares_training"], tuple(kept))


class Size(NamedTuple):
    """What decides how large a card is: images of an entry, values of a map as pages have it, different images at most."""

    exemplars: int
    values: int
    images: int


def load_size(data: ReportData) -> Size:
    """Of the exemplars that are published; as if there were many where nothing is."""
    table = data.table("rosetta_exemplars", ["rank", "grid_h", "grid_w"], {"entry": [0]})
    rows, columns, ranks = (table[name].to_numpy() for name in ("grid_h", "grid_w", "rank"))
    if not len(table):
        return Size(MOST_EXEMPLARS, MOST_GRID**2, data.rows.get("images", 0))
    values = np.minimum(rows, MOST_GRID) * np.minimum(columns, MOST_GRID)
    return Size(min(int(ranks.max()) + 1, MOST_EXEMPLARS), int(values.max()), data.rows.get("images", 0))


def fitting(entries: Sequence[Entry], size: Size, budget: int) -> int:
    """How many of the first entries stay within so many bytes; at least one."""
    tile, used = TILE_BYTES + size.values * VALUE_BYTES, 0.0
    for n, entry in enumerate(entries):
        used += CARD_BYTES + len(entry.units) * (UNIT_BYTES + size.exemplars * tile)
        if used + min((n + 1) * size.exemplars, size.images) * THUMBNAIL_BYTES > budget:
            return max(n, 1)
    return len(entries)


def load_exemplars(data: ReportData, zoo: Zoo, entries: Sequence[Entry]) -> Exemplars | None:
    """Of these entries of a zoo; None where nobody has published any."""
    stage = next((d for d, found in sorted(data.stages.items())
                  if (found.stage.kind, found.stage.output) == ("mine_rosetta", "dictionary") and found.stage.inputs.get("zoo") == zoo.stage), None)  # fmt: skip
    if stage is None or not entries:
        return None
    wanted = {(entry.number, unit.key) for entry in entries for unit in entry.units}
    where = {"stage": stage, "entry": [entry.number for entry in entries], "rank": list(range(MOST_EXEMPLARS))}
    columns = ["entry", "rank", "image_id", "score", "model", "sae", "site", "unit", "peak", "grid_h", "grid_w"]
    table = data.table("rosetta_exemplars", [*columns, "map"], where)
    images: dict[int, dict[int, tuple[str, float]]] = defaultdict(dict)
    maps: dict[tuple[int, Key], dict[int, np.ndarray]] = defaultdict(dict)
    peaks: dict[tuple[int, Key], dict[int, float]] = defaultdict(dict)
    for row, values in zip(table.select(columns).to_pylist(), vectors(table["map"])):
        key = row["entry"], (Member.of(row), row["site"], row["unit"])
        if key in wanted:
            images[row["entry"]][row["rank"]] = row["image_id"], row["score"]
            maps[key][row["rank"]] = pool_map(values.reshape(row["grid_h"], row["grid_w"]).astype(float), MOST_GRID)
            peaks[key][row["rank"]] = row["peak"]
    ordered = {entry: [by[rank] for rank in sorted(by)] for entry, by in images.items()}
    ranks = {entry: {rank: n for n, rank in enumerate(sorted(by))} for entry, by in images.items()}
    return Exemplars(ordered, _by_place(maps, ranks), _by_place(peaks, ranks), stage)


def _by_place(
    found: Mapping[tuple[int, Key], Mapping[int, Any]], ranks: Mapping[int, Mapping[int, int]]
) -> dict[Any, dict[int, Any]]:
    """Ranks to places among the images that are there."""
    return {key: {ranks[key[0]][rank]: value for rank, value in by.items()} for key, by in found.items()}


def vectors(column: pa.ChunkedArray) -> Iterable[np.ndarray]:
    """The lists of a column of vectors, without a Python number for each value."""
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
        yield from (values[start:stop] for start, stop in itertools.pairwise(offsets))


def load_unit_names(data: ReportData, units: Sequence[Unit]) -> dict[Key, list[tuple[str, str]]]:
    """Unit -> (method, concept): the first name that each method gives it, of stages that describe the same site or SAE."""
    if not units or not data.has("unit_concepts"):
        return {}
    wanted = {unit.key for unit in units}
    where = {"model": sorted({u.member.model for u in units}), "site": sorted({u.site for u in units}),
             "unit": sorted({u.unit for u in units}), "direction": "describe", "rank": [0], "is_dead": [False]}  # fmt: skip
    columns = ["model", "sae", "site", "unit", "variant", "seed", "stage", "concept"]
    found: dict[Key, dict[str, str]] = defaultdict(dict)
    rows = data.table("unit_concepts", columns, where).to_pylist()
    for row in sorted(rows, key=lambda row: (place(row["variant"]), row["seed"] or 0, row["stage"])):
        key = Member.of(row), row["site"], row["unit"]
        if key in wanted:
            found[key].setdefault(row["variant"], row["concept"])
    return {key: list(names.items()) for key, names in found.items()}
