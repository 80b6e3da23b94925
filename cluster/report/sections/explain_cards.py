"""The card of one explained feature: the texts of all ways side by side with their scores, its images, and how common and long it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from cluster.report.data import ReportData
from cluster.report.frame import px
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.sections.explained import Explained
from cluster.report.sections.texts import Chosen, Text
from cluster.report.sections.unit_images import stored_map
from cluster.report.sections.ways import Ways, is_control, say_method
from cluster.report.tiles import Views, make_tile

SHORT = {"iou": "IoU", "clip": "CLIP", "synthetic": "synthetic", "auroc": "AUROC"}
WHY = {
    "empty": "no text: empty", "refused": "no text: refused", "no_images": "no text: it is active on no image",
    "not_finite": "no text: numbers overflowed, as where alpha is too large",
}  # fmt: skip
MOST_CONTROLS = 2
"""Texts of controls that a card shows unasked."""
BINS, BIN_WIDTH, HIGH = 30, 6, 26


class Strip(NamedTuple):
    """A figure of all living features of an SAE as a histogram that cards point into.

    values: ascending. log: bins are of its logarithm.
    """

    id: str
    word: str
    values: np.ndarray
    log: bool

    @property
    def ends(self) -> tuple[float, float]:
        """Of the axis, in the scale of the bins."""
        low, high = self.scaled(self.values[[0, -1]]).tolist()
        return low, high

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """As the axis has them."""
        return np.log10(values) if self.log else np.asarray(values, float)


@dataclass(frozen=True)
class TextCards:
    """What the cards of one SAE as one model explains it are made of."""

    one: Explained
    ways: Ways
    texts: Mapping[int, Sequence[Text]]
    chosen: Mapping[int, Sequence[Chosen]]
    images: Mapping[int, Sequence[dict[str, Any]]]
    concepts: Mapping[int, dict[str, Any]]
    clusters: Mapping[int, int]
    topics: Mapping[int, str]
    figures: Mapping[int, dict[str, Any]]
    strips: Sequence[Strip]

    @cached_property
    def several_samples(self) -> bool:
        """Whether a way has more than one text about a feature."""
        return len({text.sequence for of in self.texts.values() for text in of}) > 1

    @cached_property
    def several_votes(self) -> bool:
        """Whether a feature may have more than one chosen text."""
        return len({c.vote for of in self.chosen.values() for c in of}) > 1


class Look(NamedTuple):
    """What all cards of a page share; several: there are several SAEs, so that cards say which."""

    data: ReportData
    views: Views
    several: bool


def text_card_id(one: Explained, feature: int) -> str:
    """The anchor of a feature's card."""
    return f"x-{one.number}-{feature}"


def make_text_card(cards: TextCards, feature: int, look: Look) -> Html:
    """One feature."""
    one, texts, chosen = cards.one, cards.texts.get(feature, ()), cards.chosen.get(feature, ())
    ties = {c.vote for c in chosen if c.is_tie}
    topic = cards.topics.get(cards.clusters.get(feature, -1))
    passed = None if not chosen else any(c.passed for c in chosen)
    said = " ".join(dict.fromkeys(t.text for t in texts if t.text))
    by: dict[str, Any] = {}
    for text in texts:
        name = f"data_by{cards.ways.ways.index(text.way)}"
        by[name] = " ".join(filter(None, [by.get(name), (text.text or "").lower()]))
    head = tag(
        "header",
        tag("h3", tag("a", f"#{feature}", href=f"#{text_card_id(one, feature)}")),
        None if passed is None else tag("span", "passed" if passed else "did not pass", class_=f"state {'good' if passed else 'warm'}"),
        tag("span", topic, class_="state topic") if topic else None,
        _unscored(texts),
        tag("span", one.title, class_="which") if look.several else None,
    )  # fmt: skip
    ious = [c.iou for c in chosen if c.iou is not None]
    return tag(
        "article",
        head,
        tag("ul", (_says(text, cards, ties) for text in texts if not is_control(text.way)), class_="says texts"),
        _controls([text for text in texts if is_control(text.way)], cards),
        _concept(cards.concepts.get(feature)),
        _tiles(cards, feature, look),
        _strips(cards, feature),
        class_="card explained-card",
        id=text_card_id(one, feature),
        tabindex="-1",
        aria_label=f"Texts about feature {feature} of {one.title}",
        data_place=one.number,
        data_passed=None if passed is None else "yes" if passed else "no",
        data_method=" ".join(dict.fromkeys(c.won for c in chosen)) or None,
        data_cluster=f"{one.number}-{cards.clusters[feature]}" if feature in cards.clusters else None,
        data_words=" ".join(filter(None, [f"#{feature}", one.title, topic, said])).lower(),
        data_chosen=" ".join(c.text for c in chosen).lower() or None,
        data_number=feature,
        data_iou=f"{max(ious):.4g}" if ious else None,
        data_gain=_gain(texts),
        **_sorts(cards.figures.get(feature)),
        **by,
    )  # fmt: skip


