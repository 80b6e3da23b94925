"""The demo world's scenes: which values exist and which of them image `index` of world `seed` has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.errors import BadSpec

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLOURS = {
    "red": (215, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (235, 220, 45),
    "green": (45, 165, 65),
    "cyan": (60, 200, 210),
    "blue": (45, 75, 215),
    "purple": (130, 55, 175),
    "pink": (240, 140, 185),
}
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black", "beige", "gradient", "speckled")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
WORDS = (*SHAPES, *COLOURS)

# The 28 values that a feature of a trained model can be scored against ...
PLANTED = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "size": SIZES,
    "background": BACKGROUNDS,
}
# ... and the full list, with what is not a visual property of an object.
CONCEPTS = {**PLANTED, "position": POSITIONS, "word": WORDS, "watermark": ("watermark",)}
OBJECT_FIELDS = ("shape", "colour", "texture", "size", "position")

IMAGE_SIZE = 64
MAX_OBJECTS = 4
RADII = ((7, 8, 9), (12, 13, 14))  # pixels, per size
ROTATIONS = (-16, -8, 0, 8, 16)  # degrees
PHASES = 8  # shifts of a texture
JITTER = 15  # of a colour channel, either way
LATTICE = 4  # pixels between possible centres
TEXT_HEIGHTS = (1, 25, 49)  # top row of the word's plate

# Training reads only the first range and everything that measures or exports reads only the second,
# so no seed, however chosen, puts a training image into a test.
TRAINING_INDICES = range(1_000_000)
HELD_OUT_INDICES = range(1_000_000, 2_000_000)

# Every random number is splitmix64(seed, index, field): the numbers below are part of what an image is, so never renumber.
_FIELDS = {
    name: 16 * number
    for number, name in enumerate(
        [
            "count",
            "order",
            "shape",
            "colour",
            "texture",
            "size",
            "radius",
            "rotation",
            "phase",
            "dx",
            "dy",
            "jitter",
            "background",
            "text",
            "word",
            "height",
            "watermark",
            "background_phase",
        ]
    )
}


@dataclass(frozen=True)
class World:
    """A distribution over images; with an index it fixes one image.

    `objects[k]` is the chance of k objects; `text` and `watermark` are chances per image, and images that hold
    `watermark_shape` get the mark with `watermark_given_shape` instead. Raises BadSpec for anything that is no chance.
    """

    seed: int = 0
    objects: tuple[float, ...] = (0.05, 0.45, 0.30, 0.10, 0.10)
    text: float = 0.15
    watermark: float = 0.05
    watermark_shape: str | None = None
    watermark_given_shape: float = 0.95

    def __post_init__(self) -> None:
        if len(self.objects) > MAX_OBJECTS + 1 or abs(sum(self.objects) - 1) > 1e-9 or min(self.objects) < 0:
            raise BadSpec(f"objects={self.objects}: expected at most 5 chances (of 0 to 4 objects) that sum to 1")
        for name in ("text", "watermark", "watermark_given_shape"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSpec(f"{name}={getattr(self, name)}: expected a chance between 0 and 1")
        if self.watermark_shape is not None and self.watermark_shape not in SHAPES:
            raise BadSpec(f"watermark_shape={self.watermark_shape!r}: expected one of {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Scenes:
    """What B images show, as integer arrays; object slots at or past `count` hold -1 in the five OBJECT_FIELDS.

    `word` is -1 without text. Values index SHAPES, COLOURS, TEXTURES, SIZES, POSITIONS, BACKGROUNDS and WORDS.
    """

    index: np.ndarray  # (B,)
    count: np.ndarray  # (B,)
    shape: np.ndarray  # (B, 4)
    colour: np.ndarray
    texture: np.ndarray
    size: np.ndarray
    position: np.ndarray
    radius: np.ndarray  # which of the three radii of the size
    rotation: np.ndarray
    phase: np.ndarray
    x: np.ndarray  # (B, 4) centre in pixels
    y: np.ndarray
    jitter: np.ndarray  # (B, 4, 3) added to the colour's channels
    background: np.ndarray  # (B,)
    background_phase: np.ndarray
    word: np.ndarray
    height: np.ndarray
    watermark: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> Scenes:
        """The same scenes at `rows` (a slice or an index array)."""
        return Scenes(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def splitmix64(x: np.ndarray) -> np.ndarray:
    """One output of the splitmix64 generator for each uint64 state (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def draw(seed: int, index: np.ndarray, field: int) -> np.ndarray:
    """The uint64 random number of each (seed, index, field), the same on every machine and in every batch."""
    state = splitmix64(np.full(1, seed % 2**64, np.uint64))
    return splitmix64(splitmix64(state ^ np.asarray(index).astype(np.uint64)) ^ np.uint64(field))


def chance(bits: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from the top 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def attributes(world: World, indices: Any, said: Mapping[str, np.ndarray] | None = None) -> Scenes:
    """What the images `indices` of `world` show, a pure function of (world, index, said).

    said: values that are not drawn but given, -1 where they are drawn: all of OBJECT_FIELDS (B, 4), `background` and
    `word` (B,). Everything else is as if it had been drawn together with them: an image has no fewer objects than its last
    one of which something is said, and positions that are said, each once, trade places with the drawn ones.
    """
    index = np.asarray(indices, np.int64).reshape(-1)

    def bits(name: str, slot: int = 0) -> np.ndarray:
        return draw(world.seed, index, _FIELDS[name] + slot)

    def pick(name: str, n: int, slot: int = 0) -> np.ndarray:
        return (bits(name, slot) % np.uint64(n)).astype(np.int64)

    def per_object(name: str, n: int) -> np.ndarray:
        return np.stack([pick(name, n, slot) for slot in range(MAX_OBJECTS)], 1)

    def settle(name: str, drawn: np.ndarray) -> np.ndarray:
        return drawn if said is None else np.where(said[name] >= 0, said[name], drawn)

    count = np.searchsorted(np.cumsum(world.objects)[:-1], chance(bits("count")), side="right")
    position = np.argsort(np.stack([bits("order", slot) for slot in range(MAX_OBJECTS)], 1), axis=1, kind="stable")
    if said is not None:
        count = np.maximum(count, _slots(said))
        _trade(position, said["position"])
    size, radius = settle("size", per_object("size", len(SIZES))), per_object("radius", 3)
    # An object stays inside its quadrant: the larger, the fewer lattice steps it may move from the middle.
    steps = (IMAGE_SIZE // 4 - np.asarray(RADII)[size, radius]) // LATTICE
    dx, dy = (per_object(name, 2**20) % (2 * steps + 1) - steps for name in ("dx", "dy"))
    shape = settle("shape", per_object("shape", len(SHAPES)))
    present = np.arange(MAX_OBJECTS) < count[:, None]
    named = ((shape == SHAPES.index(world.watermark_shape)) & present).any(1) if world.watermark_shape else False
    marked = np.where(named, world.watermark_given_shape, world.watermark)
    has_text = chance(bits("text")) < world.text
    half = IMAGE_SIZE // 2
    return Scenes(
        index=index,
        count=count,
        shape=np.where(present, shape, -1),
        colour=np.where(present, settle("colour", per_object("colour", len(COLOURS))), -1),
        texture=np.where(present, settle("texture", per_object("texture", len(TEXTURES))), -1),
        size=np.where(present, size, -1),
        position=np.where(present, position, -1),
        radius=radius,
        rotation=per_object("rotation", len(ROTATIONS)),
        phase=per_object("phase", PHASES),
        x=(position % 2) * half + half // 2 + LATTICE * dx,
        y=(position // 2) * half + half // 2 + LATTICE * dy,
        jitter=np.stack(
            [np.stack([pick("jitter", 2 * JITTER + 1, 3 * k + c) - JITTER for c in range(3)], 1) for k in range(4)], 1
        ),
        background=settle("background", pick("background", len(BACKGROUNDS))),
        background_phase=pick("background_phase", IMAGE_SIZE * IMAGE_SIZE),
        word=settle("word", np.where(has_text, pick("word", len(WORDS)), -1)),
        height=pick("height", len(TEXT_HEIGHTS)),
        watermark=chance(bits("watermark")) < marked,
    )


def _slots(said: Mapping[str, np.ndarray]) -> np.ndarray:
    """The number of the last object of which something is said, from 1; 0 without any: (B,)."""
    is_said = np.logical_or.reduce([said[field] >= 0 for field in OBJECT_FIELDS])
    return (is_said * np.arange(1, MAX_OBJECTS + 1)).max(1)


def _trade(position: np.ndarray, said: np.ndarray) -> None:
    """Give every object the position that is said of it, in place; who had it gets the one that becomes free."""
    for k in range(MAX_OBJECTS):
        rows = np.flatnonzero(said[:, k] >= 0)
        had = (position[rows] == said[rows, k, None]).argmax(1)
        position[rows, had], position[rows, k] = position[rows, k], said[rows, k]
