"""Writes the features of an SAE as files in the manner of Neuronpedia's data sets: features, activations, explanations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from cluster.catalog import Catalog
from cluster.facts import find_stage
from cluster.sql import quote, run_sql
from jobs.feature_files import get_bar_middles, new_folder
from schemas.errors import UnknownTable, UsageError, WorkFailed

BATCH = 1024
"""Features in a file."""
NAMES = 3
"""Concepts of a feature by one method, at most."""
Row = dict[str, Any]

_MIDDLES = get_bar_middles()

_FEATURES = """
SELECT feature, n_active, images_active, density, max, mean, histogram, neighbours, neighbour_cos, is_dead
FROM sae_features WHERE stage = {stage} AND sae = {sae} ORDER BY feature
"""
_ACTIVATIONS = """
SELECT feature, rank, image_id, uri, value, token, map, grid_h, grid_w
FROM sae_top_images WHERE stage = {stage} AND sae = {sae} ORDER BY feature, rank
"""
_CONCEPTS = """
SELECT unit AS feature, variant AS way, NULL AS author, concept AS description, 'score' AS measure, max(CAST(score AS DOUBLE)) AS value,
       min(rank) AS place
FROM unit_concepts WHERE sae = {sae} AND direction = 'describe' AND rank < {names} AND NOT is_dead
GROUP BY unit, variant, concept
UNION ALL
SELECT feature, 'label ' || level AS way, NULL AS author, concept AS description, 'auroc' AS measure, auroc AS value, rank_in_feature AS place
FROM sae_selectivity WHERE stage = {stage} AND sae = {sae} AND rank_in_feature < {names}
ORDER BY feature, way, place, description
"""
_SENTENCES = """
SELECT DISTINCT e.feature, e.method, e.masking, e.positions, e.alpha_asked, e.alpha_unit, e.sequence, e.vlm AS author, e.text AS description,
       s.iou, s.clip, s.synthetic, s.auroc
FROM explanations e
LEFT JOIN explanation_scores s USING (
  sae, feature, vlm, method, masking, direction, positions, alpha_asked, alpha_unit, sequence, text
)
WHERE e.sae = {sae} AND e.direction = 'sae' AND e.status = 'ok'
ORDER BY ALL
"""
_OPTIONAL = ("sae_top_images", "unit_concepts", "sae_selectivity", "explanations", "explanation_scores")


class Exported(NamedTuple):
    """What was written: the SAE's ref, its model and site, the stage that was read, and lines of each kind."""

    sae: str
    model: str
    site: str
    stage: str
    features: int
    activations: int
    explanations: int


def export_features(catalog: Catalog, ref: str, to: Path, stage: str | None = None) -> Exported:
    """Write a new folder: `source.json`, and `features/`, `activations/`, `explanations/` with gzipped JSON lines.

    ref: `sae:` with the first digits of a stage. stage: first digits of the stage of kind sae_features to read, if
        several in scope have features of this SAE.

    Raises:
        BadRef: no such SAE. UnknownTable: nothing in scope has features of it, or a stage of these digits has not.
        UsageError: several have, or the folder is there already. WorkFailed: the disk refused.
    """
    sae = f"sae:{find_stage(catalog.store, ref).digest}"
    found = _choose(catalog, sae, stage)
    source = {"modelId": found["model"], "layer": f"{found['site']}-{sae.removeprefix('sae:')[:8]}"}
    words = {"sae": quote(sae), "stage": quote(found["stage"]), "names": NAMES}

    def ask(query: str) -> Iterator[Row]:
        reader = run_sql(catalog, query.format(**words), [t for t in _OPTIONAL if t not in catalog.tables])
        return (row for batch in reader for row in batch.to_pylist())

    try:
        with new_folder(to) as folder:
            counts = [
                _write(folder / "features", ({**source, **_feature(row)} for row in ask(_FEATURES))),
                _write(folder / "activations", ({**source, **_activation(row)} for row in ask(_ACTIVATIONS))),
                _write(
                    folder / "explanations",
                    (
                        {**source, **row}
                        for row in _merged(map(_concept, ask(_CONCEPTS)), map(_sentence, ask(_SENTENCES)))
                    ),
                ),
            ]
            exported = Exported(sae, found["model"], found["site"], found["stage"], *counts)
            about = {**source, "sourceSetName": sae, **exported._asdict(), "batch": BATCH}
            (folder / "source.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise WorkFailed(f"{to}: {error.strerror or error}; nothing of it was left there") from error
    return exported


def _choose(catalog: Catalog, sae: str, stage: str | None) -> Row:
    """The stage whose features are written: its digest, model and site."""
    query = f"SELECT DISTINCT stage, model, site FROM sae_features WHERE sae = {quote(sae)} ORDER BY stage"
    every = run_sql(catalog, query).read_all().to_pylist()
    found = [row for row in every if row["stage"].startswith(stage or "")]
    if not found:
        there = f"; there are {', '.join(row['stage'] for row in every)}" if every else ""
        asked = f"stage {stage} of kind sae_features" if stage else "stage of kind sae_features in scope"
        raise UnknownTable(f"no {asked} has published features of {sae}{there}")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} stages have published features of {sae}; choose one with --stage: "
            f"{', '.join(row['stage'] for row in found)}"
        )
    return dict(found[0])


