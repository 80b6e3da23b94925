"""Images that a generator was led back to: what it draws from the latents that were found, for images and after edits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cluster.amounts import count, some
from cluster.report import browse, tiles
from cluster.report.browse import Filter, make_browser
from cluster.report.charts import Line, line_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.section import Section
from cluster.report.sections.settings import Settings
from cluster.report.sections.zoos import short_models
from cluster.report.tables import Cell, Column, data_table
from cluster.report.tiles import make_tile

MOST_CARDS, MOST_STARTS = 48, 4
PICTURES_BYTES = 4_000_000
"""What the pictures that were drawn may take on a page."""
INVERSION = "inversion"
FIGURES = ("psnr", "ssim", "act_sim_before", "act_sim_after")
CURVES = (
    ("act_sim", "Similarity of maps", "mean over pairs of units", False),
    ("pixel_loss", "Difference of pixels", "mean square", True),
)
Row = dict[str, Any]


class Sought(NamedTuple):
    """One series: of a generator, by one edit or by inversion, with one choice of settings; `rows` without their pictures."""

    generator: str
    title: str
    rows: list[Row]

    @property
    def best(self) -> list[Row]:
        """The best start of each image."""
        return [row for row in self.rows if row["is_best"]]


def render(data: ReportData) -> Html:
    """Figures of every series, and a card for each image."""
    series = load_series(data)
    lead = tag("p", "A generator has no way back from an image to what it was drawn from. An inversion starts from random latents and seeks one whose "
               "picture has the pixels of the image and, in the maps of the generator's units, what their buddies in other models see in it. An "
               "edit changes these maps and seeks a latent that has the changed ones. Similarity is that of the maps of paired units.")  # fmt: skip
    return join([lead, _table(series), _cards(data, series)])


SECTION = Section(
    "inversions", "Inversions", ("rosetta_inversions",), render, (*browse.ASSETS, *tiles.ASSETS, "entries.css")
)


def load_series(data: ReportData) -> list[Sought]:
    """Inversions first, then edits; of every generator."""
    columns = ["stage", "model", "image_id", "image_index", "start", "edit", "pairs", "steps", *FIGURES, "is_best"]
    by: dict[str, list[Row]] = defaultdict(list)
    for row in data.table("rosetta_inversions", columns).to_pylist():
        by[row["model"]].append({**row, "variant": row["edit"] or INVERSION})
    settings, names, found = Settings(data), short_models(by), []
    for model in sorted(by):
        series = settings.series(by[model])
        for title in sorted(series, key=lambda title: (not title.startswith(INVERSION), title)):
            found.append(
                Sought(names[model], title, sorted(series[title], key=lambda r: (r["image_index"], r["start"])))
            )
    return found


def _table(series: Sequence[Sought]) -> Html:
    columns = [
        Column("generator"), Column("sought"), Column("images", True), Column("starts", True, "latents that were sought for each image; the best counts"),
        Column("pairs", True, "pairs of units that guide; of an edit units of the generator"), Column("steps", True),
        Column("PSNR", True, "of what is drawn against the image, in dB; mean over images"), Column("SSIM", True, "mean over images"),
        Column("similarity before", True, "of the maps of paired units at the start; mean over images"), Column("after", True, "the same at the end"),
    ]  # fmt: skip
    rows = []
    for of in series:
        images, starts = len(of.best), max(row["start"] for row in of.rows) + 1
        numbers = [images, starts, max(row["pairs"] for row in of.rows), max(row["steps"] for row in of.rows)]
        rows.append(
            [of.generator, of.title, *(Cell(count(n), n) for n in numbers), *(_mean(of.best, name) for name in FIGURES)]
        )
    return data_table("Inversions and edits", columns, rows, "SELECT * FROM rosetta_inversions has all.")


def _mean(rows: Sequence[Row], name: str) -> Cell:
    known = [row[name] for row in rows if row[name] is not None]
    return Cell(short_number(float(np.mean(known))), float(np.mean(known))) if known else Cell("–")


# ---------------------------------------------------------------- cards


class Picture(NamedTuple):
    """What one latent draws: its row, and the name of its picture on the page."""

    row: Row
    name: str


def _cards(data: ReportData, series: Sequence[Sought]) -> Html:
    """Images in turn, as many as there is room for."""
    images: dict[tuple[str, int], list[tuple[Sought, list[Row]]]] = defaultdict(list)
    for of in series:
        mine: dict[int, list[Row]] = defaultdict(list)
        for row in of.rows:
            mine[row["image_index"]].append(row)
        for index, rows in mine.items():
            images[of.generator, index].append((of, rows))
    order = sorted(images, key=lambda key: (key[1], key[0]))[:MOST_CARDS]
    left = PICTURES_BYTES
    cards: list[Html] = []
    for key in order:
        shown = [(of, _load(data, rows)) for of, rows in images[key]]
        left -= sum(len(row["picture"]) for _, rows in shown for row in rows) * 4 // 3
        if left < 0 and cards:
            break
        cards.append(_card(data, key, shown))
    note = f"{some(len(cards), 'image')} of {len(images):,}; of an inversion the best start is shown large, at most {MOST_STARTS} in all."
    generators = sorted({of.generator for of in series})
    filters = (
        [Filter("place", "Generator", [("", "all generators"), *((g, g) for g in generators)])]
        if len(generators) > 1
        else []
    )
    orders = (("number+", "number"), ("psnr", "PSNR"), ("after", "similarity of maps"))
    rest = "The table rosetta_inversions has all."
    return join([tag("p", note, class_="note"), make_browser("Search images", cards, filters, orders, rest=rest)])


def _load(data: ReportData, rows: Sequence[Row]) -> list[Row]:
    """The best start first, with pictures and curves."""
    columns = [
        "stage",
        "image_index",
        "start",
        *FIGURES,
        "is_best",
        "image_id",
        "picture",
        "steps",
        *(name for name, *_ in CURVES),
    ]
    where = {"stage": sorted({row["stage"] for row in rows}), "image_index": [rows[0]["image_index"]]}
    found = data.table("rosetta_inversions", columns, where).to_pylist()
    return sorted(found, key=lambda row: (not row["is_best"], row["start"]))[:MOST_STARTS]


def _card(data: ReportData, key: tuple[str, int], shown: Sequence[tuple[Sought, Sequence[Row]]]) -> Html:
    """One image and everything that was sought for it."""
    generator, index = key
    first = shown[0][1][0]
    data.pictures.want([first["image_id"]])
    words = data.pictures.words(first["image_id"])
    target = f"i-{generator}-{index}".replace(" ", "-")
    image = _figure(make_tile(data, first["image_id"], f"Image {words}", words), "image", "")
    drawn = [image, *(picture for of, rows in shown for picture in _drawn(data, of, rows))]
    searched = " ".join([generator, words, *(of.title for of, _ in shown)])
    return tag(
        "article",
        tag("header", tag("h3", tag("a", f"Image {index}", href=f"#{target}")), tag("span", f"{words} · {generator}", class_="which")),
        tag("div", drawn, class_="drawn"),
        tag("div", (_chart(curve, shown) for curve in CURVES), class_="curves"),
        class_="card inversion",
        id=target,
        tabindex="-1",
        aria_label=f"Image {index}: {words}",
        data_place=generator,
        data_number=index,
        data_psnr=_sortable(first["psnr"]),
        data_after=_sortable(first["act_sim_after"]),
        data_words=searched.lower(),
    )  # fmt: skip


def _sortable(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _drawn(data: ReportData, of: Sought, rows: Sequence[Row]) -> Iterable[Html]:
    """What the latents of one series draw."""
    for row in rows:
        name = f"{row['stage']}-{row['image_index']}-{row['start']}"
        data.pictures.add(name, row["picture"])
        told = [f"PSNR {short_number(row['psnr'])} dB" if row["psnr"] is not None else "equal to the image",
                f"SSIM {short_number(row['ssim'])}", f"similarity {short_number(row['act_sim_before'])} → {short_number(row['act_sim_after'])}"]  # fmt: skip
        words = f"{of.title}, start {row['start']}\n" + "\n".join(told)
        tile = make_tile(data, name, f"What was drawn: {', '.join([of.title, *told])}", words)
        title = of.title if row["is_best"] else f"start {row['start']}"
        yield _figure(tile, title, told[0] if of.title.startswith(INVERSION) else told[2], best=row["is_best"])


def _figure(picture: Html, title: str, words: str, best: bool = True) -> Html:
    return tag("figure", picture, tag("figcaption", tag("b", title), " ", words), class_=None if best else "other")


def _chart(curve: tuple[str, str, str, bool], shown: Sequence[tuple[Sought, Sequence[Row]]]) -> Html:
    """How one measure went, for the best start of every series."""
    name, title, y_title, log = curve
    lines = [
        Line(of.title, np.arange(len(rows[0][name]), dtype=float), np.asarray(rows[0][name], dtype=float), n)
        for n, (of, rows) in enumerate(shown)
    ]  # fmt: skip
    return line_chart(title, "step", y_title, lines, log_y=log)
