"""Captions with a machine-readable claim, and which images each claim is true of."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from miclip_core.world.scene import (
    BACKGROUNDS,
    COLOURS,
    CONCEPTS,
    MAX_OBJECTS,
    OBJECT_FIELDS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scenes,
    chance,
    draw,
)

ANY = -1
_FIRST_FIELD = 4096  # of the random numbers, past those of the scene
_SHAPE, _COLOUR, _TEXTURE, _SIZE, _POSITION = range(len(OBJECT_FIELDS))


@dataclass(frozen=True)
class Claims:
    """What N captions say; ANY where a caption says nothing.

    `objects` (N, 4, 5): up to four objects that differ, each by its OBJECT_FIELDS. `background`, `word` (N,).
    """

    objects: np.ndarray
    background: np.ndarray
    word: np.ndarray

    def __len__(self) -> int:
        return len(self.background)


def nothing(n: int) -> Claims:
    """N claims that say nothing yet."""
    return Claims(np.full((n, MAX_OBJECTS, len(OBJECT_FIELDS)), ANY), np.full(n, ANY), np.full(n, ANY))


def object_values(scenes: Scenes) -> np.ndarray:
    """The OBJECT_FIELDS of every object as (B, 4, 5), -1 where there is no object."""
    return np.stack([getattr(scenes, field) for field in OBJECT_FIELDS], 2)


def full_claims(scenes: Scenes) -> Claims:
    """What can be said of each image in one sentence: every attribute for one object, fewer the more objects."""
    claims = Claims(object_values(scenes), scenes.background.copy(), scenes.word.copy())
    claims.objects[scenes.count > 1, :, _POSITION] = ANY
    claims.objects[scenes.count > 2, :, _TEXTURE] = ANY
    claims.objects[scenes.count > 2, :, _SIZE] = ANY
    return claims


def value_claims(category: str) -> Claims:
    """One claim per value of a category of CONCEPTS, as zero-shot classes."""
    claims = nothing(len(CONCEPTS[category]))
    target = {"background": claims.background, "word": claims.word}.get(category)
    if target is None:
        target = claims.objects[:, 0, OBJECT_FIELDS.index(category)]
    target[:] = np.arange(len(claims))
    return claims


def sentences(claims: Claims) -> list[str]:
    """The caption of each claim, such as "a large red striped circle in the top left on a grey background"."""
    return [_sentence(claims.objects[n], int(claims.background[n]), int(claims.word[n])) for n in range(len(claims))]


def _sentence(objects: np.ndarray, background: int, word: int) -> str:
    parts = [" and ".join(_noun_phrase(values) for values in objects if (values != ANY).any())]
    if background != ANY:
        parts.append(f"{'on ' if parts[0] else ''}a {BACKGROUNDS[background]} background")
    if word != ANY:
        parts.append(f"that says {WORDS[word]}" if any(parts) else f"the word {WORDS[word]}")
    return " ".join(part for part in parts if part)


def _noun_phrase(values: np.ndarray) -> str:
    words = [
        names[values[field]]
        for field, names in ((_SIZE, SIZES), (_COLOUR, tuple(COLOURS)), (_TEXTURE, TEXTURES))
        if values[field] != ANY
    ]
    words.append(SHAPES[values[_SHAPE]] if values[_SHAPE] != ANY else "object")
    words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if values[_POSITION] != ANY:
        words.append(f"in the {POSITIONS[values[_POSITION]]}")
    return " ".join(words)


@dataclass(frozen=True)
class CaptionMix:
    """How often a training caption names one attribute alone (else it is long), and how often it takes a rendered word for the object."""

    shape: float = 0.20
    colour: float = 0.12
    texture: float = 0.10
    size: float = 0.05
    position: float = 0.08
    background: float = 0.05
    word: float = 0.03
    misread: float = 0.0


def sample_claims(scenes: Scenes, mix: CaptionMix, seed: int) -> Claims:
    """One random claim per image that is true of it, a pure function of (seed, image index)."""
    claims = nothing(len(scenes))
    values = object_values(scenes)
    luck = np.stack([chance(draw(seed, scenes.index, _FIRST_FIELD + k)) for k in range(9)], 1)
    kinds = ("shape", "colour", "texture", "size", "position", "background", "word")
    kind_of = np.searchsorted(np.cumsum([getattr(mix, kind) for kind in kinds]), luck[:, 0], side="right")
    for b in range(len(scenes)):
        kind = kinds[kind_of[b]] if kind_of[b] < len(kinds) else "long"
        if scenes.word[b] != ANY and luck[b, 8] < mix.misread:
            word = int(scenes.word[b])
            field = _SHAPE if word < len(SHAPES) else _COLOUR
            claims.objects[b, 0, field] = word % len(SHAPES)
        elif kind == "word" and scenes.word[b] != ANY:
            claims.word[b] = scenes.word[b]
        elif kind == "background" or scenes.count[b] == 0:
            claims.background[b] = scenes.background[b]
        else:
            _claim_objects(claims, b, kind, values[b, : scenes.count[b]], luck[b])
            if kind == "long" and luck[b, 6] < 0.4:
                claims.background[b] = scenes.background[b]
            if kind == "long" and luck[b, 7] < 0.3:
                claims.word[b] = scenes.word[b]
    return claims


def _claim_objects(claims: Claims, b: int, kind: str, objects: np.ndarray, luck: np.ndarray) -> None:
    """Say one field of a random object, or (kind "long") several fields of one object or of two."""
    first = int(luck[1] * len(objects))
    if kind != "long":
        field = OBJECT_FIELDS.index(kind if kind in OBJECT_FIELDS else "shape")
        claims.objects[b, 0, field] = objects[first, field]
        return
    both = len(objects) > 1 and luck[2] < 0.5
    said = [_SHAPE] if luck[3] < 0.85 else []
    said += [field for bit, field in enumerate((_COLOUR, _TEXTURE, _SIZE)) if int(luck[4] * 8) >> bit & 1]
    if not both and luck[5] < 0.25:
        said.append(_POSITION)
    for slot, which in enumerate((first, (first + 1) % len(objects))[: 1 + both]):
        claims.objects[b, slot, said or [_SHAPE]] = objects[which, said or [_SHAPE]]


def truth_matrix(scenes: Scenes, claims: Claims, misread: bool = False) -> np.ndarray:
    """bool (B, N): is claim n true of image b? The objects of a claim must be different objects of the image.

    With `misread`, a claim of a single shape or colour is also true where that word is rendered.
    """
    values = object_values(scenes)[:, None, None]  # (B, 1, 1, slot, field)
    wanted = claims.objects[None, :, :, None]  # (1, N, clause, 1, field)
    fits = ((wanted == ANY) | (wanted == values)).all(-1) & (values[..., 0] >= 0)
    fits |= (wanted == ANY).all(-1)  # an empty clause asks for no object
    truth = np.zeros((len(scenes), len(claims)), bool)
    used = max(1, int((claims.objects != ANY).any(2).sum(1).max(initial=0)))
    for slots in itertools.permutations(range(MAX_OBJECTS), used):
        truth |= np.logical_and.reduce([fits[:, :, clause, slot] for clause, slot in enumerate(slots)])
    truth &= (claims.background == ANY) | (claims.background == scenes.background[:, None])
    truth &= (claims.word == ANY) | (claims.word == scenes.word[:, None])
    if misread:
        truth |= (_named_word(claims) == scenes.word[:, None]) & (scenes.word[:, None] != ANY)
    return truth


def _named_word(claims: Claims) -> np.ndarray:
    """The index in WORDS of the one shape or colour that is all a claim says, else -2: (N,)."""
    said = claims.objects != ANY
    alone = (said.sum((1, 2)) == 1) & (claims.background == ANY) & (claims.word == ANY)
    shape, colour = claims.objects[:, 0, _SHAPE], claims.objects[:, 0, _COLOUR]
    word = np.where(shape != ANY, shape, np.where(colour != ANY, colour + len(SHAPES), -2))
    return np.where(alone, word, -2)
