"""The most common English words as names of concepts."""

from __future__ import annotations

from schemas.errors import BadSpec, MissingPackage

SHORTEST = 3
"""Letters; what is shorter is mostly no concept (of, to) and left out of the count."""


def common_words(n: int) -> tuple[str, ...]:
    """The n most common English words of at least three letters a to z, most common first, by the lists of wordfreq.

    Frequencies are pooled from subtitles, news, books, the web and more (Speer, wordfreq 3.1, 2022); that project is
    finished, so its lists stay as they are. Word lists of 3,000, 10,000 and 20,000 are usual as sets of concepts
    (Oikarinen and Weng 2023, CLIP-Dissect).

    Raises:
        MissingPackage: wordfreq is not installed.
        BadSpec: n is below 1 or above the number of words that there are.
    """
    try:
        from wordfreq import top_n_list
    except ImportError:
        raise MissingPackage(
            "common words need wordfreq, which is not installed; pip install 'miclip[words]'"
        ) from None
    if n < 1:
        raise BadSpec(f"found {n} common words, expected at least 1")
    asked = 0
    words: tuple[str, ...] = ()
    while len(words) < n:
        ranked = top_n_list("en", max(2 * n, 2 * asked))
        if len(ranked) == asked:
            raise BadSpec(f"found {n} common words, but there are only {len(words)}; ask for no more")
        asked = len(ranked)
        words = tuple(word for word in ranked if _is_word(word))
    return words[:n]


def _is_word(text: str) -> bool:
    return len(text) >= SHORTEST and text.isascii() and text.isalpha() and text.islower()
