"""The demo world between its values: images of one object whose shape, place and colours vary continuously."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miclip_core.world import atlas
from miclip_core.world.render import INK_PERCENT, PALETTE, backgrounds, texture_tiles
from miclip_core.world.scene import IMAGE_SIZE, SHAPES

_SUBPIXELS = 3
_SHARE = 1e-3  # what has a smaller weight than this is not drawn


@dataclass(frozen=True)
class Factors:
    """What B images show: weights over the values of each category, summing to 1, and the object's place.

    A weight of 1 is the value itself, as `render` draws it; weights between are shares of its coverage (shape), of its
    dark parts (texture) or of its colour (colour, background).
    """

    shape: np.ndarray  # (B, 8)
    colour: np.ndarray  # (B, 8)
    texture: np.ndarray  # (B, 4)
    background: np.ndarray  # (B, 6)
    x: np.ndarray  # (B,) centre in pixels from the left edge
    y: np.ndarray  # (B,) and from the top
    radius: np.ndarray  # (B,) pixels
    turn: np.ndarray  # (B,) degrees

    def __len__(self) -> int:
        return len(self.x)


def draw_factors(factors: Factors) -> np.ndarray:
    """The images (B, 3, 64, 64) float32 in 0..1 of `factors`; no text, no watermark, textures in their first phase.

    Equal to `render_scenes` up to the rounding of antialiased edges where every weight is 0 or 1 and centre, radius and
    turn are those of a scene.
    """
    images = np.einsum("bk,kchw->bchw", factors.background.astype(np.float32), _frames())
    light = factors.colour.astype(np.float32) @ (PALETTE / 255).astype(np.float32)
    column, row = (np.floor(place).astype(int) - atlas.WINDOW // 2 for place in (factors.x, factors.y))
    ticks = (np.arange(atlas.WINDOW * _SUBPIXELS, dtype=np.float32) + 0.5) / _SUBPIXELS
    x = (column - factors.x).astype(np.float32)[:, None] + ticks
    y = (row - factors.y).astype(np.float32)[:, None] + ticks
    inside = _coverage(factors, x, y)
    paint = inside * (1 - (1 - INK_PERCENT / 100) * _darkness(factors, x, y))
    inside, paint = (_per_pixel(part) for part in (inside, paint))
    for b in range(len(factors)):
        # The window may reach over the image's edge, the object does not.
        rows, columns = (_overlap(int(start[b])) for start in (row, column))
        here = (b, slice(None), rows[0], columns[0])
        there = (b, rows[1], columns[1])
        images[here] = images[here] * (1 - inside[there]) + light[b][:, None, None] * paint[there]
    return images


def _coverage(factors: Factors, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of every subpixel the object covers, (B, rows, columns)."""
    angle, radius = np.deg2rad(factors.turn).astype(np.float32), factors.radius.astype(np.float32)
    cos, sin = (f(angle)[:, None, None] / radius[:, None, None] for f in (np.cos, np.sin))
    covered = np.zeros((len(x), y.shape[1], x.shape[1]), np.float32)
    for number, name in enumerate(SHAPES):
        some = np.flatnonzero(factors.shape[:, number] > _SHARE)
        if len(some):
            across, down = x[some, None, :], y[some, :, None]
            u, v = cos[some] * across + sin[some] * down, cos[some] * down - sin[some] * across
            covered[some] += factors.shape[some, number, None, None].astype(np.float32) * atlas.INSIDE[name](u, v)
    return covered


def _darkness(factors: Factors, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of dark ink at every subpixel, (B, rows, columns): a texel is a pixel that moves with the object."""
    tiles = texture_tiles()[:, 0].astype(np.float32)
    across, down = (np.clip(np.floor(t).astype(int) + atlas.WINDOW // 2, 0, atlas.WINDOW - 1) for t in (x, y))
    mixed = np.einsum("bt,thw->bhw", factors.texture.astype(np.float32), tiles)
    return mixed[np.arange(len(x))[:, None, None], down[:, :, None], across[:, None, :]]


def _per_pixel(subpixels: np.ndarray) -> np.ndarray:
    side = atlas.WINDOW
    return subpixels.reshape(len(subpixels), side, _SUBPIXELS, side, _SUBPIXELS).mean((2, 4))


def _overlap(start: int) -> tuple[slice, slice]:
    """Where a window that begins at pixel `start` lies in the image, and which part of the window that is."""
    first, last = max(start, 0), min(start + atlas.WINDOW, IMAGE_SIZE)
    return slice(first, last), slice(first - start, last - start)


def _frames() -> np.ndarray:
    return (backgrounds() / 255).astype(np.float32).transpose(0, 3, 1, 2)
