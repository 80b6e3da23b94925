"""The card of one entry of a dictionary: the images that excite its units most, under the map of every unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.amounts import some
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.sections.entries import Entry, Exemplars, Key, Unit
from cluster.report.sections.unit_choice import Vote, vote
from cluster.report.sections.variants import Variants, is_truth
from cluster.report.sections.zoos import Member
from cluster.report.tiles import Heat, Strip, Views, make_sheet

TARGETS = {True: "same training targets", False: "different training targets", None: "training targets not known"}


class Look(NamedTuple):
    """What the cards of one zoo share. title: of the zoo, where there are several. tells_targets: entries differ in whether
    their models share training targets."""

    data: ReportData
    views: Views
    variants: Variants
    number: int
    title: str
    labels: Mapping[Member, str]
    names: Mapping[Key, Sequence[tuple[str, str]]]
    exemplars: Exemplars | None
    tells_targets: bool


def entry_id(zoo: int, entry: int) -> str:
    """The anchor of an entry's card."""
    return f"d-{zoo}-{entry}"


def make_entry_card(entry: Entry, look: Look) -> Html:
    """One entry."""
    agreed = vote(_names(entry, look))
    target = entry_id(look.number, entry.number)
    head = tag(
        "header",
        tag("h3", tag("a", f"Entry {entry.number}", href=f"#{target}")),
        _agreement(agreed),
        tag("span", some(entry.models, "model"), class_="state"),
        tag("span", TARGETS[entry.shares_training], class_="state") if look.tells_targets else None,
        tag("span", " · ".join(filter(None, [look.title, entry.origin, some(entry.size, "unit")])), class_="which"),
    )
    left = entry.size - len(entry.units)
    known = [unit.mean_r for unit in entry.units if unit.mean_r is not None]
    return tag(
        "article",
        head,
        _sheet(entry, look, agreed),
        tag("p", f"{some(left, 'unit')} less like the others not shown; the table rosetta_entries has all.", class_="note") if left > 0 else None,
        class_="card entry",
        id=target,
        tabindex="-1",
        aria_label=f"Entry {entry.number}: {some(entry.size, 'unit')} of {some(entry.models, 'model')}",
        data_place=look.number,
        data_origin=entry.origin,
        data_models=entry.models,
        data_number=entry.number,
        data_numbers=" ".join(dict.fromkeys(str(n) for n in (entry.number, *(unit.unit for unit in entry.units)))),
        data_r=f"{sum(known) / len(known):.4g}" if known else None,
        data_agreement=f"{agreed.votes / agreed.of + 0.001 * agreed.votes:.4g}" if agreed else None,
        data_words=_words(entry, look).lower(),
    )  # fmt: skip


def _names(entry: Entry, look: Look) -> list[str]:
    """What methods call its units; what the labels say where no method was asked."""
    names = [(method, name) for unit in entry.units for method, name in look.names.get(unit.key, ())]
    return [name for method, name in names if not is_truth(method)] or [name for _, name in names]


def _words(entry: Entry, look: Look) -> str:
    """What a search looks at."""
    of = [
        text
        for unit in entry.units
        for text in (look.labels[unit.member], unit.member.model, unit.site, str(unit.unit))
    ]
    names = [name for unit in entry.units for _, name in look.names.get(unit.key, ())]
    return " ".join(dict.fromkeys(["entry", str(entry.number), look.title, entry.origin, *of, *names]))


def _agreement(agreed: Vote | None) -> Html | None:
    """What most names of its units say, where they have names."""
    if agreed is None:
        return None
    kind = "good" if agreed.votes == agreed.of > 1 else "warm" if agreed.votes == 1 < agreed.of else ""
    if agreed.votes == 1:
        words = agreed.name if agreed.of == 1 else f"{agreed.of} names, none twice"
    else:
        words = f"{agreed.votes} of {agreed.of} names say {agreed.name}"
    return tag("span", words, class_=f"state {kind}".strip())


def _sheet(entry: Entry, look: Look, agreed: Vote | None) -> Html:
    """The images as they are, then under the map of each unit."""
    images = look.exemplars.images.get(entry.number, ()) if look.exemplars else ()
    heads = [_head(unit, look, agreed) for unit in entry.units]
    if not images:
        return tag("div", (tag("div", tag("div", head, class_="head"), class_="row") for head in heads), class_="sheet")
    ids = [image_id for image_id, _ in images]
    words = [look.data.pictures.words(image_id) for image_id in ids]
    first = Strip(Html("images"), f"Entry {entry.number}", (), [f"score {short_number(score)}" for _, score in images])
    strips = [_strip(entry, unit, head, ids, look) for unit, head in zip(entry.units, heads)]
    return make_sheet(look.data, ids, words, [first, *strips])


def _head(unit: Unit, look: Look, agreed: Vote | None) -> Html:
    """Whose it is, where, how alike to the others, and what methods call it."""
    star = (
        tag("span", " ★", title="representative: the largest mean r of the entry") if unit.is_representative else None
    )
    r = (
        tag("span", f"r {short_number(unit.mean_r)}", class_="score", title="mean r to the units that it is a buddy of")
        if unit.mean_r is not None
        else None
    )
    names = look.names.get(unit.key, ())
    return join(
        [
            tag("div", tag("b", look.labels[unit.member]), star),
            tag("div", tag("code", unit.site), f" #{unit.unit} ", r, class_="of"),
            tag("ul", (_name(method, name, look, agreed) for method, name in names), class_="called") if names else None,
        ]
    )  # fmt: skip


def _name(method: str, name: str, look: Look, agreed: Vote | None) -> Html:
    shared = agreed is not None and agreed.votes > 1 and name == agreed.name
    return tag("li", look.variants.label(method), " ", tag("b", name, class_="name shared" if shared else "name"))


def _strip(entry: Entry, unit: Unit, head: Html, ids: Sequence[str], look: Look) -> Strip:
    """The maps of one unit; what is below its mean is nothing."""
    assert look.exemplars is not None
    maps = look.exemplars.maps.get((entry.number, unit.key), {})
    peaks = look.exemplars.peaks.get((entry.number, unit.key), {})
    largest = max((float(values.max()) for values in maps.values()), default=0.0)
    heats: list[Heat | None] = []
    for n, image_id in enumerate(ids):
        box = look.views.box(unit.member.model, look.exemplars.stage, image_id)
        rows, columns = maps[n].shape if n in maps else (0, 0)
        heats.append(Heat(maps[n].ravel().tolist(), rows, columns, max(largest, 0.0), box) if n in maps else None)
    words = [
        f"largest {short_number(peaks[n])} standard deviations" if n in peaks else "no map" for n in range(len(ids))
    ]
    return Strip(head, f"{look.labels[unit.member]} {unit.site} #{unit.unit}", heats, words)
