"""Explained features: a search over texts, and cards that put what every way says of a feature side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.amounts import count, some
from cluster.report import browse, tiles
from cluster.report.browse import Filter, Within, heat_key, make_browser, overlay_button
from cluster.report.data import ReportData
from cluster.report.html import Html, join, script_json, tag
from cluster.report.section import Section
from cluster.report.sections.choice import Amount, fit
from cluster.report.sections.explain_cards import Look, TextCards, draw_strips, make_strips, make_text_card, say_vote
from cluster.report.sections.explained import Explained, load_explained
from cluster.report.sections.texts import (
    CARD_BYTES,
    CARDS_BYTES,
    MOST_GRID,
    PLANS,
    TEXT_BYTES,
    TIE,
    Chosen,
    choose_features,
    first_texts,
    load_chosen,
    load_clusters,
    load_concepts,
    load_features,
    load_figures,
    load_images,
    load_texts,
)
from cluster.report.sections.unit_images import Grids
from cluster.report.sections.ways import METHODS, Ways
from cluster.report.tiles import Views

SCORED = ("iou", "gain")
ORDERS = (("iou", "IoU of the chosen text"), ("gain", "what steering gains on Top-k"), ("number+", "number"), ("density", "density"), ("norm", "decoder norm"))  # fmt: skip
INDEX_BYTES = 1_200_000
"""What the search may know of features without a card; as text."""
ROW_BYTES = 40
"""Of a feature in it, beside its text."""


class Texts(NamedTuple):
    """The features of one SAE as one model explains them: all of them, and those that a vote chose texts for."""

    one: Explained
    features: Sequence[int]
    chosen: Sequence[Chosen]


def render(data: ReportData) -> Html:
    """Controls, then a card for each feature that has one."""
    found = [Texts(one, load_features(data, one), load_chosen(data, one)) for one in load_explained(data)]
    found = [texts for texts in found if texts.features]
    if not found:
        return tag("p", "No feature was explained.", class_="none")
    amount = _fit(data, found)
    shown = [(texts, choose_features(texts.features, texts.chosen, amount.features)) for texts in found[: amount.saes]]
    cards = [_load(data, texts, features, amount.images) for texts, features in shown]
    data.pictures.want(image["image_id"] for of in cards for images in of.images.values() for image in images)
    look = Look(data, Views(data), len(found) > 1)
    articles = [make_text_card(of, feature, look) for of, (_, features) in zip(cards, shown) for feature in features]
    index = _index(data, found, {texts.one.number: set(features) for texts, features in shown})
    mask = tag("button", "As masks", type="button", class_="as-masks", aria_pressed="false", title="Black where the feature is not active, as masks show images to a model")  # fmt: skip
    lead = tag("p", "What every way to explain says of a feature, above the images that drive it most. IoU: how well the text finds where the feature is active; CLIP: "
               "cosine of the text and what the feature is active on; synthetic: activation of the feature on images made from the text; AUROC: these images against random "
               "ones; ✓ named: it has the name of the concept that the feature tells best. ★ is the text that was chosen, with the best mean rank over the first three; where others have the same it is a tie, drawn among them.")  # fmt: skip
    labelled = any(text.labels for of in cards for texts in of.texts.values() for text in texts)
    labels = tag("p", "Abstraction and context are labels of the text alone: whoever gave them saw no image.", class_="note") if labelled else None  # fmt: skip
    browser = make_browser(
        "Search texts and features", articles, _filters(cards), _orders(cards), _within(cards),
        extra=[overlay_button(), mask, heat_key("the feature's largest", "Each colour is a sixteenth of the feature's largest code in these images")],
        above=tag("div", class_="cardless-texts") if index else None,
        rest="Cards are a choice of features; the table explanations has all." if index else "",
    )  # fmt: skip
    strips = draw_strips([strip for of in cards for strip in of.strips])
    return join([lead, labels, strips, browser, index, tag("p", _said(found, shown, amount), class_="note")])


SECTION = Section(
    "explanations", "Explanations: features", ("explanations",), render,
    (*browse.ASSETS, *tiles.ASSETS, "units.css", "explain.css", "explain.js"),
)  # fmt: skip


def _fit(data: ReportData, found: Sequence[Texts]) -> Amount:
    """As many cards as may be, and no more of an SAE than any has features."""
    ways = max(len(texts.one.stages) for texts in found)
    largest = max(len(texts.features) for texts in found)
    plans = [(min(features, largest), images) for features, images in PLANS]
    card = CARD_BYTES + ways * TEXT_BYTES
    patches = min(Grids(data).largest, MOST_GRID**2)
    return fit(len(found), data.rows.get("images", 0), patches, CARDS_BYTES, plans, card)


def _load(data: ReportData, texts: Texts, features: Sequence[int], images: int) -> TextCards:
    one = texts.one
    chosen: dict[int, list[Chosen]] = defaultdict(list)
    for c in texts.chosen:
        chosen[c.feature].append(c)
    clusters, topics = load_clusters(data, one)
    figures = {row["feature"]: row for row in load_figures(data, one).to_pylist()}
    return TextCards(
        one,
        one.ways,
        load_texts(data, one, features, texts.chosen),
        chosen,
        load_images(data, one, features, images),
        load_concepts(data, one, features),
        clusters,
        topics,
        figures,
        make_strips(one.number, figures),
    )


# ---------------------------------------------------------------- controls


def _filters(cards: Sequence[TextCards]) -> list[Filter]:
    """Those that keep some cards and not others."""
    filters = []
    if len(cards) > 1:
        options = [("", "all SAEs"), *((str(of.one.number), of.one.title) for of in cards)]
        filters.append(Filter("place", "SAE", options, first=True))
    every = [c for of in cards for chosen in of.chosen.values() for c in chosen]
    winners = {**{method: f"chosen: {METHODS[method]}" for method in METHODS}, TIE: "chosen: a tie"}
    there = [(won, said) for won, said in winners.items() if any(c.won == won for c in every)]
    if len(there) > 1:
        filters.append(Filter("method", "Chosen method", [("", "chosen by any method"), *there]))
    if len({c.passed for c in every}) > 1:
        filters.append(Filter("passed", "Passed", [("", "passed or not"), ("yes", "passed"), ("no", "did not pass")]))
    clusters = [(f"{of.one.number}-{n}", topic) for of in cards for n, topic in sorted(of.topics.items())]
    if clusters:
        filters.append(Filter("cluster", "Cluster", [("", "all clusters"), *clusters]))
    return filters


def _orders(cards: Sequence[TextCards]) -> list[tuple[str, str]]:
    """Those by scores only where there are some."""
    is_scored = any(of.chosen for of in cards)
    return [(field, word) for field, word in ORDERS if is_scored or field not in SCORED]


def _within(cards: Sequence[TextCards]) -> Within:
    """A search may look at what one way says; only where all cards have the same ways is a number one way."""
    options = [("words", "in all texts")]
    if any(of.chosen for of in cards):
        options.append(("chosen", "in the chosen text"))
    first: Ways = cards[0].ways
    if all(of.ways.ways == first.ways for of in cards):
        options += [(f"by{n}", f"by {first.name(way)}") for n, way in enumerate(first.ways)]
    return Within("Said", options)


# ---------------------------------------------------------------- features without a card


def _index(data: ReportData, found: Sequence[Texts], on_page: Mapping[int, set[int]]) -> Html | None:
    """One text of every feature without a card, for the page's script; None where all have one."""
    rows: list[list[Any]] = []
    texts: dict[str, int] = {}
    left, missing = INDEX_BYTES, 0
    for of in found:
        cardless = set(of.features) - on_page.get(of.one.number, set())
        for feature, text, *told in _one_each(data, of) if cardless else ():
            if feature not in cardless:
                continue
            left -= ROW_BYTES + (0 if text in texts else len(text.encode()) + 3)
            if left < 0:
                missing += 1
                continue
            rows.append([of.one.number, feature, texts.setdefault(text, len(texts)), *told])
    if not rows:
        return None
    titles = {of.one.number: of.one.title for of in found}
    return script_json({"titles": titles, "texts": list(texts), "rows": rows, "missing": missing}, id="cardless-texts")


