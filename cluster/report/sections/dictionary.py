"""The dictionary of a zoo: units that several models share, each with the images that excite all of them."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.amounts import some
from cluster.report import browse, tiles
from cluster.report.browse import Filter, heat_key, make_browser, overlay_button
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.section import Section
from cluster.report.sections.entries import (
    DICTIONARY_BYTES,
    MOST_GRID,
    Entry,
    Exemplars,
    fitting,
    load_entries,
    load_exemplars,
    load_size,
    load_unit_names,
)
from cluster.report.sections.entry_cards import Look, make_entry_card
from cluster.report.sections.variants import Variants
from cluster.report.sections.zoos import MemberNames, Zoo, load_graphs
from cluster.report.tiles import Views

ORDERS = (("number+", "number"), ("models", "models"), ("r", "mean r"), ("agreement", "agreement of names"))


def render(data: ReportData) -> Html:
    """Controls, then a card for each entry."""
    zoos, names = load_graphs(data), MemberNames(data)
    found = [(zoo, load_entries(data, zoo)) for zoo in zoos]
    found = [(zoo, entries) for zoo, entries in found if entries]
    if not found:
        return tag(
            "p", "No units of several models are buddies of each other, so that the dictionary is empty.", class_="none"
        )
    size = load_size(data)
    shown = [(zoo, entries[: fitting(entries, size, DICTIONARY_BYTES // len(found))]) for zoo, entries in found]
    exemplars = [load_exemplars(data, zoo, entries) for zoo, entries in shown]
    data.pictures.want(image_id for of in exemplars if of for images in of.images.values() for image_id, _ in images)
    views, variants, several = Views(data), Variants(data), len(shown) > 1
    tells_targets = len({entry.shares_training for _, entries in found for entry in entries}) > 1
    looks = [
        Look(data, views, variants, n, zoo.title if several else "", names.of(zoo.members),
             load_unit_names(data, [unit for entry in entries for unit in entry.units]), of, tells_targets)
        for n, ((zoo, entries), of) in enumerate(zip(shown, exemplars))
    ]  # fmt: skip
    cards = [make_entry_card(entry, look) for (_, entries), look in zip(shown, looks) for entry in entries]
    lead = tag("p", "Every entry is a set of units of several models that respond to the same places in the same images. ★ marks the unit "
               "that is most like the others. Maps are in standard deviations of each unit above its mean; nothing says what an entry is, but "
               "methods that describe units may have names for them.")  # fmt: skip
    browser = make_browser(
        "Search names, models and units", cards, _filters(shown), ORDERS,
        extra=[overlay_button(), heat_key("the unit's largest", "Each colour is a sixteenth of the largest value of the unit on these images")],
        rest="The table rosetta_entries has all entries.",
    )  # fmt: skip
    return join([lead, tag("p", _words(found, shown, exemplars), class_="note"), browser])


SECTION = Section(
    "dictionary",
    "Dictionary",
    ("rosetta_entries",),
    render,
    (*browse.ASSETS, *tiles.ASSETS, "units.css", "entries.css"),
)


def _filters(shown: Sequence[tuple[Zoo, Sequence[Entry]]]) -> list[Filter]:
    models = sorted({entry.models for _, entries in shown for entry in entries}, reverse=True)
    origins = sorted({entry.origin for _, entries in shown for entry in entries})
    filters = [
        Filter("models", "Models in it", [("", "any number of models"), *((str(n), some(n, "model")) for n in models)])
    ]
    if len(shown) > 1:
        filters.append(
            Filter("place", "Zoo", [("", "all zoos"), *((str(n), zoo.title) for n, (zoo, _) in enumerate(shown))])
        )
    if len(origins) > 1:
        filters.append(Filter("origin", "Made from", [("", "cliques and clusters"), *((o, o) for o in origins)]))
    return filters


def _words(
    found: Sequence[tuple[Zoo, Sequence[Entry]]],
    shown: Sequence[tuple[Zoo, Sequence[Entry]]],
    exemplars: Sequence[Exemplars | None],
) -> str:
    """What is left out, what is not there yet, and who agrees for a reason."""
    total, here = (sum(len(entries) for _, entries in of) for of in (found, shown))
    text = (
        [f"Of {some(total, 'entry').replace('entrys', 'entries')} the first {here:,} are on this page."]
        if here < total
        else []
    )
    if any(of is None for of in exemplars):
        text.append("Entries without pictures have none yet: they come from the stage's output dictionary.")
    else:
        text.append(
            f"Maps finer than {MOST_GRID} by {MOST_GRID} are averaged to that here; the table rosetta_exemplars has them whole."
        )
    shared = [entry.shares_training for _, entries in shown for entry in entries]
    if any(shared):
        text.append(
            f"{'All entries' if all(shared) else 'Some entries'} are of models that share training targets; such models agree more than independent ones would."
        )
    return " ".join(text)
