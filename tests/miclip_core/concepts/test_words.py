"""Common words, against the ranked list that they come from."""

from __future__ import annotations

import sys

import pytest
from wordfreq import top_n_list, zipf_frequency

from miclip_core.concepts.names import make_concepts
from miclip_core.concepts.words import common_words
from schemas.errors import BadSpec, MissingPackage

LETTERS = set("abcdefghijklmnopqrstuvwxyz")


def test_words_are_the_first_of_the_ranked_list_that_are_words():
    kept = [word for word in top_n_list("en", 40_000) if len(word) > 2 and set(word) <= LETTERS]
    for n in (1, 3_000, 20_000):
        assert common_words(n) == tuple(kept[:n])
    assert common_words(3) == ("the", "and", "for")


def test_no_word_is_there_twice_and_none_is_more_common_than_one_before_it():
    words = common_words(20_000)
    assert make_concepts(words).names == words
    ranks = [zipf_frequency(word, "en") for word in words[::500]]
    assert ranks == sorted(ranks, reverse=True)


def test_numbers_of_words_that_there_are_not():
    with pytest.raises(BadSpec, match="found 0 common words, expected at least 1"):
        common_words(0)
    with pytest.raises(BadSpec, match=r"there are only 28\d{4}; ask for no more"):
        common_words(10**6)


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(MissingPackage, match=r"pip install 'miclip\[words\]'"):
        common_words(5)
