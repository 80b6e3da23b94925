"""A vision-language model that is ready to be asked: its tower as a model of the zoo, the rest as the library made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from miclip_core.zoo import locate as default
from miclip_core.zoo.load import find_family, inspect_made, recipe
from miclip_core.zoo.locate import Locate
from miclip_core.zoo.model import VisionModel
from schemas.errors import NoLanguageModel
from schemas.models import LanguageFacts
from schemas.refs import ModelRef


@dataclass(eq=False)
class Vlm:
    """A vision-language model in eval mode.

    tower: its vision tower, with taps, edits and late starts. module: the library's whole model, whose vision tower is
    `tower.module` itself. processor: the library's, for the text side alone: pixels are made by `tower`.
    """

    tower: VisionModel
    module: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def language(self) -> LanguageFacts:
        """What reads the tower."""
        assert self.tower.facts.language is not None
        return self.tower.facts.language


def load_vlm(
    ref: ModelRef,
    locate: Locate = default.locate,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Vlm:
    """A vision-language model with all of its weights, whose parameters take no gradients; nothing of it is run as code.

    Raises:
        NoLanguageModel: the ref names a model that writes no text. UnknownModel: it has no processor.
        WeightsMissing, UnsafeCheckpoint, RemoteCodeRefused, UnsupportedBlock: as `load_model`.
    """
    made = recipe(ref, locate)
    if made.language is None:
        raise NoLanguageModel(
            f"{ref} writes no text; name a vision-language model in transformers' format: a LLaVA, Gemma 3 or InternVL"
        )
    facts = inspect_made(ref, made)
    module, built = made.language.load(dtype)
    module.to(device=device)  # not to `dtype` once more: what turns positions into angles stays in fp32
    tower = VisionModel(
        facts=facts,
        family=find_family(str(ref), built),
        module=built.root,
        text=None,
        device=torch.device(device),
        dtype=dtype,
    )
    return Vlm(tower, module, made.language.processor(), torch.device(device), dtype)
