"""A page of features: what each responds to, in words, figures and pictures, to be searched, sorted and walked through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from cluster.report import browse, tiles
from cluster.report.browse import Filter, heat_key, make_browser, overlay_button
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.section import Section
from cluster.report.sections.cards import Cards, card_id, make_card
from cluster.report.sections.choice import Amount, choose, describe_choice, feature_bytes, fit
from cluster.report.sections.saes import Described, load_described
from cluster.report.tiles import Views

SORTS = (("auroc", "AUROC"), ("f1", "F1"), ("number+", "number"), ("density", "density"), ("max", "largest code"),
         ("monosemanticity", "monosemanticity"), ("kurtosis", "kurtosis"))  # fmt: skip


def render(data: ReportData) -> Html:
    """Controls, then a card for each chosen feature of each SAE."""
    saes = load_described(data)
    amount = fit(len(saes), data.rows.get("images", 0), _patches(data), feature_bytes(data))
    shown = [_load(data, sae, amount) for sae in saes[: amount.saes]]
    data.pictures.want(i["image_id"] for c in shown for images in c.images.values() for i in images)
    views = Views(data)
    on_page = {card_id(c.sae, feature) for c in shown for feature in c.choice.features}
    cards = [make_card(c, row, data, views, on_page) for c in shown for row in c.rows]
    return join(
        [
            tag("p", describe_choice(amount, len(saes), [c.choice for c in shown])),
            make_browser(
                "Search features", cards, _filters([c.sae for c in shown]), SORTS,
                extra=[overlay_button(), heat_key("largest code", "Each colour is a sixteenth of the feature's largest code")],
                rest="Cards are a choice of features; the table sae_features has all.",
            ),
            None if on_page else tag("p", "No latent is ever active.", class_="none"),
        ]
    )  # fmt: skip


SECTION = Section("features", "Features", ("sae_features",), render, (*browse.ASSETS, *tiles.ASSETS, "features.css"))


# ---------------------------------------------------------------- what is shown


def _patches(data: ReportData) -> int:
    """Values of the largest map, by its grid."""
    grids = data.table("models", ["grid_h", "grid_w"]).to_pylist()
    return max(((row["grid_h"] or 1) * (row["grid_w"] or 1) for row in grids), default=256)


def _load(data: ReportData, sae: Described, amount: Amount) -> Cards:
    choice = choose(data, sae, amount.features)
    chosen = choice.features
    where = {"stage": sae.stage, "feature": chosen}
    rows = data.table("sae_features", None, where).sort_by("feature").to_pylist() if chosen else []
    columns = ["feature", "rank", "image_id", "value", "token", "map", "grid_h", "grid_w"]
    images = data.table("sae_top_images", columns, {**where, "rank": list(range(amount.images))}) if chosen else None
    concepts = data.table("sae_selectivity", None, {**where, "rank_in_feature": [0, 1]}) if chosen else None
    return Cards(sae, choice, rows, _by_feature(images, "rank"), _by_feature(concepts, "auroc", "descending"))


def _by_feature(table: Any, order: str, direction: str = "ascending") -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    if table is not None and len(table):
        for row in table.take(pc.sort_indices(table, [("feature", "ascending"), (order, direction)])).to_pylist():
            found.setdefault(row["feature"], []).append(row)
    return found


def _filters(saes: Sequence[Described]) -> list[Filter]:
    reasons = [("", "all reasons"), *((word, word) for word in ("selective", "dense", "random"))]
    return [
        Filter("place", "SAE", [("", "all SAEs"), *((s.stage[:10], s.title) for s in saes)], first=True),
        Filter("reason", "Why it was chosen", reasons),
    ]
