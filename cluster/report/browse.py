"""Cards that a reader searches, filters, orders and walks through with keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.report.colours import HEAT
from cluster.report.html import Html, tag

ASSETS = ("browse.css", "browse.js")


class Filter(NamedTuple):
    """A choice that keeps the cards whose `data-<field>` is the chosen value, or has it among its words.

    options: (value, word); the empty value keeps all. first: the second option is chosen when the page opens.
    """

    field: str
    label: str
    options: Sequence[tuple[str, str]]
    first: bool = False


class Within(NamedTuple):
    """A choice of what the search looks at: options are (name of a `data-` field, word)."""

    label: str
    options: Sequence[tuple[str, str]]


def make_browser(
    what: str,
    cards: Sequence[Html],
    filters: Sequence[Filter],
    orders: Sequence[tuple[str, str]],
    within: Within | None = None,
    extra: Any = None,
    above: Any = None,
    rest: str = "",
) -> Html:
    """A bar of controls over cards.

    what: said in the field, such as "Search features". Each card is an article of class `card` whose `data-words` are
    searched. orders: (`data-` field, word), largest first; a field that ends in "+" goes from the smallest. extra: stands
    in the bar. above: stands between the bar and the cards. rest: says where those without a card are.

    A page that opens shows the first few cards; buttons before and behind them show more.
    """
    bar = tag(
        "div",
        tag("input", type="search", class_="find", placeholder=f"{what}  /", aria_label=what),
        _select(within.label, within.options, data_within=True) if within else None,
        (_select(f.label, f.options, data_filter=f.field, data_first=f.first) for f in filters),
        _select("Order", [(field, f"by {word}") for field, word in orders], class_="order"),
        extra,
        tag("span", class_="found", role="status"),
        class_="bar",
    )
    none = tag("p", f"No card fits. {rest}".strip(), class_="none no-cards", hidden=True)
    return tag("div", bar, above, _more(), tag("div", cards, class_="cards"), _more(), none, class_="browser")


def overlay_button() -> Html:
    """Turns all maps over pictures on and off."""
    return tag("button", "Overlay", type="button", class_="overlay", aria_pressed="true", title="Overlay on or off (o)")


def heat_key(most: str, title: str) -> Html:
    """What the colours of an overlay mean, from 0 to `most`."""
    steps = (tag("rect", x=6 * i, width=6, height=10, fill=colour) for i, colour in enumerate(HEAT))
    picture = tag("svg", steps, width=6 * len(HEAT), height=10, aria_hidden="true")
    return tag("span", "0 ", picture, f" {most}", class_="heat", title=title)


def _more() -> Html:
    """A button that the script names and shows where cards are left."""
    return tag("button", type="button", class_="more-cards", hidden=True)


def _select(label: str, options: Sequence[tuple[str, str]], **attributes: Any) -> Html:
    return tag("select", (tag("option", word, value=value) for value, word in options), aria_label=label, **attributes)
