"""What features are scored against: labels and attributes of the images, and what their patches show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.between import unpack_all
from jobs.protocol import Inputs
from jobs.sae_features.between import TRUTH
from miclip_core.sae.features.codes import FeatureCodes, ImageCodes
from miclip_core.sae.features.concepts import label_categories
from miclip_core.sae.features.selectivity import Category, Entries, Scores, best_of, join_scores, score, sort_entries
from schemas.plans import Plan

LEVELS = ("image", "patch")
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Concepts:
    """The categories of one level."""

    level: str
    categories: tuple[Category, ...]

    @property
    def names(self) -> list[str]:
        """`category=value` of every concept."""
        return [name for category in self.categories for name in category.concepts]

    def score(self, entries: Entries, first: int, plan: Plan) -> Rows:
        """The rows that may be among the best: of features counted from `first`, without those that never fire."""
        params: Any = plan.stage.params
        scores = join_scores([score(entries, category, params["min_positives"]) for category in self.categories])
        fires = np.bincount(entries.feature[entries.value > 0], minlength=entries.width) > 0
        of_feature, of_concept = best_of(scores, fires, params["concepts_per_feature"], params["features_per_concept"])
        feature, concept = np.nonzero((of_feature >= 0) | (of_concept >= 0))
        return {
            "feature": (feature + first).astype(np.int32),
            "level": np.full(len(feature), LEVELS.index(self.level), np.int8),
            "number": concept.astype(np.int32),
            "rank_in_feature": of_feature[feature, concept],
            **self._columns(scores, feature, concept),
        }

    def _columns(self, scores: Scores, feature: np.ndarray, concept: np.ndarray) -> Rows:
        positives = np.concatenate([category.positives for category in self.categories])
        n = np.concatenate([np.full(len(category.values), category.n) for category in self.categories])
        return {
            "concept": np.array(self.names)[concept],
            "n_pos": positives[concept],
            "n": n[concept],
            "auroc": scores.auroc[feature, concept],
            "best_f1": scores.f1[feature, concept],
            "f1_threshold": scores.threshold[feature, concept],
            "precision": scores.precision[feature, concept],
            "recall": scores.recall[feature, concept],
        }


def read_labels(inputs: Inputs, plan: Plan, image_index: np.ndarray) -> tuple[list[str], Concepts | None]:
    """Where the images of these rows of the index are, and their labels and attributes as concepts if there are any."""
    rows = plan.rounds[0].rows
    uris: list[str] = []
    labels: list[str | None] = []
    attributes: list[Any] = []
    batches = inputs.table(
        plan.stage.inputs["labels"],
        "images",
        ("image_index", "uri", "label", "attributes"),
        ("image_index", [(0, rows)]),
    )
    for batch in batches:
        wanted = batch.filter(np.isin(batch.column(0).to_numpy(), image_index))
        uris += wanted.column(1).to_pylist()
        labels += wanted.column(2).to_pylist()
        attributes += wanted.column(3).to_pylist()
    found = label_categories(labels, attributes, int(plan.stage.params["max_values"]))  # type: ignore[arg-type]
    return uris, Concepts("image", found) if found else None


def read_truth(inputs: Inputs, plan: Plan, images: int) -> Concepts | None:
    """What the patches of all images show, if that is known: one item per image and patch."""
    shards = list(unpack_all(inputs, plan, 0, TRUTH))
    names = [key.removeprefix("classes.") for key in (shards[0] if shards else {}) if key.startswith("classes.")]
    found = []
    for name in names:
        classes = np.concatenate([shard[f"classes.{name}"] for shard in shards])
        assert len(classes) == images
        values: tuple[str, ...] = tuple(shards[0][f"values.{name}"].tolist())
        found.append(Category(name, values, classes.reshape(-1, 1)))
    return Concepts("patch", tuple(found)) if found else None


def image_entries(codes: ImageCodes) -> Entries:
    """The largest code of each image."""
    return sort_entries(codes.feature, codes.largest, codes.image.astype(np.int64), codes.width)


def patch_entries(codes: FeatureCodes, first_patch: int, patches: int) -> Entries:
    """The code of each patch; tokens before and after the patches are left out."""
    patch = codes.token - first_patch
    inside = (patch >= 0) & (patch < patches)
    item = np.where(inside, codes.image.astype(np.int64) * patches + patch, -1)
    return sort_entries(codes.feature, codes.value, item, codes.width)


def keep_best(rows: Mapping[str, np.ndarray], per_concept: int) -> Rows:
    """Of candidates for each concept's best features those that are, and all that are among their feature's best.

    Adds rank_in_concept, -1 beyond the best; sorted by (feature, level, rank_in_feature or last, concept).
    """
    group = rows["level"].astype(np.int64) << 32 | rows["number"]
    order = np.lexsort((rows["feature"], -rows["auroc"], group))
    first = np.searchsorted(group[order], group[order])
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order)) - first
    rank[rank >= per_concept] = -1
    kept = np.flatnonzero((rank >= 0) | (rows["rank_in_feature"] >= 0))
    found = {**{name: column[kept] for name, column in rows.items()}, "rank_in_concept": rank[kept]}
    of_feature = np.where(found["rank_in_feature"] < 0, np.iinfo(np.int32).max, found["rank_in_feature"])
    order = np.lexsort((found["number"], of_feature, found["level"], found["feature"]))
    return {name: column[order] for name, column in found.items()}


def join_rows(parts: list[Rows]) -> Rows | None:
    """Rows one after another; None if there are none at all."""
    some = [rows for rows in parts if len(rows["feature"])]
    return {name: np.concatenate([rows[name] for rows in some]) for name in some[0]} if some else None