def _one_each(data: ReportData, of: Texts) -> Iterator[tuple[Any, ...]]:
    """Feature, text, IoU, and what filters look at: method, passed, cluster; of several chosen texts the first."""
    clusters, _ = load_clusters(data, of.one)
    if not of.chosen:
        for feature, text in sorted(first_texts(data, of.one).items()):
            yield feature, text, None, None, None, clusters.get(feature)
        return
    by_feature: dict[int, list[Chosen]] = defaultdict(list)
    for c in of.chosen:
        by_feature[c.feature].append(c)
    for feature, chosen in by_feature.items():
        first = chosen[0]
        iou = None if first.iou is None else float(f"{first.iou:.3g}")
        passed = int(any(c.passed for c in chosen))
        yield feature, first.text, iou, first.won, passed, clusters.get(feature)


def _said(found: Sequence[Texts], shown: Sequence[tuple[Texts, list[int]]], amount: Amount) -> str:
    """What is on the page and what is not."""
    total, here = sum(len(texts.features) for texts in found), sum(len(features) for _, features in shown)
    words = [f"{some(total, 'explained feature')}, {'all' if here == total else count(here)} with a card."]
    if here < total:
        words.append("Half of the cards are those with the best IoU of a chosen text, the rest are by chance; the search also finds one text of each other feature.")  # fmt: skip
    votes = Counter(c.vote for texts in found for c in texts.chosen)
    if votes:
        words.append("A text is chosen among " + ", and among ".join(f"{say_vote(vote)} ({count(n)})" for vote, n in sorted(votes.items(), reverse=True)) + ".")  # fmt: skip
    words.append(f"At most {some(amount.images, 'image')} of each; maps finer than {MOST_GRID} by {MOST_GRID} are averaged to that. The histograms below are over all living features of the SAE, their heights as square roots.")  # fmt: skip
    return " ".join(words)
