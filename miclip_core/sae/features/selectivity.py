"""How well each feature tells a concept from what else there is: exact AUROC and best F1 of all features x concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from miclip_core.sae.features.codes import order_by_value, reduce_segments


@dataclass(frozen=True, eq=False)
class Category:
    """One property of items (images or tokens): a name, its values, and which of them each item has.

    classes int [items, slots]: numbers of values, -1 in slots not used. An item with none is left out of everything.
    """

    name: str
    values: tuple[str, ...]
    classes: np.ndarray

    @property
    def concepts(self) -> tuple[str, ...]:
        """`name=value` of every value."""
        return tuple(f"{self.name}={value}" for value in self.values)

    @cached_property
    def valid(self) -> np.ndarray:
        """Items that have a value: bool [items]."""
        return np.any(self.classes >= 0, axis=1)

    @cached_property
    def positives(self) -> np.ndarray:
        """Items that have each value: int64 [values]."""
        return np.bincount(self.classes[self.classes >= 0], minlength=len(self.values))

    @property
    def n(self) -> int:
        """Items that have some value."""
        return int(self.valid.sum())


@dataclass(frozen=True)
class Scores:
    """float64 [features, concepts]: NaN where a concept has too few positive or negative items.

    f1 is the best over thresholds t of predicting the concept where the code is at least t, among t that are codes of
    the feature above zero; of equal ones the largest t. It is 0, and threshold, precision and recall NaN, where no item
    with the concept is active.
    """

    auroc: np.ndarray
    f1: np.ndarray
    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True)
class Entries:
    """What is not zero: feature int [entries], value, item; sorted by (feature, value)."""

    feature: np.ndarray
    value: np.ndarray
    item: np.ndarray
    width: int


def sort_entries(feature: np.ndarray, value: np.ndarray, item: np.ndarray, width: int) -> Entries:
    """Entries of `width` features in order; zeros and items below 0 (positions that nothing is known of) are dropped."""
    kept = (value != 0) & (item >= 0)
    feature, value, item = feature[kept], value[kept], item[kept]
    order = order_by_value(feature, value)
    return Entries(feature[order].astype(np.int64), value[order], item[order], width)


def score(entries: Entries, category: Category, least: int = 1) -> Scores:
    """Scores of every feature for every value of one category, over all items that have a value.

    Items without an entry are zeros, which tie with each other. AUROC is the Mann-Whitney U over positives times
    negatives with average ranks. A value that fewer than `least` items have, or lack, is not scored. Costs entries x
    slots, whatever the number of values.
    """
    known = _look_up(entries, category)
    positives = category.positives
    usable = (positives >= least) & (category.n - positives >= least)
    columns = (_auroc(known, positives, category.n), *_best_f1(known, positives))
    return Scores(*(np.where(usable, column.reshape(entries.width, -1), np.nan) for column in columns))


@dataclass(frozen=True)
class _Known:
    """Entries whose item has a value of a category, and one pair for each value that the item of an entry has.

    first, last: the run of equal values of one feature that an entry is in. offsets [features + 1]. key of a pair:
    feature * values + value, ascending; inside a key pairs are in the order of their entries.
    """

    feature: np.ndarray
    value: np.ndarray
    first: np.ndarray
    last: np.ndarray
    offsets: np.ndarray
    key: np.ndarray
    entry: np.ndarray


def _look_up(entries: Entries, category: Category) -> _Known:
    known = category.valid[entries.item]
    feature, value = entries.feature[known], entries.value[known]
    classes = category.classes[entries.item[known]]
    entry, slot = np.nonzero(classes >= 0)
    key = feature[entry] * len(category.values) + classes[entry, slot]
    order = np.argsort(key, kind="stable")
    first, last = _runs(feature, value)
    offsets = np.searchsorted(feature, np.arange(entries.width + 1))
    return _Known(feature, value, first, last, offsets, key[order], entry[order])


def _runs(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last place of the run of equal (group, value) that each element is in."""
    new = np.ones(len(value), bool)
    new[1:] = (group[1:] != group[:-1]) | (value[1:] != value[:-1])
    start = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    end = np.concatenate([start[1:], [len(value)]]) - 1
    return start[run], end[run]


def _auroc(known: _Known, positives: np.ndarray, n: int) -> np.ndarray:
    """[features, values] from the sum of the positives' ranks (from 1, ties at their average) among all n items."""
    features, size = len(known.offsets) - 1, (len(known.offsets) - 1) * len(positives)
    zeros = n - np.diff(known.offsets)
    below_zero = np.bincount(known.feature[known.value < 0], minlength=features)
    rank: np.ndarray = (known.first + known.last) / 2 - known.offsets[known.feature] + 1
    rank = rank + np.where(known.value > 0, zeros[known.feature], 0)
    zero_rank = below_zero + (zeros + 1) / 2
    active = np.bincount(known.key, minlength=size).reshape(features, -1)
    of_active = np.bincount(known.key, weights=rank[known.entry], minlength=size).reshape(features, -1)
    ranks = of_active + (positives - active) * zero_rank[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks - positives * (positives + 1) / 2) / (positives * (n - positives))


def _best_f1(known: _Known, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F1, threshold, precision and recall of each (feature, value), all flat.

    Only values of positive items can be best: between two of them a threshold gains no hit and costs precision.
    """
    above = known.value[known.entry] > 0
    key, entry = known.key[above], known.entry[above]
    offsets = np.searchsorted(key, np.arange((len(known.offsets) - 1) * len(positives) + 1))
    # hits at the threshold of a pair: the pairs from it to the last of its key; of ties the first has them all and wins
    hits = offsets[key + 1] - np.arange(len(key))
    predicted = known.offsets[known.feature[entry] + 1] - known.first[entry]
    wanted = positives[key % len(positives)]
    f1 = 2.0 * hits / (predicted + wanted)
    best = reduce_segments(np.maximum, f1, offsets, 0.0)
    chosen = reduce_segments(np.maximum, np.where(f1 == best[key], np.arange(len(key)), -1), offsets, -1)
    some = chosen >= 0
    threshold, precision, recall = (np.full(len(best), np.nan) for _ in range(3))
    threshold[some] = known.value[entry[chosen[some]]]
    precision[some] = (hits / predicted)[chosen[some]]
    recall[some] = (hits / wanted)[chosen[some]]
    return best, threshold, precision, recall


def join_scores(parts: Sequence[Scores]) -> Scores:
    """Scores for several categories side by side."""
    return Scores(*(np.concatenate([getattr(part, f.name) for part in parts], 1) for f in fields(Scores)))


def best_of(scores: Scores, usable: np.ndarray, per_feature: int, per_concept: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank by AUROC of each concept among its feature's, and of each feature among its concept's: int32, -1 beyond.

    Only the first `per_feature` and `per_concept` get a rank. Of equal ones the lower number comes first. Features
    outside `usable` (bool [features]) and undefined scores get none.
    """
    auroc = np.where(usable[:, None], scores.auroc, np.nan)
    return _first_ranks(auroc, per_feature), _first_ranks(auroc.T, per_concept).T


def _first_ranks(values: np.ndarray, k: int) -> np.ndarray:
    """Rank of each value in its row, largest first, if it is below k; else -1. NaN has none."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]  # NaN sorts last
    ranks = np.full(values.shape, -1, np.int32)
    np.put_along_axis(ranks, order, np.arange(order.shape[1], dtype=np.int32)[None], 1)
    ranks[np.isnan(values)] = -1
    return ranks
