"""What a model source (open_clip, transformers, timm) hands to the loader: how to build a model and how to fill it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miclip_core.zoo.sitemap import Family
from miclip_core.zoo.text import TextTower
from schemas.models import Geometry, LanguageFacts


@dataclass(frozen=True, eq=False)
class Built:
    """A library model without (or before) its weights.

    root: the whole library model; `module:` paths start here. visual: what the family is found by.
    text: (device) -> text tower, for dual encoders. classes: names of a classifier head.
    """

    root: nn.Module
    visual: nn.Module
    geometry: Geometry
    text: Callable[[torch.device], TextTower] | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Language:
    """The language model that reads a vision tower.

    facts: the tower's family -> what is known of it, without its weights. load: precision -> the library's whole model
    with its weights on the CPU, and the tower in it. processor: () -> what turns a conversation into tokens.
    """

    facts: Callable[[Family], LanguageFacts]
    load: Callable[[torch.dtype], tuple[Any, Built]]
    processor: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to make one model.

    architecture: its name, part of the identity of random weights. files: the checkpoint, empty for random weights.
    libraries: distributions whose version matters. build: make the modules, on the current default device (meta for
    inspection). fill: load `files` into a model built on the CPU. settings: what the checkpoint's configuration says,
    wherever it is kept. tokeniser: the files of its tokeniser, of a vision-language model those of its processor too.
    Both decide what the model gives, as the weights do. language: what reads the tower; None for all other models.
    """

    architecture: str
    files: tuple[Path, ...]
    revision: str | None
    libraries: tuple[str, ...]
    build: Callable[[], Built]
    fill: Callable[[Built], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokeniser: tuple[Path, ...] = ()
    language: Language | None = None
