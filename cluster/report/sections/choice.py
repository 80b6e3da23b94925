"""Which features a page shows: some of the most selective, some of the densest and some by chance, within a bound of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.report.data import ReportData
from cluster.report.sections.saes import Described

PAGE_BYTES = 12_000_000
"""What cards may take, so that a whole page stays below 15 MB."""
PLANS = ((48, 9), (48, 6), (32, 6), (24, 4), (16, 4), (12, 3), (8, 3))
"""(features per SAE, images per feature), from what we would like down to what is still worth a look."""
CARD_BYTES, TILE_BYTES, THUMBNAIL_BYTES, VALUE_BYTES = 5500, 420, 2400, 1.4
"""Of a card without its images, of one image in it without its map, of one thumbnail, of one value of a map; as text."""
SEED = 0


class Amount(NamedTuple):
    """How much is shown: of how many SAEs, how many features of each, how many images of each feature."""

    saes: int
    features: int
    images: int


class Choice(NamedTuple):
    """The features of one SAE to show, and why each was chosen: selective, dense or random."""

    features: np.ndarray
    reasons: tuple[str, ...]
    by: str
    """What selective means here."""


def fit(saes: int, images: int, patches: int, budget: int = PAGE_BYTES) -> Amount:
    """The most that stays in the budget.

    saes: there are so many. images: so many different ones at most. patches: values of one map.
    """
    for features, each in PLANS:
        if _bytes(saes * features, each, images, patches) <= budget:
            return Amount(saes, features, each)
    features, each = PLANS[-1]
    fitting = next(n for n in range(saes, 0, -1) if n == 1 or _bytes(n * features, each, images, patches) <= budget)
    return Amount(fitting, features, each)


def _bytes(cards: int, each: int, images: int, patches: int) -> float:
    tiles = cards * each
    return cards * CARD_BYTES + tiles * (TILE_BYTES + patches * VALUE_BYTES) + min(tiles, images) * THUMBNAIL_BYTES


def choose(data: ReportData, sae: Described, most: int) -> Choice:
    """A third each, without repeats, ascending by feature; only features that are active at all."""
    table = data.table(
        "sae_features", ["stage", "feature", "density", "is_dead", "kurtosis", "monosemanticity"], {"stage": sae.stage}
    )
    alive = ~table["is_dead"].to_numpy()
    feature = table["feature"].to_numpy()[alive]
    density = table["density"].to_numpy()[alive]
    quality, by = _quality(
        data, sae, table["monosemanticity"].to_numpy()[alive], table["kurtosis"].to_numpy()[alive], feature
    )
    shuffled = np.random.default_rng(SEED).permutation(len(feature))
    third = -(-most // 3)
    chosen: dict[int, str] = {}
    for reason, order in (("selective", _descending(quality)), ("dense", _descending(density)), ("random", shuffled)):
        room = min(third, most - len(chosen))
        fresh = [i for i in order if i not in chosen][:room]
        chosen.update(dict.fromkeys(fresh, reason))
    places = sorted(chosen, key=lambda i: feature[i])
    return Choice(feature[places], tuple(chosen[i] for i in places), by)


def _descending(values: np.ndarray) -> np.ndarray:
    return np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")


def _quality(
    data: ReportData, sae: Described, monosemanticity: np.ndarray, kurtosis: np.ndarray, feature: np.ndarray
) -> tuple[np.ndarray, str]:
    """Best F1 over concepts where labels were there, else how alike a feature's images look, else how peaked it is."""
    scores = (
        data.table("sae_selectivity", ["stage", "feature", "best_f1"], {"stage": sae.stage})
        if data.has("sae_selectivity")
        else None
    )
    if scores is not None and len(scores):
        best = np.full(int(max(feature.max(initial=0), scores["feature"].to_numpy().max())) + 1, -np.inf)
        np.maximum.at(best, scores["feature"].to_numpy(), scores["best_f1"].to_numpy())
        return best[feature], "best F1 for a concept"
    if np.isfinite(monosemanticity).any():
        return monosemanticity, "monosemanticity"
    return kurtosis, "kurtosis"


def describe_choice(amount: Amount, total: int, choices: Sequence[Choice]) -> str:
    """Says on the page what it leaves out."""
    by = " or ".join(dict.fromkeys(c.by for c in choices))
    text = (
        f"At most {amount.features} features of each SAE: a third of them the most selective (by {by}), a third the densest, "
        f"a third by chance; {amount.images} images of each. The tables have all."
    )
    return text + (f" Of {total} SAEs the first {amount.saes} are shown." if amount.saes < total else "")
