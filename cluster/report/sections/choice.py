"""Which features a page shows: some of the most selective, some of the densest and some by chance, within a bound of bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.report.data import ReportData
from cluster.report.sections.saes import Described

PAGE_BYTES = 12_000_000
"""What cards may take, so that a whole page stays below 15 MB."""
UNIT_BYTES = 6_500_000
"""Of them what named units take, where there are any."""
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

    features: list[int]
    reasons: tuple[str, ...]
    by: str
    """What selective means here."""


def feature_bytes(data: ReportData) -> int:
    """What cards of features may take on this page."""
    return PAGE_BYTES - UNIT_BYTES if data.has("unit_concepts") else PAGE_BYTES


def fit(
    saes: int,
    images: int,
    patches: int,
    budget: int = PAGE_BYTES,
    plans: Sequence[tuple[int, int]] = PLANS,
    card: int = CARD_BYTES,
) -> Amount:
    """The most that stays in the budget.

    saes: there are so many. images: so many different ones at most. patches: values of one map. plans: as `PLANS`. card: as
    `CARD_BYTES`.
    """
    for features, each in plans:
        if _bytes(saes * features, each, images, patches, card) <= budget:
            return Amount(saes, features, each)
    features, each = plans[-1]
    fitting = next(
        n for n in range(saes, 0, -1) if n == 1 or _bytes(n * features, each, images, patches, card) <= budget
    )
    return Amount(fitting, features, each)


def _bytes(cards: int, each: int, images: int, patches: int, card: int) -> float:
    tiles = cards * each
    return cards * card + tiles * (TILE_BYTES + patches * VALUE_BYTES) + min(tiles, images) * THUMBNAIL_BYTES


def choose(data: ReportData, sae: Described, most: int) -> Choice:
    """A third each, without repeats, ascending by feature; only features that are active at all."""
    columns = ["stage", "feature", "density", "is_dead", "kurtosis", "monosemanticity"]
    table = data.table("sae_features", columns, {"stage": sae.stage, "is_dead": [False]}).sort_by("feature")
    of = {name: table[name].to_numpy() for name in ("feature", "density", "kurtosis", "monosemanticity")}
    feature = of["feature"]
    selective, by = _selective(data, sae, of)
    dense = feature[_descending(of["density"])]
    chosen: dict[int, str] = {}
    for reason, order in (
        ("selective", selective),
        ("dense", dense.tolist()),
        ("random", feature[np.random.default_rng(SEED).permutation(len(feature))].tolist()),
    ):
        room = min(-(-most // 3), most - len(chosen))
        fresh = [f for f in order if f not in chosen][:room]
        chosen.update(dict.fromkeys(fresh, reason))
    features = sorted(chosen)
    return Choice(features, tuple(chosen[f] for f in features), by)


def _selective(data: ReportData, sae: Described, of: dict[str, np.ndarray]) -> tuple[list[int], str]:
    """Features by best F1, the best of each concept first, then the second best; without labels by how alike their
    images look, else by how peaked they are."""
    rows = data.table("sae_selectivity", ["stage", "feature", "concept", "best_f1"], {"stage": sae.stage}).to_pylist()
    if rows:
        rows.sort(key=lambda row: (-row["best_f1"], row["feature"], row["concept"]))
        best = {row["feature"]: row for row in reversed(rows)}  # the first of each feature wins
        seen: Counter[str] = Counter()
        places = []
        for row in sorted(best.values(), key=lambda row: (-row["best_f1"], row["feature"])):
            places.append((seen[row["concept"]], -row["best_f1"], row["feature"]))
            seen[row["concept"]] += 1
        alive = set(of["feature"].tolist())
        return [feature for _, _, feature in sorted(places) if feature in alive], "best F1, concept by concept"
    by = "monosemanticity" if np.isfinite(of["monosemanticity"]).any() else "kurtosis"
    return of["feature"][_descending(of[by])].tolist(), by


def _descending(values: np.ndarray) -> np.ndarray:
    return np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")


def describe_choice(amount: Amount, total: int, choices: Sequence[Choice]) -> str:
    """Says on the page what it leaves out."""
    by = " or ".join(dict.fromkeys(c.by for c in choices))
    text = (
        f"At most {amount.features} features of each SAE: a third of them the most selective (by {by}), a third the densest, "
        f"a third by chance; {amount.images} images of each. The tables have all."
    )
    return text + (f" Of {total} SAEs the first {amount.saes} are shown." if amount.saes < total else "")
