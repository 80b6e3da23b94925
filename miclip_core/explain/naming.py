"""Whether a text has the name of a thing, by its words; for values of the demo world see `world.reading.names_value`."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")


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
