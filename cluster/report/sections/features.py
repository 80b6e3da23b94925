"""A page of features: what each responds to, in words, figures and pictures, to be searched, sorted and walked through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from cluster.report.colours import HEAT
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.section import Section
from cluster.report.sections.cards import Cards, Views, card_id, make_card
from cluster.report.sections.choice import Amount, choose, describe_choice, fit
from cluster.report.sections.pictures import Pictures
from cluster.report.sections.saes import Described, load_described

SORTS = (("auroc", "AUROC"), ("f1", "F1"), ("feature", "number"), ("density", "density"), ("max", "largest code"),
         ("monosemanticity", "monosemanticity"), ("kurtosis", "kurtosis"))  # fmt: skip


def render(data: ReportData) -> Html:
    """Controls, then a card for each chosen feature of each SAE."""
    saes = load_described(data)
    amount = fit(len(saes), data.rows.get("images", 0), _patches(data))
    cards = [_load(data, sae, amount) for sae in saes[: amount.saes]]
    pictures = Pictures(data, (i["image_id"] for c in cards for images in c.images.values() for i in images))
    views = Views(data, pictures)
    on_page = {card_id(c.sae, feature) for c in cards for feature in c.choice.features}
    return join(
        [
            tag("p", describe_choice(amount, len(saes), [c.choice for c in cards])),
            _controls([c.sae for c in cards]),
            tag(
                "div", (make_card(c, row, views, on_page) for c in cards for row in c.rows), class_="cards", id="cards"
            ),
            tag("p", "No feature fits.", class_="none", id="no-cards", hidden=True),
            None if on_page else tag("p", "No latent is ever active.", class_="none"),
            pictures.as_script(),
        ]
    )


SECTION = Section("features", "Features", ("sae_features",), render, ("features.css", "features.js"))


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


# ---------------------------------------------------------------- controls


def _controls(saes: Sequence[Described]) -> Html:
    options = [tag("option", "all SAEs", value=""), *(tag("option", s.title, value=s.stage[:10]) for s in saes)]
    reasons = [tag("option", "all reasons", value="")] + [
        tag("option", word, value=word) for word in ("selective", "dense", "random")
    ]
    sorts = (tag("option", f"by {word}", value=field) for field, word in SORTS)
    return tag(
        "div",
        tag("input", type="search", id="find", placeholder="Search features  /", aria_label="Search number, concept or SAE"),
        tag("select", options, id="which", aria_label="SAE"),
        tag("select", reasons, id="reason", aria_label="Why it was chosen"),
        tag("select", sorts, id="order", aria_label="Order"),
        tag("button", "Overlay", type="button", id="overlay", aria_pressed="true", title="Overlay on or off (o)"),
        _heat_key(),
        tag("span", id="found", role="status"),
        class_="bar",
    )  # fmt: skip


def _heat_key() -> Html:
    """What the colours of the overlay mean."""
    steps = (tag("rect", x=6 * i, width=6, height=10, fill=colour) for i, colour in enumerate(HEAT))
    picture = tag("svg", join(steps), width=6 * len(HEAT), height=10, aria_hidden="true")
    return tag(
        "span",
        "0 ",
        picture,
        " largest code",
        class_="heat",
        title="Each colour is a sixteenth of the feature's largest code",
    )
