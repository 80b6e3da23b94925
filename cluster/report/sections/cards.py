"""The card of one feature: its concepts, pictures with the code of every patch, histogram, figures and neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cluster.report.data import ReportData
from cluster.report.frame import px
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.sections.choice import Choice
from cluster.report.sections.saes import Described
from cluster.report.sections.unit_images import stored_map
from cluster.report.tiles import Views, make_tile

FIGURES = (
    ("density", "density", "share of tokens on which it is active"),
    ("images_active", "images", "images with at least one such token"),
    ("max", "largest", "largest code"),
    ("p50", "median", "median of active codes"),
    ("kurtosis", "kurtosis", "over all tokens with their zeros, in excess of the normal distribution's"),
    ("monosemanticity", "monosemanticity", "mean cosine of image embeddings, weighted by codes"),
    ("clarity", "clarity", "mean cosine of the embeddings of its top images"),
    ("enc_dec_cos", "enc·dec cosine", "cosine of its encoder and decoder rows"),
)
BAR_WIDTH, BAR_HEIGHT = 5, 34
FIRST_EXPONENT = -16
"""Bin i of a histogram begins at 2^(-16 + i/2)."""


class Cards(NamedTuple):
    """What the cards of one SAE are made of: rows of its features, their images and concepts by feature."""

    sae: Described
    choice: Choice
    rows: list[dict[str, Any]]
    images: dict[int, list[dict[str, Any]]]
    concepts: dict[int, list[dict[str, Any]]]


def card_id(sae: Described, feature: int) -> str:
    """The anchor of a feature's card."""
    return f"f-{sae.stage[:10]}-{feature}"


def make_card(cards: Cards, row: dict[str, Any], data: ReportData, views: Views, on_page: set[str]) -> Html:
    """One feature; neighbours that are on the page too are links."""
    sae, feature = cards.sae, row["feature"]
    concepts = cards.concepts.get(feature, [])
    best = concepts[0] if concepts else None
    reason = cards.choice.reasons[cards.choice.features.index(feature)]
    words = " ".join([f"#{feature}", sae.title, *(c["concept"] for c in concepts), reason])
    head = tag(
        "header",
        tag("h3", tag("a", f"#{feature}", href=f"#{card_id(sae, feature)}")),
        tag("span", reason, class_=f"state {reason}"),
        tag("span", sae.title, class_="which"),
    )
    return tag(
        "article",
        head,
        _concepts(concepts),
        tag("div", _tiles(cards, feature, data, views, row["max"]), class_="tiles"),
        tag("div", _histogram(row["histogram"]), tag("dl", _figures(row)), class_="numbers"),
        _neighbours(sae, row, on_page),
        class_="card",
        id=card_id(sae, feature),
        tabindex="-1",
        aria_label=f"Feature {feature} of {sae.title}",
        data_place=sae.stage[:10],
        data_reason=reason,
        data_words=words.lower(),
        data_auroc=_sortable(best["auroc"] if best else None),
        data_f1=_sortable(max(c["best_f1"] for c in concepts) if concepts else None),
        data_number=feature,
        **{f"data_{name}": _sortable(row[name]) for name in ("density", "max", "monosemanticity", "kurtosis")},
    )  # fmt: skip


def _sortable(value: float | None) -> str | None:
    return None if value is None or value != value else f"{value:.6g}"


def _concepts(concepts: Sequence[dict[str, Any]]) -> Html | None:
    """The best concept of each level, told apart by whether images or patches were compared."""
    best = list({c["level"]: c for c in reversed(concepts)}.values())[::-1]
    lines = (
        tag("li", tag("b", c["concept"]), tag("span", f"AUROC {c['auroc']:.3f}  F1 {c['best_f1']:.2f}  ({c['level']})"))
        for c in best
    )
    return tag("ul", lines, class_="concepts") if best else None


def _tiles(cards: Cards, feature: int, data: ReportData, views: Views, largest: float) -> Iterable[Html]:
    for image in cards.images.get(feature, []):
        words = f"{short_number(image['value'])}  {data.pictures.words(image['image_id'])}"
        yield make_tile(
            data,
            image["image_id"],
            f"Image {image['rank'] + 1}, code {words}",
            words,
            stored_map(image, largest, views.box(cards.sae.model, cards.sae.stage, image["image_id"])),
        )


def _histogram(counts: Sequence[int]) -> Html:
    """Bars over half octaves, from the first to the last that holds a code."""
    filled = [i for i, n in enumerate(counts) if n]
    if not filled:
        return tag("span", "never active", class_="none")
    first, last = filled[0], filled[-1]
    most = max(counts)
    bars = (
        tag("rect", tag("title", f"{counts[i]:,} codes from {short_number(2 ** (FIRST_EXPONENT + i / 2))}"),
            x=(i - first) * BAR_WIDTH, y=px(BAR_HEIGHT - counts[i] / most * BAR_HEIGHT), width=BAR_WIDTH - 1,
            height=px(counts[i] / most * BAR_HEIGHT))
        for i in filled
    )  # fmt: skip
    width = (last - first + 1) * BAR_WIDTH
    ends = [short_number(2 ** (FIRST_EXPONENT + i / 2)) for i in (first, last + 1)]
    picture = tag("svg", join(bars), viewBox=f"0 0 {width} {BAR_HEIGHT}", width=width, height=BAR_HEIGHT,
                  role="img", preserveAspectRatio="none", aria_label=f"Histogram of active codes from {ends[0]} to {ends[1]}")  # fmt: skip
    return tag(
        "figure",
        picture,
        tag("figcaption", tag("span", ends[0]), tag("span", "active codes (log)"), tag("span", ends[1])),
        class_="bars",
    )


def _figures(row: dict[str, Any]) -> Iterable[Html]:
    for name, word, hint in FIGURES:
        if row[name] is not None:
            shown = percent(row[name]) if name == "density" else short_number(row[name])
            yield tag("div", tag("dt", word, title=hint), tag("dd", shown))


def _neighbours(sae: Described, row: dict[str, Any], on_page: set[str]) -> Html | None:
    """Links to those that are on the page, numbers for the others."""
    if not row["neighbours"]:
        return None
    shown = []
    for feature, cosine in zip(row["neighbours"], row["neighbour_cos"]):
        name, target = f"#{feature}", card_id(sae, feature)
        link = tag("a", name, href=f"#{target}") if target in on_page else name
        shown.append(tag("span", link, f" {cosine:.2f}"))
    return tag(
        "p", "Nearest decoder rows: ", (join([" " if i else None, s]) for i, s in enumerate(shown)), class_="near"
    )
