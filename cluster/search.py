"""Texts about features that mean the same as a query: over the maps of texts that a store has published."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.catalog import Catalog, stage_site
from cluster.inputs import StoreInputs
from cluster.read import LakeTable
from jobs.explained import Variant
from jobs.files import hash_tree
from jobs.text_encoders import TextEncoder
from schemas.errors import UnknownModel, UnknownTable, UsageError
from schemas.plans import Published

MAP, SCORES, CLUSTERS = "explanation_map", "explanation_scores", "explanation_clusters"
TEXT_KEY = ("sae", "feature", *Variant._fields, "sequence")
"""What a text of one feature is found by, in a map and among scores."""
OF_STAGES = ("model", "site", "sae")
"""Filters that whole maps pass or fail."""
OF_ROWS = ("vlm", "method")
"""Filters of single texts."""


class Found(NamedTuple):
    """The nearest of `texts` texts, nearest first; encoder: what embedded them and the query; unknown: words that it does not know."""

    encoder: str
    unknown: list[str]
    texts: int
    hits: list[dict[str, Any]]


def search(
    catalog: Catalog,
    query: str,
    top: int = 10,
    filters: Mapping[str, str] = {},
    min_iou: float | None = None,
    encoder: str | None = None,
) -> Found:
    """The texts whose embeddings have the largest cosines with that of a query, made by the encoder of their map.

    filters: values of OF_STAGES and OF_ROWS. min_iou: only texts that score_explanations found at least so good. encoder:
    one of those that made the maps, or the folder where it lies now.

    Raises:
        UnknownTable: there is no map. UsageError: a filter leaves nothing, maps were made by several encoders, or the
            encoder knows no word of the query.
        WeightsMissing, UnknownModel: the encoder is not what it was, or not there.
    """
    if not re.search(r"\w", query):
        raise UsageError("a query without a word; give words to look for, such as miclip search 'red stripes'")
    maps = _choose_maps(catalog, {name: value for name, value in filters.items() if name in OF_STAGES})
    opened, maps = _choose_encoder(catalog, maps, encoder)
    chosen = Catalog(catalog.store, tuple(maps))
    rows = LakeTable(chosen, MAP, {}, ["stage", "model", "site", *TEXT_KEY, "text", "cluster"]).arrow()
    rows = rows.append_column("row", pa.array(np.arange(len(rows))))
    rows = rows.filter(pc.equal(rows["direction"], "sae"))  # the others are controls, which say nothing of the feature
    rows = _with_iou(catalog, maps, _once(rows))
    rows = _keep(rows, {name: value for name, value in filters.items() if name in OF_ROWS}, min_iou)
    embeddings = LakeTable(chosen, MAP, {}, ["embedding"]).numpy()[rows["row"].to_numpy()]
    from jobs.text_search import find_nearest  # loads torch

    texts, ids = rows["text"].to_pylist(), rows["row"].to_pylist()
    try:
        nearest = find_nearest(opened, query, embeddings, texts, ids, StoreInputs(catalog.store), top)
    except UnknownModel as error:
        raise UnknownModel(
            f"{error}\nthe texts were embedded by it; if it lies elsewhere now, name its folder with --encoder"
        ) from error
    hits = rows.take([hit.place for hit in nearest.hits]).drop_columns(["row"]).to_pylist()
    topics = _read_topics(chosen)
    found = [
        {"score": one.cosine, **hit, "topic": topics.get((hit["stage"], hit["cluster"]))}
        for one, hit in zip(nearest.hits, hits, strict=True)
    ]
    return Found(opened.name, nearest.unknown, len(rows), found)


# ---------------------------------------------------------------- which maps


def _choose_maps(catalog: Catalog, filters: Mapping[str, str]) -> list[Published]:
    maps = [p for p in catalog.stages if p.rows(MAP)]
    if not maps:
        raise UnknownTable(
            f"no map of texts in scope of {catalog.store.uri}; run a pipeline with a stage of kind map_explanations, which reads "
            "a score_explanations stage, or look in earlier runs with --all"
        )
    for name, value in filters.items():
        there = [_of_stage(p, name) for p in maps]
        maps = [p for p, found in zip(maps, there, strict=True) if _matches(name, found, value)]
        _refuse_none(name, value, there, maps)
    return maps


def _of_stage(published: Published, name: str) -> str:
    stage = published.stage
    found = {"model": stage.subject, "site": stage_site(published), "sae": f"sae:{stage.inputs['sae']}"}
    return found[name]


def _matches(name: str, found: str, value: str) -> bool:
    """A site is also named without its tokens, an SAE by the first digits of its stage."""
    if name == "sae":
        return found.startswith(value if value.startswith("sae:") else f"sae:{value}")
    return found == value or (name == "site" and found.partition("@")[0] == value)


def _refuse_none(name: str, value: str, there: Sequence[str], left: Sequence[Any]) -> None:
    if not left:
        raise UsageError(f"--{name} {value}: no text is of it; there are {', '.join(sorted(set(there)))}")


def _choose_encoder(
    catalog: Catalog, maps: Sequence[Published], wanted: str | None
) -> tuple[TextEncoder, list[Published]]:
    """The one encoder of all maps, or the one that is wanted, and its maps; where its files lay does not matter."""
    of_map = _read_encoders(Catalog(catalog.store, tuple(maps)), maps)
    chosen = [encoder for encoder in of_map if wanted in (None, encoder.name)] or [_find_moved(of_map, str(wanted))]
    different = {encoder.files: encoder.name for encoder in chosen}
    if len(different) > 1:
        raise UsageError(
            f"maps were made by {len(different)} encoders, whose cosines cannot be compared: "
            f"{', '.join(sorted(different.values()))}; name one with --encoder, or narrow with --model, --site, "
            "--pipeline or --run"
        )
    return chosen[0], [p for encoder, p in zip(of_map, maps, strict=True) if encoder.files in different]


def _read_encoders(chosen: Catalog, maps: Sequence[Published]) -> list[TextEncoder]:
    """What embedded the texts of each map, and where it lay then."""
    names = ["stage", "encoder", "encoder_revision"]
    rows = LakeTable(chosen, MAP, {}, names).arrow().group_by(names).aggregate([]).to_pylist()
    there = {row["stage"]: row for row in rows}
    return [_encoder_of(p.stage.params["encoder"], there[p.stage.digest]) for p in maps]


def _encoder_of(param: Any, row: Mapping[str, Any]) -> TextEncoder:
    """Maps of before 0.6.0 have all of it in their params, later ones the files alone."""
    older = param if isinstance(param, dict) else {"files": param}
    revision = row["encoder_revision"] or older.get("revision")
    return TextEncoder(name=row["encoder"], files=str(older["files"]), revision=revision)


def _find_moved(of_map: Sequence[TextEncoder], folder: str) -> TextEncoder:
    """The encoder whose files lie in this folder now."""
    path = Path(folder.removeprefix("file:")).expanduser().resolve()
    sha256 = hash_tree(path) if path.is_dir() else ""
    if not any(encoder.is_folder and encoder.files == sha256 for encoder in of_map):
        there = ", ".join(sorted({encoder.name for encoder in of_map}))
        what = "its files are those of no encoder of a map" if sha256 else "neither an encoder of a map nor a folder"
        raise UsageError(f"--encoder {folder}: {what}; there are {there}")
    return TextEncoder(name=f"file:{path}", files=sha256)


# ---------------------------------------------------------------- which texts


def _once(rows: pa.Table) -> pa.Table:
    """Each text about a feature by one way once: a map of selected texts and one of all have it both."""
    first = rows.group_by([*TEXT_KEY, "text"]).aggregate([("row", "min")])["row_min"]
    return rows.filter(pc.is_in(rows["row"], value_set=first.combine_chunks()))


def _with_iou(catalog: Catalog, maps: Sequence[Published], rows: pa.Table) -> pa.Table:
    """The rows of maps with the IoU of each text, null where nothing in scope has scored it.

    Of several stages that scored a text one counts that a map reads, if there is one, and of those the first by digest.
    """
    used = {stage for p in maps for stage in p.stage.inputs.values()}
    scored = tuple(p for p in catalog.stages if p.rows(SCORES) and used & {p.stage.digest, *p.stage.inputs.values()})
    scored = tuple(sorted(scored, key=lambda p: (p.stage.digest not in used, p.stage.digest)))
    if not scored:
        return rows.append_column("iou", pa.nulls(len(rows), pa.float64()))
    scores = LakeTable(Catalog(catalog.store, scored), SCORES, {}, [*TEXT_KEY, "iou"]).arrow()
    first = scores.group_by(TEXT_KEY, use_threads=False).aggregate([("iou", "first")])
    names = [*TEXT_KEY, "iou"]
    joined = rows.join(first.select([*TEXT_KEY, "iou_first"]).rename_columns(names), TEXT_KEY, join_type="left outer")
    return joined.sort_by("row")


def _keep(rows: pa.Table, filters: Mapping[str, str], min_iou: float | None) -> pa.Table:
    for name, value in filters.items():
        there = rows[name].unique().to_pylist()
        rows = rows.filter(pc.equal(rows[name], value))
        _refuse_none(name, value, there, rows)
    if min_iou is None:
        return rows
    best = pc.max(rows["iou"]).as_py()
    if best is None:
        raise UsageError(
            "--min-iou: no run in scope has scored these texts by IoU; run score_explanations with metrics: [iou], or leave it out"
        )
    if best < min_iou:
        raise UsageError(f"--min-iou {min_iou:g}: no text reaches it; the best IoU is {best:.3f}")
    return rows.filter(pc.greater_equal(rows["iou"], min_iou))


def _read_topics(maps: Catalog) -> dict[tuple[str, int], str]:
    rows = LakeTable(maps, CLUSTERS, {}, ["stage", "cluster", "topic"]).arrow().to_pylist()
    return {(row["stage"], row["cluster"]): row["topic"] for row in rows}