def _unscored(texts: Sequence[Text]) -> Html | None:
    """Why a feature has no scores, if that is known."""
    if not any(text.is_validation for text in texts) or any(text.scores for text in texts):
        return None
    return tag(
        "span",
        "alphas were chosen on it",
        class_="state",
        title="features on which alphas were compared are not scored",
    )


def _sorts(row: dict[str, Any] | None) -> dict[str, str]:
    return {} if row is None else {"data_density": f"{row['density']:.4g}", "data_norm": f"{row['decoder_norm']:.4g}"}


def _gain(texts: Sequence[Text]) -> str | None:
    """By how much the IoU of steering is above the best of topk: the features that context hides from topk."""
    of = {m: [t.scores["iou"] for t in texts if t.way.method == m and not is_control(t.way) and t.scores.get("iou") is not None] for m in ("steering", "topk")}  # fmt: skip
    return f"{max(of['steering']) - max(of['topk']):.4g}" if of["steering"] and of["topk"] else None


def _says(text: Text, cards: TextCards, ties: Collection[str] = ()) -> Html:
    """One way's text with its scores; a star at the one that was chosen. ties: votes that drew it among equals."""
    label = cards.ways.label(text.way)
    sample = tag("span", f" sample {text.sequence + 1}", class_="remark") if cards.several_samples else None
    if text.text is None:
        body = tag("span", WHY.get(text.status, f"no text: {text.status}"), class_="none")
    else:
        star = _star(text.votes, cards.several_votes, ties)
        body = tag("span", tag("span", text.text, star, class_="text"), _scores(text.scores), _labels(text.labels))
    kind = " ".join(filter(None, ["chosen" if text.votes else "", "control" if is_control(text.way) else ""]))
    return tag("li", tag("span", label, sample), body, class_=kind or None)


def _controls(texts: Sequence[Text], cards: TextCards) -> Html | None:
    """Few as they are, many behind a fold."""
    if not texts:
        return None
    rows = tag("ul", (_says(text, cards) for text in texts), class_="says texts")
    if len(texts) <= MOST_CONTROLS:
        return rows
    return tag("details", tag("summary", f"{len(texts)} texts of controls"), rows, class_="controls")


def _star(votes: Sequence[str], several: bool, ties: Collection[str]) -> Html | None:
    """Of a chosen text; among which ways, where there were several votes, and whether others are as good."""
    if not votes:
        return None
    told = f"chosen: the best ranks over the measures, among {' and among '.join(say_vote(vote) for vote in votes)}"
    is_tie = any(vote in ties for vote in votes)
    told += "; a tie: others have the same mean rank, and it was drawn among them" if is_tie else ""
    words = [*(["tie"] if is_tie else []), *([f"among {', '.join(votes)}"] if several else [])]
    among = tag("span", f" {' '.join(words)}", class_="remark") if words else None
    return tag("span", " ★", among, title=told)


def say_vote(vote: str) -> str:
    """Top-k masks, Steering and Informed masks"""
    return "Steering" if vote == "none" else f"{say_method('topk', vote)}, Steering and {say_method('informed', vote)}"


def _scores(scores: Mapping[str, Any]) -> Html | None:
    shown = [
        tag("span", f"{word} ", tag("b", short_number(scores[name])))
        for name, word in SHORT.items()
        if scores.get(name) is not None
    ]
    if scores.get("named"):
        shown.append(tag("span", "✓ named", class_="named"))  # fmt: skip
    return tag("span", (join([" " if n else None, one]) for n, one in enumerate(shown)), class_="scores") if shown else None  # fmt: skip


