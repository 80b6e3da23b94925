"""The world's own 3x5 letters, and words drawn with them at twice their size on a plate."""

from __future__ import annotations

import functools

import numpy as np

from miclip_core.world.scene import WORDS

# Five rows of three pixels per letter, top to bottom.
LETTERS = {
    "a": "010 101 111 101 101",
    "b": "110 101 110 101 110",
    "c": "011 100 100 100 011",
    "d": "110 101 101 101 110",
    "e": "111 100 110 100 111",
    "g": "011 100 101 101 011",
    "h": "101 101 111 101 101",
    "i": "111 010 010 010 111",
    "k": "101 101 110 101 101",
    "l": "100 100 100 100 111",
    "m": "101 111 111 101 101",
    "n": "111 101 101 101 101",
    "o": "010 101 101 101 010",
    "p": "110 101 110 100 100",
    "q": "010 101 101 110 011",
    "r": "110 101 110 101 101",
    "s": "011 100 010 001 110",
    "t": "111 010 010 010 010",
    "u": "101 101 101 101 111",
    "w": "101 101 111 111 101",
    "y": "101 101 010 010 010",
}
_SCALE = 2
_MARGIN = 1


@functools.cache
def word_mask(word: int) -> np.ndarray:
    """True where WORDS[word] has ink, on a plate of (12, at most 64) pixels that is one pixel larger on each side."""
    columns = [np.zeros((5, 0), bool)]
    for letter in WORDS[word]:
        glyph = np.array([[bit == "1" for bit in row] for row in LETTERS[letter].split()])
        columns += [glyph, np.zeros((5, 1), bool)]
    small = np.concatenate(columns[:-1], 1)
    return np.pad(small.repeat(_SCALE, 0).repeat(_SCALE, 1), _MARGIN)
