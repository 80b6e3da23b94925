"""The network of the demo generator: what a latent asks for, at every place of the image, becomes colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.world.latent import CHOICES, LENGTH, Meaning, meaning_of, truth_rows
from miclip_core.world.scene import IMAGE_SIZE, RADII

_STEP = 2  # pixels on a side of one cell of the fine layers, which draw them together
_PERIODS = (8.0, 6.0, 4.0)  # pixels, of the waves that a texture can be made of
_OCTAVES = (0.5, 1.0, 2.0)  # waves per radius, that an outline can be made of
_REACH = 1.5  # radii from the centre after which an object's outline is nowhere near
_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))
_OUTLINE = 3 + 2 * len(_DIRECTIONS) * len(_OCTAVES)
_TEXTURE = 2 * len(_DIRECTIONS) * len(_PERIODS)


class Layer(nn.Module):
    """A 1x1 convolution whose every channel the style scales and shifts, then a ReLU (`act`, the units of the layer)."""

    def __init__(self, inputs: int, units: int, style: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(inputs, units, 1, bias=False)
        self.film = nn.Linear(style, 2 * units)
        self.act = nn.ReLU()
        nn.init.kaiming_normal_(self.mix.weight, nonlinearity="relu")
        nn.init.normal_(self.film.weight, std=0.3 / math.sqrt(style))
        nn.init.zeros_(self.film.bias)

    def forward(self, x_BCHW: Tensor, style_BS: Tensor) -> Tensor:
        """[B, units, H, W]."""
        scale, shift = self.film(style_BS)[:, :, None, None].chunk(2, 1)
        units: Tensor = self.act(self.mix(x_BCHW) * (1 + scale) + shift)
        return units


class Decoder(nn.Module):
    """From latents [B, 30] to images [B, 3, 64, 64] in 0..1.

    coarse, fine: units of the layers that work on cells of 4 x 4 pixels (16 x 16 of them) and of 2 x 2 (32 x 32).
    A layer knows where it is by coordinates relative to the object, in its radii and in pixels, and sees `memory` learned
    maps that are the same in every image, for what is at a fixed place.
    """

    def __init__(self, coarse: Sequence[int], fine: Sequence[int], style: int, memory: int) -> None:
        super().__init__()
        given = sum(CHOICES.values()) + 3
        self.style = nn.Sequential(nn.Linear(given, style), nn.ReLU(), nn.Linear(style, style), nn.ReLU())
        widths = [_OUTLINE, *coarse]
        self.coarse = nn.ModuleList(Layer(a, b, style) for a, b in pairwise(widths))
        widths = [widths[-1] + _OUTLINE + _TEXTURE + memory, *fine]
        self.fine = nn.ModuleList(Layer(a, b, style) for a, b in pairwise(widths))
        self.memory = nn.Parameter(torch.randn(1, memory, IMAGE_SIZE // _STEP, IMAGE_SIZE // _STEP))
        self.paint = nn.Conv2d(widths[-1], 3 * _STEP**2, 1)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.cells = nn.PixelShuffle(_STEP)
        nn.init.normal_(self.paint.weight, std=0.5 / math.sqrt(widths[-1]))

    @property
    def latent_length(self) -> int:
        """Numbers in a latent."""
        return LENGTH

    def truth_rows(self, latents_BZ: Tensor) -> list[dict[str, Any]]:
        """What the images of latents show, a row of columns each; see `latent.truth_rows`."""
        return truth_rows(meaning_of(latents_BZ))

    @property
    def layers(self) -> list[Layer]:
        """All layers that have units, first to last."""
        return [*self.coarse, *self.fine]

    def forward(self, latents_BZ: Tensor) -> Tensor:
        """Images [B, 3, 64, 64] in 0..1."""
        return self.draw(meaning_of(latents_BZ))

    def draw(self, asked: Meaning) -> Tensor:
        """The images of what latents ask for, or of anything else that could be asked."""
        style = self.style(_style_input(asked))
        x = _outline(asked, 2 * _STEP)
        for layer in self.coarse:
            x = layer(x, style)
        memory = self.memory.expand(len(x), -1, -1, -1)
        x = torch.cat([self.enlarge(x), _outline(asked, _STEP), _texture(asked, _STEP), memory], 1)
        for layer in self.fine:
            x = layer(x, style)
        image: Tensor = self.cells(self.paint(x)).sigmoid()
        return image


def _style_input(asked: Meaning) -> Tensor:
    """What is asked for, but for where: [B, 29]."""
    size = (asked.radius - RADII[0][0]) / (RADII[1][-1] - RADII[0][0])
    place = torch.stack([size, asked.x / IMAGE_SIZE, asked.y / IMAGE_SIZE], 1)
    return torch.cat([asked.shape, asked.colour, asked.texture, asked.background, 2 * place - 1], 1)


def _offsets(asked: Meaning, step: int) -> tuple[Tensor, Tensor]:
    """Pixels from the object's centre to the centres of the cells, to the right [B, 1, W] and down [B, H, 1]."""
    middle = torch.arange(step / 2, IMAGE_SIZE, step, device=asked.x.device, dtype=asked.x.dtype)
    return middle[None, None, :] - asked.x[:, None, None], middle[None, :, None] - asked.y[:, None, None]


def _outline(asked: Meaning, step: int) -> Tensor:
    """Coordinates in radii of the object, turned with it, and waves of them; all the same far away: [B, 27, H, W]."""
    x, y = _offsets(asked, step)
    angle, radius = torch.deg2rad(asked.turn)[:, None, None], asked.radius[:, None, None]
    u, v = ((angle.cos() * x + angle.sin() * y) / radius, (angle.cos() * y - angle.sin() * x) / radius)
    distance = (u * u + v * v + 1e-6).sqrt()
    near = (_REACH - distance).clamp(min=0)
    inwards = distance.clamp(max=_REACH) / distance
    u, v = u * inwards, v * inwards
    return torch.stack([u, v, near, *_waves(u, v, _OCTAVES, near.clamp(max=1))], 1)


def _texture(asked: Meaning, step: int) -> Tensor:
    """Waves of the distance from the object's centre in pixels, near the object: [B, 24, H, W]."""
    x, y = _offsets(asked, step)
    radius = asked.radius[:, None, None]
    near = (_REACH - (x * x + y * y + 1e-6).sqrt() / radius).clamp(0, 1)
    return torch.stack(_waves(x, y, [1 / period for period in _PERIODS], near), 1)


def _waves(x: Tensor, y: Tensor, frequencies: Sequence[float], height: Tensor) -> list[Tensor]:
    phases = [2 * math.pi * f * (a * x + b * y) for f in frequencies for a, b in _DIRECTIONS]
    return [height * wave for phase in phases for wave in (phase.sin(), phase.cos())]