def _feature(row: Row) -> Row:
    """Heights of the histogram are counts of active codes, values the middles of half octaves; bars outside are left out."""
    heights = row["histogram"]
    filled = [i for i, height in enumerate(heights) if height]
    bars = range(filled[0], filled[-1] + 1) if filled else range(0)
    return {
        "index": str(row["feature"]),
        "maxActApprox": row["max"] or 0.0,
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_heights": [heights[i] for i in bars],
        "freq_hist_data_bar_values": [_MIDDLES[i] for i in bars],
        "topkCosSimIndices": [row["feature"], *row["neighbours"]],
        "topkCosSimValues": [1.0, *row["neighbour_cos"]],
        **{name: row[name] for name in ("n_active", "images_active", "mean", "is_dead")},
    }


def _activation(row: Row) -> Row:
    """An image as its patches, row by row, where a viewer of texts has tokens; one token without a grid."""
    values = row["map"] or [row["value"]]
    width = row["grid_w"] or 1
    most = max(range(len(values)), key=values.__getitem__)
    return {
        "index": str(row["feature"]),
        "tokens": [f"{n // width},{n % width}" for n in range(len(values))] if row["map"] else ["image"],
        "values": values,
        "maxValue": row["value"],
        "maxValueTokenIndex": most,
        "minValue": min(values),
        "dataIndex": row["image_id"],
        "dataSource": row["uri"],
        **{name: row[name] for name in ("rank", "grid_h", "grid_w")},
    }


def _concept(row: Row) -> Row:
    score = {"value": row["value"], "explanationScoreTypeName": row["measure"]}
    return _explanation(row, row["way"], [score])


def _sentence(row: Row) -> Row:
    asked = (row["method"], row["masking"], row["positions"], row["alpha_asked"], row["alpha_unit"], row["sequence"])
    measures = ("iou", "clip", "synthetic", "auroc")
    scores = [{"value": row[m], "explanationScoreTypeName": m} for m in measures if row[m] is not None]
    return _explanation(row, " ".join(map(str, asked)), scores)


def _explanation(row: Row, way: str, scores: list[Row]) -> Row:
    return {
        "index": str(row["feature"]),
        "description": row["description"],
        "typeName": way,
        "explanationModelName": row["author"],
        "scores": scores,
    }


def _merged(*sources: Iterator[Row]) -> Iterator[Row]:
    """Rows of all sources, each ordered by its feature, in the order of features."""
    return merge(*sources, key=_number)


def _number(row: Row) -> int:
    return int(row["index"])


def _write(folder: Path, rows: Iterator[Row]) -> int:
    """One file per BATCH of features, by their number; returns the lines."""
    folder.mkdir()
    lines = 0
    for batch, some in groupby(rows, lambda row: _number(row) // BATCH):
        with (
            (folder / f"batch-{batch}.jsonl.gz").open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file,
        ):
            for row in some:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                lines += 1
    return lines
