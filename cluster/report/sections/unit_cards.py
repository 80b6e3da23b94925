"""The card of one unit: what each method calls it, side by side, how far they agree, and the images that drive it most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.report.data import ReportData
from cluster.report.html import Html, tag
from cluster.report.numbers import short_number
from cluster.report.sections.named import Method, Named
from cluster.report.sections.unit_choice import Vote, vote
from cluster.report.sections.unit_images import Grids, Images, heat_of
from cluster.report.sections.variants import Variants
from cluster.report.tiles import Views, make_tile


class UnitCards(NamedTuple):
    """What the cards of one place are made of.

    reasons: unit -> why it was chosen. names: (stage of a method, unit) -> names with scores. captions: unit -> what its
    patches were called. truths: unit -> what it stands for, where methods were judged.
    """

    named: Named
    reasons: dict[int, str]
    names: Mapping[tuple[str, int], Sequence[tuple[str, float]]]
    images: Images
    captions: Mapping[int, Sequence[str]]
    truths: Mapping[int, str]


class Look(NamedTuple):
    """What all cards of a page share."""

    data: ReportData
    views: Views
    grids: Grids
    variants: Variants


def unit_id(named: Named, unit: int) -> str:
    """The anchor of a unit's card."""
    return f"u-{named.number}-{unit}"


def make_unit_card(cards: UnitCards, unit: int, look: Look) -> Html:
    """One unit."""
    named = cards.named
    said = {method: cards.names.get((method.stage, unit), ()) for method in named.methods}
    agreed = vote([names[0][0] for names in said.values() if names])
    truth = next((names[0] for method, names in said.items() if method.is_truth and names), None)
    stands_for = truth[0] if truth else cards.truths.get(unit)
    reason = cards.reasons[unit]
    head = tag(
        "header",
        tag("h3", tag("a", f"#{unit}", href=f"#{unit_id(named, unit)}")),
        _agreement(agreed),
        tag("span", reason, class_="state"),
        tag("span", named.title, class_="which"),
    )
    # A search within one method looks at the first name alone: what the method calls the unit.
    by = {f"data_by{look.variants.colour(m.variant)}": names[0][0].lower() for m, names in said.items() if names}
    words = [f"#{unit}", named.title, reason, *(name for names in said.values() for name, _ in names[:1])]
    return tag(
        "article",
        head,
        tag("ul", (_says(m, names, agreed, stands_for, look) for m, names in said.items()), class_="says"),
        tag("p", "It stands for ", tag("b", stands_for), ".", class_="near") if stands_for and not truth else None,
        _tiles(cards, unit, look),
        _captions(cards.captions.get(unit, ())),
        class_="card unit",
        id=unit_id(named, unit),
        tabindex="-1",
        aria_label=f"Unit {unit} of {named.title}",
        data_place=named.number,
        data_reason=reason,
        data_words=" ".join(words).lower(),
        data_number=unit,
        data_agreement=f"{agreed.votes / agreed.of + 0.001 * agreed.votes:.4g}" if agreed and agreed.votes > 1 else None,
        data_truth=f"{truth[1]:.4g}" if truth else None,
        **by,
    )  # fmt: skip


def _agreement(agreed: Vote | None) -> Html:
    if agreed is None:
        return tag("span", "no name", class_="state")
    if agreed.of == 1:
        return tag("b", agreed.name)
    if agreed.votes == 1:
        return tag("span", f"{agreed.of} methods, {agreed.of} names", class_="state warm")
    kind = "good" if agreed.votes == agreed.of else ""
    return tag("span", f"{agreed.votes} of {agreed.of} say {agreed.name}", class_=f"state {kind}".strip())


def _says(
    method: Method, names: Sequence[tuple[str, float]], agreed: Vote | None, stands_for: str | None, look: Look
) -> Html:
    """One method's names; the first stands out where others say the same, and is ticked where it is the truth."""
    label = look.variants.label(method.variant)
    if not names:
        return tag("li", label, tag("span", "nothing", class_="none"))
    (name, score), *others = names
    shared = agreed is not None and agreed.votes > 1 and name == agreed.name
    right = name == stands_for and not method.is_truth
    first = tag("b", name, " ✓" if right else None, class_="name shared" if shared else "name", title="as the labels say" if right else None)  # fmt: skip
    more = tag("span", "then ", ", ".join(other for other, _ in others), class_="more") if others else None
    return tag("li", label, tag("span", first, " ", tag("span", ("AUROC " if method.is_truth else "") + short_number(score), class_="score"), more))  # fmt: skip


def _tiles(cards: UnitCards, unit: int, look: Look) -> Html:
    """The images that drive it most, or why there are none."""
    images = cards.images.get(unit)
    if images:
        return tag("div", _pictured(cards, images, look), class_="tiles")
    if cards.images:
        return tag("p", "No pictures: no image drives it.", class_="note")
    needed = "sae_features of this SAE" if cards.named.place.sae else "output top_images of extract at this site"
    return tag("p", f"No pictures: they need {needed}.", class_="note")


def _pictured(cards: UnitCards, images: Sequence[dict[str, Any]], look: Look) -> Iterable[Html]:
    for image in images:
        words = f"{short_number(image['value'])}  {look.data.pictures.words(image['image_id'])}"
        heat = heat_of(image, images[0]["value"], cards.named.place, look.grids, look.views)
        yield make_tile(look.data, image["image_id"], f"Image {image['rank'] + 1}, activation {words}", words, heat)


def _captions(captions: Sequence[str]) -> Html | None:
    if not captions:
        return None
    return tag("p", "Its patches were called: ", ", ".join(f"“{caption}”" for caption in captions), class_="near")