def _labels(labels: Mapping[str, str]) -> Html | None:
    """abstraction: low-level visual feature, context: background"""
    return tag("span", ", ".join(f"{name}: {label}" for name, label in labels.items()), class_="labels") if labels else None  # fmt: skip


def _concept(row: dict[str, Any] | None) -> Html | None:
    if row is None:
        return None
    return tag("p", "By labels it tells ", tag("b", row["concept"]), f" best: AUROC {row['auroc']:.3f} ({row['level']}).", class_="near")  # fmt: skip


def _tiles(cards: TextCards, feature: int, look: Look) -> Html:
    images = cards.images.get(feature, ())
    if images:
        return tag("div", _pictured(cards.one, images, look), class_="tiles")
    why = (
        "it is active on no image." if cards.images else "the sae_features stage that was read has no top images here."
    )
    return tag("p", f"No pictures: {why}", class_="note")


def _pictured(one: Explained, images: Sequence[dict[str, Any]], look: Look) -> Iterable[Html]:
    largest = max((max(image["map"] or [0.0]) for image in images), default=0.0)
    for image in images:
        words = f"mean code {short_number(image['image_mean'])}, largest {short_number(image['value'])}  {look.data.pictures.words(image['image_id'])}"
        box = look.views.box(one.place.model, image["stage"], image["image_id"])
        heat = stored_map(image, largest or image["value"], box)
        yield make_tile(look.data, image["image_id"], f"Image {image['rank'] + 1}, {words}", words, heat)


# ---------------------------------------------------------------- how common and long it is


def make_strips(number: int, figures: Mapping[int, dict[str, Any]]) -> list[Strip]:
    """Of density and of the decoder row's length, over all living features; none of what is alike for all."""
    strips = []
    for name, word, log in (("density", "density", True), ("decoder_norm", "decoder norm", False)):
        values = np.sort(np.array([row[name] for row in figures.values()], dtype=float))
        values = values[np.isfinite(values) & ((values > 0) | (not log))]
        if len(values) and values[-1] - values[0] > 1e-4 * values[-1]:
            strips.append(Strip(f"strip-{number}-{name}", word, values, log))
    return strips


def draw_strips(strips: Sequence[Strip]) -> Html | None:
    """Their histograms, once for all cards."""
    shapes = [tag("symbol", _bars(strip), id=strip.id, viewBox=f"0 0 {BINS * BIN_WIDTH} {HIGH}", preserveAspectRatio="none") for strip in strips]  # fmt: skip
    return tag("svg", shapes, class_="symbols", aria_hidden="true") if shapes else None


def _bars(strip: Strip) -> Html:
    counts, _ = np.histogram(strip.scaled(strip.values), BINS, strip.ends)
    tall = np.sqrt(counts / counts.max()) * HIGH
    return join(
        tag("rect", x=i * BIN_WIDTH, y=px(HIGH - h), width=BIN_WIDTH - 1, height=px(h))
        for i, h in enumerate(tall.tolist())
        if h
    )


def _strips(cards: TextCards, feature: int) -> Html | None:
    row = cards.figures.get(feature)
    if row is None or not cards.strips:
        return None
    names = {"density": "density", "decoder norm": "decoder_norm"}
    return tag("div", (_marked(strip, float(row[names[strip.word]])) for strip in cards.strips), class_="strips")


def _marked(strip: Strip, value: float) -> Html:
    """The histogram with a line at this feature."""
    low, high = strip.ends
    at = float(np.clip((float(strip.scaled(np.array(value))) - low) / (high - low), 0, 1)) if value > 0 or not strip.log else 0.0  # fmt: skip
    share = float(np.searchsorted(strip.values, value)) / len(strip.values)
    shown = percent(value) if strip.word == "density" else short_number(value)
    told = f"{strip.word} {shown}, more than {percent(share)} of features"
    wide = BINS * BIN_WIDTH
    picture = tag(
        "svg", tag("use", href=f"#{strip.id}", width=wide, height=HIGH), tag("path", d=f"M{px(at * wide)} 0V{HIGH}"),
        viewBox=f"0 0 {wide} {HIGH}", preserveAspectRatio="none", role="img", aria_label=told,
    )  # fmt: skip
    return tag("figure", picture, tag("figcaption", f"{strip.word} ", tag("b", shown)), title=told)
