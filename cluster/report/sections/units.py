"""Units and their names: search for a concept, see which units stand for it by which method, and what drives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from cluster.amounts import count, some
from cluster.report import browse, tiles
from cluster.report.browse import Filter, Within, heat_key, make_browser, overlay_button
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.section import Section
from cluster.report.sections.choice import UNIT_BYTES, Amount, fit
from cluster.report.sections.finder import FINDER_BYTES, Index, best_units, list_length, make_finder, plan_index
from cluster.report.sections.named import Found, Named, load_found, load_named, load_names
from cluster.report.sections.places import Place, PlaceNames, place_of
from cluster.report.sections.unit_cards import Look, UnitCards, make_unit_card
from cluster.report.sections.unit_choice import choose_units
from cluster.report.sections.unit_images import Grids, load_unit_images
from cluster.report.sections.variants import Variants, place
from cluster.report.tables import Cell, Column, data_table
from cluster.report.tiles import Views

ORDERS = (("agreement", "agreement"), ("truth", "AUROC of the truth"), ("number+", "number"))
PLANS = ((64, 8), (48, 8), (48, 4), (32, 4), (24, 4), (16, 4), (8, 4))
"""(units per place, images per unit), as the features have theirs."""
CARD_BYTES = 2600
"""Of a card without its images; as text."""
MOST_PICTURES = 400
"""Images that the finder shows beside those of cards."""
CAPTIONS = 3


def render(data: ReportData) -> Html:
    """What was described, then the search over concepts, and a card for each chosen unit of each place."""
    named = load_named(data)
    length = list_length(sum(n.lists for n in named))
    found = [load_found(data, n, length) for n in named]
    variants = Variants(data)
    grids = Grids(data)
    amount = fit(len(named), data.rows.get("images", 0), grids.largest, UNIT_BYTES - FINDER_BYTES, PLANS, CARD_BYTES)
    shown = [_load(data, n, f, amount) for n, f in zip(named[: amount.saes], found)]
    data.pictures.want(image["image_id"] for c in shown for images in c.images.values() for image in images)
    look = Look(data, Views(data), grids, variants)
    index = plan_index(found)
    cards = [make_unit_card(c, unit, look) for c in shown for unit in c.reasons]
    filters = [
        Filter("place", "Place", [("", "all places"), *((str(n.number), n.title) for n in named)]),
        Filter(
            "reason", "Why it was chosen", [("", "all reasons"), *((w, w) for w in ("located", "agreed", "random"))]
        ),
    ]
    within = Within(
        "Named by", [("words", "by any method"), *((f"by{variants.colour(v)}", f"by {v}") for v in variants.names)]
    )
    browser = make_browser(
        "Search concepts and units", cards, filters, ORDERS, within,
        extra=[overlay_button(), heat_key("the unit's largest", "Each colour is a sixteenth of the unit's largest value")],
        above=make_finder(index, named, found, variants, _pictures(data, index, named, found)),
        rest="Cards are a choice of units; the table unit_concepts has all.",
    )  # fmt: skip
    lead = tag("p", "What each method calls a unit, and which units it finds for a concept. Green names are shared by several methods; a tick "
               "says that a name is what the labels say (AUROC of the unit for every label).")  # fmt: skip
    note = tag("p", _choice(amount, len(named), index), class_="note")
    return join([lead, browser, note, tag("h3", "What was described"), _described(data)])


SECTION = Section(
    "units", "Units", ("unit_concepts",), render, (*browse.ASSETS, *tiles.ASSETS, "units.css", "units.js")
)


def _load(data: ReportData, named: Named, found: Found, amount: Amount) -> UnitCards:
    reasons = choose_units(named, found, amount.features)
    units = list(reasons)
    names = load_names(data, named, units)
    images = load_unit_images(data, named.place, units, amount.images)
    return UnitCards(named, reasons, names, images, _captions(data, named, units), _truths(data, named.place, units))


def _truths(data: ReportData, of: Place, units: Sequence[int]) -> dict[int, str]:
    """What units stand for where methods were judged: their class, or what labels say of them clearly."""
    if not units or not data.has("description_eval"):
        return {}
    where = {"model": of.model, "site": of.site, "unit": list(units)}
    rows = data.table("description_eval", ["sae", "unit", "truth"], where).to_pylist()
    return {row["unit"]: row["truth"] for row in rows if row["sae"] == of.sae}


def _captions(data: ReportData, named: Named, units: Sequence[int]) -> dict[int, list[str]]:
    """What the strongest patches of each unit were called, without repeats and without silence."""
    found: dict[int, list[str]] = defaultdict(list)
    if units and data.has("unit_captions"):
        where = {"stage": named.stages, "unit": list(units)}
        rows = data.table("unit_captions", ["stage", "unit", "rank", "text"], where).sort_by("rank").to_pylist()
        for row in rows:
            texts = found[row["unit"]]
            if row["text"] and row["text"] not in texts and len(texts) < CAPTIONS:
                texts.append(row["text"])
    return dict(found)


def _pictures(
    data: ReportData, index: Index, named: Sequence[Named], found: Sequence[Found]
) -> dict[tuple[int, int], int]:
    """The first image of the units at the heads of lists: any that cards show, and some more."""
    first: dict[tuple[int, int], str] = {}
    for n, f in zip(named, found, strict=True):
        for unit, images in load_unit_images(data, n.place, best_units(index, f), 1).items():
            first[n.number, unit] = images[0]["image_id"]
    fresh = [i for i in dict.fromkeys(first.values()) if data.pictures.number(i) is None]
    data.pictures.want(fresh[:MOST_PICTURES])
    numbers = {key: data.pictures.number(image_id) for key, image_id in first.items()}
    return {key: number for key, number in numbers.items() if number is not None}


def _choice(amount: Amount, places: int, index: Index) -> str:
    """Says on the page what it leaves out."""
    text = (
        f"Cards: at most {amount.features} units of each place, half of them found for a concept, a quarter those whose name "
        f"methods agree on, the rest by chance; {amount.images} images of each. Of a method with several seeds or settings the first is shown."
    )
    if amount.saes < places:
        text += f" Of {places} places the first {amount.saes} have cards."
    text += f" The search knows the best {'unit' if index.length == 1 else f'{index.length} units'} of every list."
    if index.left_out:
        text += f" It leaves out the {some(index.left_out, 'concept')} that the fewest methods found."
    return text + " The table unit_concepts has all."


def _described(data: ReportData) -> Html:
    """What each method was asked, and of how much it knows something."""
    variants, names = Variants(data), PlaceNames(data)
    rows = sorted(
        data.table("descriptions").to_pylist(),
        key=lambda row: (
            place_of(row).key,
            place(row["variant"]),
            row["seed"] or 0,
        ),
    )
    seeds = any(row["seed"] for row in rows)
    detectors = _detectors(data)
    columns = [
        Column("units"), Column("method"), *([Column("seed", True)] if seeds else []), Column("of", True, "units of the site or SAE"),
        Column("named", True, "units with at least one concept"), Column("dead", True, "0 on all images, or without a direction"),
        Column("concepts", True, "concepts to choose from"), Column("found", True, "concepts with at least one unit"),
        *([Column("detectors", True, "units with IoU above 0.04 for some concept")] if detectors else []),
        Column("images", True, "images that units were seen on"),
    ]  # fmt: skip
    table = [
        [names.title(place_of(row)), variants.label(row["variant"]),
         *([Cell("–" if row["seed"] is None else row["seed"], row["seed"])] if seeds else []),
         *(_amount(row[name]) for name in ("units", "units_described", "units_dead", "concepts", "concepts_located")),
         *([_amount(detectors.get(row["stage"]))] if detectors else []), _amount(row["images"])]
        for row in rows
    ]  # fmt: skip
    return data_table("What was described", columns, table, "SELECT * FROM descriptions has all.")


def _detectors(data: ReportData) -> dict[str, int]:
    """Stage -> units that overlap some concept enough, where overlaps were measured."""
    if not data.has("unit_iou"):
        return {}
    rows = data.table("unit_iou", ["stage", "unit"], {"is_detector": [True]})
    counted = rows.group_by("stage").aggregate([("unit", "count_distinct")]).to_pylist()
    stages = data.table("unit_iou", ["stage"])["stage"].unique().to_pylist()
    return {**dict.fromkeys(stages, 0), **{row["stage"]: row["unit_count_distinct"] for row in counted}}


def _amount(value: int | None) -> Cell:
    return Cell("–") if value is None else Cell(count(value), value)
