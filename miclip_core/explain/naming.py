"""Whether a text has the name of a thing: of the demo world's values by what it says there, of others by their words."""

from __future__ import annotations

import re

from miclip_core.world.reading import names_value
from miclip_core.world.scene import CONCEPTS

_WORD = re.compile(r"[^\W_]+")


def names_world_value(text: str, category: str, value: str) -> bool:
    """Whether a word of the text is this value of a category of the demo world (see `names_value`)."""
    return category in CONCEPTS and names_value(text, category, value)


def names_words(text: str, value: str) -> bool:
    """Whether the words of a name stand in the text side by side, in any case; the last one may have a plural s.

    Underscores are blanks, as in `fire_truck`. A name without a word is in no text.
    """
    wanted, words = (_WORD.findall(t.lower()) for t in (value, text))
    if not wanted:
        return False
    *first, last = wanted
    for start in range(len(words) - len(first)):
        if words[start : start + len(first)] == first and words[start + len(first)] in (last, f"{last}s", f"{last}es"):
            return True
    return False
