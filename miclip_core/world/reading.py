"""What a free text says of the demo world: which objects with which values, which background, which word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from miclip_core.world.captions import Claims, nothing
from miclip_core.world.scene import CONCEPTS, MAX_OBJECTS, OBJECT_FIELDS, POSITIONS, SHAPES, WORDS

_TOKEN = re.compile(r"[^\W\d_]+|[.,;:!?]")
_ARTICLES, _JOINTS = frozenset(("a", "an")), frozenset(("and", ".", ",", ";", ":", "!", "?"))
_HEADS = frozenset(("object", "objects"))
_QUOTING = frozenset(("says", "word"))


@dataclass(frozen=True)
class Reading:
    """What one text says. objects: per noun phrase category of OBJECT_FIELDS -> value, never empty, in the text's order.

    background, word: the first one named, else None. named: every (category, value) that the text names anywhere, also
    where the world has no such thing ("a red background" names red and no object).
    """

    objects: tuple[Mapping[str, str], ...]
    background: str | None
    word: str | None
    named: frozenset[tuple[str, str]]

    def claims(self) -> Claims:
        """The same as one claim; of more objects than an image holds, the first ones."""
        claims = nothing(1)
        for slot, phrase in enumerate(self.objects[:MAX_OBJECTS]):
            for category, value in phrase.items():
                claims.objects[0, slot, OBJECT_FIELDS.index(category)] = _number(category, value)
        if self.background is not None:
            claims.background[0] = _number("background", self.background)
        if self.word is not None:
            claims.word[0] = _number("word", self.word)
        return claims


def read(text: str) -> Reading:
    """What `text` says in the words of the world's captions (see `captions.sentences`); all other words are passed over.

    A phrase begins at "a" or "an", at "and" or a comma after its noun, and where a category gets a second value; so "red
    red red" is one red object and "red circle blue square" are two. A value of BACKGROUNDS is a background if the word
    "background" follows or its phrase says nothing of an object; "says" and "word" quote the word after them. Case,
    plurals of shapes and the spelling "gray" do not matter.
    """
    reader = _Reader()
    for token in _tokens(text):
        reader.take(token)
    return reader.reading()


def names_value(text: str, category: str, value: str) -> bool:
    """Whether a word of `text` is this value of a category of CONCEPTS; a quoted word is one of `word` and of no other.

    No text names a watermark, because no caption does.
    """
    return (category, value) in read(text).named


def _number(category: str, value: str) -> int:
    return CONCEPTS[category].index(value)


def _tokens(text: str) -> Iterator[str]:
    """Words in lower case and stops; the two words of a position are one token."""
    found = _TOKEN.findall(text.lower())
    at = 0
    while at < len(found):
        pair = " ".join(found[at : at + 2])
        yield pair if pair in POSITIONS else found[at]
        at += 2 if pair in POSITIONS else 1


def _meanings() -> dict[str, tuple[str, str]]:
    """Token -> (category, value); the names of values differ between all categories but `word`."""
    meanings = {value: (name, value) for name in (*OBJECT_FIELDS, "background") for value in CONCEPTS[name]}
    meanings |= {f"{shape}{'es' if shape.endswith('s') else 's'}": ("shape", shape) for shape in SHAPES}
    return meanings | {"gray": ("background", "grey")}


_MEANINGS = _meanings()


class _Reader:
    """The phrases of a text so far; the last one is open."""

    def __init__(self) -> None:
        self._phrases: list[dict[str, str]] = [{}]
        self._has_noun = self._quotes = False
        self._background: str | None = None
        self._words: list[str] = []
        self._named: set[tuple[str, str]] = set()

    def take(self, token: str) -> None:
        quoted, self._quotes = self._quotes, token in _QUOTING
        if quoted and token in WORDS:
            self._words.append(token)
            self._named.add(("word", token))
        elif token in _ARTICLES or (token in _JOINTS and self._has_noun):
            self._open()
        elif token in _HEADS:
            self._has_noun = True
        elif token == "background":
            self._end_background()
        elif token in _MEANINGS:
            self._add(*_MEANINGS[token])

    def reading(self) -> Reading:
        objects = [{name: value for name, value in phrase.items() if name in OBJECT_FIELDS} for phrase in self._phrases]
        alone = [phrase["background"] for phrase in self._phrases if set(phrase) == {"background"}]
        return Reading(
            tuple(phrase for phrase in objects if phrase),
            self._background or next(iter(alone), None),
            next(iter(self._words), None),
            frozenset(self._named),
        )

    def _open(self) -> None:
        self._phrases.append({})
        self._has_noun = False

    def _add(self, category: str, value: str) -> None:
        self._named.add((category, value))
        if self._phrases[-1].setdefault(category, value) != value:
            self._open()
            self._phrases[-1][category] = value
        self._has_noun |= category == "shape"

    def _end_background(self) -> None:
        """The open phrase was about the background, or its last words were if it has a noun of its own."""
        value = self._phrases[-1].pop("background", None)
        self._background = self._background or value
        if not self._has_noun:
            self._phrases.pop()
        self._open()
