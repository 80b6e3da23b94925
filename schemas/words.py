"""Words for messages about what was written: the nearest name that there is, and lists that stay short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN = 24


def nearest(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, to end a message with; nothing if no known name is like the word."""
    near = difflib.get_close_matches(str(word), list(known), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def any_of(words: Sequence[object]) -> str:
    """`a, b or c`; of very many the first, and how many more."""
    shown = [str(word) for word in words[:_SHOWN]]
    if more := len(words) - len(shown):
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
