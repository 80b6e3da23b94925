"""From scenes to pixels: integer blending of atlas masks, textures, words and marks, with a label for every pixel."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from miclip_core.world import atlas
from miclip_core.world.glyphs import word_mask
from miclip_core.world.scene import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    PHASES,
    RADII,
    TEXT_HEIGHTS,
    TEXTURES,
    Scenes,
    World,
    attributes,
    splitmix64,
)

LABEL_BACKGROUND, LABEL_TEXT, LABEL_WATERMARK = 0, 8, 9  # and 1 to 4 for the objects, in their order
MARK = slice(IMAGE_SIZE - 6, IMAGE_SIZE - 1)  # rows and columns of the watermark
MARK_COLOUR = (255, 0, 255)
INK_PERCENT = 39  # brightness of a texture's dark parts
PALETTE = np.asarray(list(COLOURS.values()))


def render(world: World, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One image (64, 64, 3) uint8 RGB and its label map (64, 64) uint8: 0 background, 1-4 object, 8 text, 9 watermark."""
    images, labels = render_scenes(attributes(world, [index]))
    return images[0], labels[0]


def render_scenes(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 64, 64, 3) and label maps (B, 64, 64) of `scenes`, both uint8."""
    images = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.zeros((len(scenes), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for b in range(len(scenes)):
        images[b] = _background(int(scenes.background[b]), int(scenes.background_phase[b]))
        for k in range(int(scenes.count[b])):
            _paint_object(images[b], labels[b], scenes, b, k)
        if scenes.word[b] >= 0:
            _paint_word(images[b], labels[b], int(scenes.word[b]), TEXT_HEIGHTS[scenes.height[b]])
        if scenes.watermark[b]:
            images[b, MARK, MARK] = MARK_COLOUR
            labels[b, MARK, MARK] = LABEL_WATERMARK
    return images, labels


def _paint_object(image: np.ndarray, labels: np.ndarray, scenes: Scenes, b: int, k: int) -> None:
    size, step = int(scenes.size[b, k]), int(scenes.radius[b, k])
    radius, x, y = RADII[size][step], int(scenes.x[b, k]), int(scenes.y[b, k])
    middle = slice(atlas.WINDOW // 2 - radius, atlas.WINDOW // 2 + radius)
    mask = atlas.load()[scenes.shape[b, k], size, step, scenes.rotation[b, k]][middle, middle]
    light = np.clip(PALETTE[scenes.colour[b, k]] + scenes.jitter[b, k], 0, 255)
    inks = np.stack([light, light * INK_PERCENT // 100]).astype(np.uint16)
    ink = inks[texture_tiles()[scenes.texture[b, k], scenes.phase[b, k]][middle, middle]]
    rows, columns = slice(y - radius, y + radius), slice(x - radius, x + radius)
    alpha = mask[..., None].astype(np.uint16)
    image[rows, columns] = (ink * alpha + image[rows, columns] * (255 - alpha) + 127) // 255
    labels[rows, columns][mask >= 128] = k + 1


def _paint_word(image: np.ndarray, labels: np.ndarray, word: int, top: int) -> None:
    mask = word_mask(word)
    height, width = mask.shape
    left = (IMAGE_SIZE - width) // 2
    image[top : top + height, left : left + width] = np.where(mask[..., None], 20, 250)
    labels[top : top + height, left : left + width] = LABEL_TEXT


@functools.cache
def texture_tiles() -> np.ndarray:
    """1 where a texture is dark: (textures, phases, 32, 32)."""
    y, x = np.mgrid[: atlas.WINDOW, : atlas.WINDOW]
    tiles = np.zeros((len(TEXTURES), PHASES, atlas.WINDOW, atlas.WINDOW), np.uint8)
    for phase in range(PHASES):
        u, v = x + phase % 4, y + 2 * phase
        tiles[TEXTURES.index("striped"), phase] = (u + v) % 6 < 3
        tiles[TEXTURES.index("dotted"), phase] = (u % 4 < 2) & (v % 4 < 2)
        tiles[TEXTURES.index("checkered"), phase] = (u // 4 + v // 4) % 2
    return tiles


@functools.cache
def backgrounds() -> np.ndarray:
    """The six backgrounds as (6, 64, 64, 3) uint8."""
    plain = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (18, 18, 18), "beige": (225, 205, 165)}
    frames = np.empty((len(BACKGROUNDS), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for name, colour in plain.items():
        frames[BACKGROUNDS.index(name)] = colour
    ramp = np.arange(IMAGE_SIZE)[:, None, None] * (np.asarray((130, 120, 90))) // (IMAGE_SIZE - 1)
    frames[BACKGROUNDS.index("gradient")] = np.asarray((60, 85, 120)) + ramp
    noise = splitmix64(np.arange(IMAGE_SIZE**2, dtype=np.uint64)).reshape(IMAGE_SIZE, IMAGE_SIZE, 1)
    frames[BACKGROUNDS.index("speckled")] = np.where(noise % np.uint64(4) == 0, (70, 70, 60), (175, 180, 165))
    return frames


def _background(which: int, phase: int) -> np.ndarray:
    frame = backgrounds()[which]
    if BACKGROUNDS[which] == "speckled":  # the same speckles, shifted, so that no pixel position is special
        frame = np.roll(frame, (phase // IMAGE_SIZE, phase % IMAGE_SIZE), (0, 1))
    return frame


def normalise(images: Any, mean: float, std: float) -> np.ndarray:
    """uint8 images (B, H, W, C) as normalised float32 (B, C, H, W), as the towers' preprocessing does."""
    scaled = images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((scaled - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2))
