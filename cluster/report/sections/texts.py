"""Texts about features with their scores, those that were chosen, and which of many features a page has cards for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.report.data import ReportData
from cluster.report.sections.explained import Explained
from cluster.report.sections.ways import Ways, is_control, way_of
from jobs.explained import Variant
from jobs.shown import pool_map

CARDS_BYTES = 5_000_000
"""What cards of texts may take, beside what all other cards take."""
PLANS = ((1500, 5), (1000, 5), (700, 5), (500, 5), (300, 4), (200, 4), (100, 3), (48, 3), (24, 3), (12, 2))
"""(features per SAE, images per feature), from what we would like down to what is still worth a look."""
CARD_BYTES, TEXT_BYTES = 1600, 520
"""Of a card without its images and texts, and of one text; as text."""
MOST_GRID = 16
"""Rows and columns of a map; finer ones are averaged."""
SCORES = ("iou", "clip", "synthetic", "auroc", "named")
LABELS = ("abstraction", "context")
SEED = 0
TIE = "tie"


class Text(NamedTuple):
    """One text, or why there is none; votes: maskings whose vote chose it. scores: of SCORES, None where unknown.

    is_validation: alphas were compared on its feature. labels: of LABELS, those that it was given.
    """

    way: Variant
    sequence: int
    text: str | None
    status: str
    scores: dict[str, Any]
    votes: tuple[str, ...]
    is_validation: bool
    labels: Mapping[str, str]


class Chosen(NamedTuple):
    """The text that one vote chose for a feature; is_tie: it was drawn among texts that are as good."""

    feature: int
    vote: str
    way: Variant
    sequence: int
    text: str
    iou: float | None
    passed: bool
    is_tie: bool = False

    @property
    def won(self) -> str:
        """The method whose text was the best, or TIE where it was drawn among equals, which no method has won."""
        return TIE if self.is_tie else self.way.method


def load_features(data: ReportData, one: Explained) -> list[int]:
    """All features that were explained in some way, ascending."""
    table = data.table("explanations", ["feature"], {"stage": list(one.stages.values())})
    return sorted(table["feature"].unique().to_pylist())


def load_chosen(data: ReportData, one: Explained) -> list[Chosen]:
    """The text of each feature and vote, masks before heatmaps; none where nobody chose."""
    if one.summary is None:
        return []
    columns = ["feature", "vote", *Variant._fields, "sequence", "text", "iou", "passed", "is_tie"]
    rows = data.table("selected_explanations", columns, {"stage": one.summary}).to_pylist()
    found = [
        Chosen(r["feature"], r["vote"], way_of(r), r["sequence"], r["text"], r["iou"], r["passed"], r["is_tie"])
        for r in rows
    ]
    return sorted(found, key=lambda c: (c.feature, c.vote != "masks", c.vote))


def choose_features(features: Sequence[int], chosen: Sequence[Chosen], most: int) -> list[int]:
    """All if they are not too many; else half of them with the best IoU of a chosen text, the rest by chance."""
    if len(features) <= most:
        return list(features)
    best = sorted((-c.iou, c.feature) for c in chosen if c.iou is not None)
    kept = list(dict.fromkeys(feature for _, feature in best))[: most // 2]
    others = np.setdiff1d(features, kept)
    return sorted(kept + np.random.default_rng(SEED).permutation(others)[: most - len(kept)].tolist())


def load_texts(
    data: ReportData, one: Explained, features: Sequence[int], chosen: Sequence[Chosen]
) -> dict[int, list[Text]]:
    """Feature -> its texts in the usual order of ways, those of controls last."""
    if not features:
        return {}
    scores = _load_scores(data, one, features)
    votes: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for c in chosen:
        votes[c.way, c.feature, c.sequence].append(c.vote)
    columns = ["feature", *Variant._fields, "sequence", "text", "status", "is_validation"]
    where = {"stage": list(one.stages.values()), "feature": list(features)}
    order = {way: n for n, way in enumerate(Ways(one.stages).ways)}
    found: dict[int, list[Text]] = defaultdict(list)
    for row in data.table("explanations", columns, where).to_pylist():
        way = way_of(row)
        key = (way, row["feature"], row["sequence"])
        of_text = scores.get(key, {})
        known = {name: of_text[name] for name in SCORES if name in of_text}, tuple(votes.get(key, ()))
        labels = {name: of_text[name] for name in LABELS if of_text.get(name)}
        text = Text(way, row["sequence"], row["text"], row["status"], *known, row["is_validation"], labels)
        found[row["feature"]].append(text)
    return {feature: sorted(texts, key=lambda t: (order[t.way], t.sequence)) for feature, texts in found.items()}


def _load_scores(data: ReportData, one: Explained, features: Sequence[int]) -> dict[tuple[Any, ...], dict[str, Any]]:
    if one.summary is None:
        return {}
    names = (*SCORES, *LABELS)
    columns = ["feature", *Variant._fields, "sequence", *names]
    rows = data.table("explanation_scores", columns, {"stage": one.summary, "feature": list(features)}).to_pylist()
    return {(way_of(r), r["feature"], r["sequence"]): {name: r[name] for name in names} for r in rows}


def first_texts(data: ReportData, one: Explained) -> dict[int, str]:
    """Feature -> one text where nobody chose: that of the first way that has one and is no control."""
    found: dict[int, str] = {}
    for way in Ways(one.stages).ways:
        if is_control(way):
            continue
        where = {"stage": one.stages[way], "sequence": [0], "status": ["ok"]}
        for row in data.table("explanations", ["feature", "text"], where).to_pylist():
            found.setdefault(row["feature"], row["text"])
    return found


# ---------------------------------------------------------------- what features show and tell


def load_images(
    data: ReportData, one: Explained, features: Sequence[int], most: int
) -> dict[int, list[dict[str, Any]]]:
    """Feature -> the images that it was explained by, strongest first, with maps of at most 16 by 16."""
    if not features or not one.shown:
        return {}
    columns = ["feature", "rank", "image_id", "value", "image_mean", "map", "grid_h", "grid_w", "stage"]
    where = {"stage": one.shown, "feature": list(features), "rank": list(range(most))}
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in data.table("sae_top_images", columns, where).sort_by("rank").to_pylist():
        found[row["feature"]].append(_pooled(row))
    return dict(found)


def _pooled(row: dict[str, Any]) -> dict[str, Any]:
    high, wide = row["grid_h"], row["grid_w"]
    if not row["map"] or not high or max(high, wide) <= MOST_GRID:
        return row
    smaller = pool_map(np.array(row["map"]).reshape(high, wide), MOST_GRID)
    return {**row, "map": smaller.ravel().tolist(), "grid_h": smaller.shape[0], "grid_w": smaller.shape[1]}


def load_concepts(data: ReportData, one: Explained, features: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Feature -> the concept that it tells best, by AUROC; of the images that texts were scored on where that is known."""
    for stage in dict.fromkeys(filter(None, (one.scored_on, one.shown))):
        columns = ["feature", "concept", "auroc", "level"]
        rows = data.table("sae_selectivity", columns, {"stage": stage, "feature": list(features)}).to_pylist()
        if rows:
            return {row["feature"]: row for row in sorted(rows, key=lambda row: (row["auroc"], row["concept"]))}
    return {}


def load_clusters(data: ReportData, one: Explained) -> tuple[dict[int, int], dict[int, str]]:
    """Feature -> the cluster of its text, and cluster -> what it is called; of the map of these texts, the first of several."""
    if not data.has("explanation_map"):
        return {}, {}
    made_from = {one.summary, *one.stages.values()}
    maps = [p.stage for p in data.stages.values() if (p.stage.kind, p.stage.output) == ("map_explanations", "map")]
    own = sorted(stage.digest for stage in maps if made_from & set(stage.inputs.values()))
    if not own:
        return {}, {}
    points = data.table("explanation_map", ["feature", "cluster", "sequence"], {"stage": own[0]}).to_pylist()
    topics = data.table("explanation_clusters", ["cluster", "topic"], {"stage": own[0]}).to_pylist()
    return {row["feature"]: row["cluster"] for row in reversed(points)}, {row["cluster"]: row["topic"] for row in topics}  # fmt: skip


def load_figures(data: ReportData, one: Explained) -> pa.Table:
    """feature, density and decoder_norm of all living features of the SAE, as over the images that were shown."""
    columns = ["feature", "density", "decoder_norm", "max"]
    return data.table("sae_features", columns, {"stage": one.shown or "", "is_dead": [False]})
