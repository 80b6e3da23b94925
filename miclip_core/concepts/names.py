"""Concepts: their names, the sentences that stand for them in a text tower, and which images are labelled with them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.sae.features.selectivity import Category
from miclip_core.world.captions import sentences, value_claims
from miclip_core.world.scene import CONCEPTS, PLANTED, POSITIONS, WORDS
from schemas.errors import BadSpec

PLAIN = ("{}",)
"""The template that is the name alone."""
WORLD_CATEGORIES = {**PLANTED, "position": POSITIONS, "word": WORDS}


@dataclass(frozen=True)
class Concepts:
    """M texts to compare units with; concept m is names[m] wherever it is written down.

    phrases: what takes the place of `{}` in each template, one per name and mostly the name. White space around names,
    phrases and templates does not count. Names differ as they are written, so `Crane` and `crane` are two; a text
    tower that cannot tell two names apart gives them equal scores, of which the first is preferred.

    Raises:
        BadSpec: no name, an empty one, one that is there twice, not as many phrases, or a template without one `{}`.
    """

    names: tuple[str, ...]
    phrases: tuple[str, ...]
    templates: tuple[str, ...] = PLAIN

    def __post_init__(self) -> None:
        for field in ("names", "phrases", "templates"):
            object.__setattr__(self, field, tuple(text.strip() for text in getattr(self, field)))
        _check_names(self.names)
        if len(self.phrases) != len(self.names) or "" in self.phrases:
            raise BadSpec(
                f"found {len(self.phrases)} phrases, expected one that is not empty for each of {len(self)} names"
            )
        for template in self.templates or ("",):
            if template.count("{}") != 1:
                raise BadSpec(f"template {template!r}: expected {{}} exactly once, where the concept goes")

    def __len__(self) -> int:
        return len(self.names)


def make_concepts(names: Sequence[str], templates: Sequence[str] = PLAIN) -> Concepts:
    """Concepts whose phrases are their names: a list of one's own, the classes of a model, common words.

    Raises:
        BadSpec: as for Concepts.
    """
    return Concepts(tuple(names), tuple(names), tuple(templates))


def read_concepts(text: str, templates: Sequence[str] = PLAIN) -> Concepts:
    """Concepts from the text of a file with one name per line; concept m is on line m + 1, so no line may be empty.

    Raises:
        BadSpec: as for Concepts.
    """
    lines = [line.strip() for line in text.removeprefix("\ufeff").removesuffix("\n").split("\n")]
    _check_names(lines if any(lines) else (), "line")
    return make_concepts(lines, templates)


def world_concepts(categories: Sequence[str] = tuple(PLANTED)) -> Concepts:
    """The values of the demo world's categories, each with a phrase such as its captions have ("a red object").

    Names are the values; those of `word`, which are also shapes and colours, are `word=red`.

    Raises:
        BadSpec: no such category, or one named twice.
    """
    names: list[str] = []
    phrases: list[str] = []
    for category in categories:
        if category not in WORLD_CATEGORIES:
            near = difflib.get_close_matches(category, WORLD_CATEGORIES, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise BadSpec(
                f"found category {category!r}, expected one of {', '.join(WORLD_CATEGORIES)}, or several with commas{guess}"
            )
        names += [f"word={value}" if category == "word" else value for value in WORLD_CATEGORIES[category]]
        phrases += sentences(value_claims(category))
    return Concepts(tuple(names), tuple(phrases))


def value_places(categories: Sequence[Category], names: Sequence[str]) -> list[np.ndarray]:
    """Per category the place among `names` of each of its values, -1 for none: int64 [values + 1], the last for no value.

    So `places[category.classes]` are the concepts of images. A value belongs to the name `category=value`, else to the name
    that is written as it is, white space around it aside.

    Raises:
        BadSpec: a name that is a value of several categories.
    """
    column = {name.strip(): m for m, name in enumerate(names)}
    owner: dict[int, str] = {}
    out = []
    for category in categories:
        of_value = np.full(len(category.values) + 1, -1)  # the last for slots not used, which hold -1
        for number, value in enumerate(category.values):
            m = column.get(f"{category.name}={value}", column.get(value.strip(), -1))
            if m >= 0 and owner.setdefault(m, category.name) != category.name:
                raise BadSpec(
                    f"concept {names[m]!r} is a value of {owner[m]} and of {category.name}; leave one of them out, "
                    f"or name it {category.name}={value}"
                )
            of_value[number] = m
        out.append(of_value)
    return out


def world_values(names: Sequence[str]) -> dict[str, int]:
    """Which values of the demo world belong to which of these names: `category=value` -> place of the name.

    As in `value_places`; but a word belongs to a name like `word=red` alone, because words are also shapes and colours.
    """
    named = {name.strip() for name in names}
    values = {**CONCEPTS, "word": tuple(word for word in WORDS if f"word={word}" in named)}
    categories = [Category(name, some, np.empty((0, 1), np.int64)) for name, some in values.items()]
    places = value_places(categories, names)
    return {
        full: int(m)
        for category, place in zip(categories, places)
        for full, m in zip(category.concepts, place)
        if m >= 0
    }


def _check_names(names: Sequence[str], place: str = "concept") -> None:
    """place: what numbers count, a concept of a list or a line of a file."""
    if not names:
        raise BadSpec("found no concept, expected at least one name")
    if empty := [str(number) for number, name in enumerate(names, 1) if not name]:
        one = len(empty) == 1
        which = f"{place} {empty[0]} of {len(names)} is" if one else f"{place}s {_some(empty)} of {len(names)} are"
        raise BadSpec(f"{which} empty; delete {'it' if one else 'them'}")
    numbers: dict[str, list[str]] = {}
    for number, name in enumerate(names, 1):
        numbers.setdefault(name, []).append(str(number))
    twice = [f"{name!r} ({place}s {', '.join(at)})" for name, at in numbers.items() if len(at) > 1]
    if twice:
        are = "is" if len(twice) == 1 else "are"
        raise BadSpec(f"{_some(twice)} {are} there more than once; keep one of each, or make them differ")


def _some(found: Sequence[str], most: int = 10) -> str:
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
