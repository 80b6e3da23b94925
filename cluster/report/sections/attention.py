"""Where the class token looks: the model's own attention beside that which only the features of a concept are left for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cluster.amounts import count
from cluster.report import browse, tiles
from cluster.report.browse import Filter, heat_key, make_browser, overlay_button
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.section import Section
from cluster.report.sections.places import Place, PlaceNames, place_of
from cluster.report.sections.settings import Settings
from cluster.report.sections.variants import Variants
from cluster.report.tables import Cell, Column, data_table
from cluster.report.tiles import Heat, Views, make_tile

MOST_CARDS, IMAGES = 140, 4
SHOWN = (("model", "the model's own"), ("features", "only its features"))


class Maps(NamedTuple):
    """The maps of one method at one place, of its first seed: concept -> image -> what a map shows -> its row."""

    place: Place
    variant: str
    title: str
    concepts: dict[str, dict[int, dict[str, dict[str, Any]]]]

    def rows(self, shows: str) -> list[dict[str, Any]]:
        """All rows of maps that show this."""
        return [by[shows] for images in self.concepts.values() for by in images.values() if shows in by]


def render(data: ReportData) -> Html:
    """What maps come to, and cards of concepts."""
    maps = load_maps(data)
    lead = tag("p", "The class token's attention over the patches of the next block: as the model has it, and with every patch rebuilt from "
               "the features alone that were found for a concept. Mass is the share of a map that lies on patches which show the concept; a map "
               "that knows nothing has the concept's area as its mass. A hit has its largest value on such a patch.")  # fmt: skip
    return join([lead, _table(maps, PlaceNames(data), Variants(data)), _cards(data, maps)])


SECTION = Section(
    "attention",
    "Attention maps",
    ("attention_maps",),
    render,
    (*browse.ASSETS, *tiles.ASSETS, "units.css", "attention.css"),
)


def load_maps(data: ReportData) -> list[Maps]:
    """Every method at every place; without the maps themselves, which cards read."""
    columns = ["stage", "model", "site", "sae", "variant", "seed", "image_id", "image_index", "concept", "shows", "layer",
               "units", "entropy", "truth_mass", "truth_area", "is_hit"]  # fmt: skip
    grouped: dict[Place, list[dict[str, Any]]] = defaultdict(list)
    for row in data.table("attention_maps", columns).to_pylist():
        grouped[place_of(row)].append(row)
    names, settings = PlaceNames(data), Settings(data)
    methods = [
        (of, *item) for of in sorted(grouped, key=lambda of: of.key) for item in settings.series(grouped[of]).items()
    ]
    found = []
    for of, variant, rows in methods:
        seed = min(row["seed"] or 0 for row in rows)
        concepts: dict[str, dict[int, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            if (row["seed"] or 0) == seed:
                concepts[row["concept"]][row["image_index"]].setdefault(row["shows"], row)
        found.append(Maps(of, variant, f"{variant} · {names.title(of)}", {c: concepts[c] for c in sorted(concepts)}))
    return found


def _table(maps: Sequence[Maps], names: PlaceNames, variants: Variants) -> Html:
    columns = [
        Column("units"), Column("found by"), Column("concepts", True), Column("images", True),
        Column("area", True, "share of patches that show the concept: what a map that knows nothing has as its mass"),
        *(Column(f"mass, {s}", True, f"share of the map ({words}) on patches that show the concept") for s, words in SHOWN),
        *(Column(f"hits, {s}", True, f"images whose largest value ({words}) is on such a patch") for s, words in SHOWN),
    ]  # fmt: skip
    rows = []
    for of in maps:
        images = sum(len(i) for i in of.concepts.values())
        figures = [_mean(of.rows("features"), "truth_area")]
        figures += [_mean(of.rows(shows), column) for column in ("truth_mass", "is_hit") for shows, _ in SHOWN]
        rows.append([names.title(of.place), Cell(variants.label(of.variant), of.variant), len(of.concepts), Cell(count(images), images),
                     *(Cell(percent(f), f) for f in figures)])  # fmt: skip
    return data_table("Attention maps", columns, rows, "SELECT * FROM attention_maps has all.")


def _mean(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    """Over images where it is known."""
    known = [float(row[column]) for row in rows if row[column] is not None]
    return float(np.mean(known)) if known else None


def _cards(data: ReportData, maps: Sequence[Maps]) -> Html:
    each = max(MOST_CARDS // max(len(maps), 1), 1)
    shown = [(number, of, _spread(list(of.concepts), each)) for number, of in enumerate(maps[:MOST_CARDS])]
    data.pictures.want(
        row["image_id"] for _, of, concepts in shown for c in concepts for by in _first(of, c) for row in by.values()
    )
    views = Views(data)
    cards = [_card(data, number, of, concept, views) for number, of, concepts in shown for concept in concepts]
    filters = [Filter("place", "Features", [("", "all"), *((str(n), of.title) for n, of, _ in shown)], first=True)]
    orders = (("gain", "mass over area"), ("number+", "concept"))
    note = f"At most {each} concepts of each, spread over all by name, and {IMAGES} images of each concept."
    extra = [overlay_button(), heat_key("the map's largest", "Each colour is a sixteenth of the map's largest value")]
    return join([tag("p", note), make_browser("Search concepts", cards, filters, orders, extra=extra)])


def _spread(concepts: list[str], most: int) -> list[str]:
    """Evenly over the list, both ends among them."""
    if len(concepts) <= most:
        return concepts
    return [concepts[i] for i in np.unique(np.linspace(0, len(concepts) - 1, most).round().astype(int))]


def _first(of: Maps, concept: str) -> list[dict[str, dict[str, Any]]]:
    images = of.concepts[concept]
    return [images[index] for index in sorted(images)[:IMAGES]]


def _card(data: ReportData, number: int, of: Maps, concept: str, views: Views) -> Html:
    """One concept: a row of pictures for each image, as it is, with the model's attention, and with the features'."""
    place_in = list(of.concepts).index(concept)
    rows, own = ([by[s] for by in of.concepts[concept].values() if s in by] for s in ("features", "model"))
    mass, own_mass, area = _mean(rows, "truth_mass"), _mean(own, "truth_mass"), _mean(rows, "truth_area")
    units = rows[0]["units"] if rows else []
    head = tag(
        "header",
        tag("h3", tag("a", concept, href=f"#m-{number}-{place_in}")),
        tag("span", f"mass {percent(mass)} (model {percent(own_mass)}) on area {percent(area)}", class_="state")
        if mass is not None
        else None,
        tag("span", f"{of.title}, features {', '.join(f'#{u}' for u in units) or 'none'}", class_="which"),
    )
    titles = tag("div", (tag("span", words) for words in ("image", *(words for _, words in SHOWN))), class_="titles")
    return tag(
        "article",
        head,
        titles,
        tag("div", _tiles(data, of, concept, views), class_="tiles"),
        class_="card attention",
        id=f"m-{number}-{place_in}",
        tabindex="-1",
        aria_label=f"{concept}: {of.title}",
        data_place=number,
        data_number=place_in,
        data_words=f"{concept} {of.title}".lower(),
        data_gain=f"{mass / area:.4g}" if mass is not None and area else None,
    )


def _tiles(data: ReportData, of: Maps, concept: str, views: Views) -> Iterable[Html]:
    images = _first(of, concept)
    ids = [row["image_id"] for by in images for row in by.values()]
    where = {"model": of.place.model, "site": of.place.site, "concept": concept, "image_id": ids}
    columns = ["stage", "sae", "seed", "image_index", "shows", "grid_h", "grid_w", "saliency"]
    stages = {row["stage"] for by in images for row in by.values()}
    found = {
        (row["image_index"], row["shows"]): row
        for row in data.table("attention_maps", columns, {**where, "stage": sorted(stages)}).to_pylist()
    }
    for by in images:
        any_row = next(iter(by.values()))
        words = data.pictures.words(any_row["image_id"])
        yield make_tile(data, any_row["image_id"], f"Image {words}", words)
        for shows, title in SHOWN:
            row = found.get((any_row["image_index"], shows))
            told = f"{title}\n{words}{_figures(by[shows])}" if shows in by else words
            yield make_tile(
                data, any_row["image_id"], f"Map over {told}", told, _heat(row, of, any_row["image_id"], views)
            )


def _heat(row: dict[str, Any] | None, of: Maps, image_id: str, views: Views) -> Heat | None:
    if row is None:
        return None
    box = views.box(of.place.model, row["stage"], image_id)
    return Heat(row["saliency"], row["grid_h"], row["grid_w"], max(row["saliency"], default=0.0), box)


def _figures(row: dict[str, Any]) -> str:
    """Entropy and, where the truth is known, mass."""
    text = f"\nentropy {short_number(row['entropy'])} nats"
    return text + (
        f", mass {percent(row['truth_mass'])} on {percent(row['truth_area'])} of patches"
        if row["truth_mass"] is not None
        else ""
    )
