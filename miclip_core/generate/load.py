"""From a model ref to a generator that runs."""

from __future__ import annotations

import copy

import torch

from miclip_core.generate.files import find_generator
from miclip_core.generate.generator import Generator
from miclip_core.zoo import locate as default
from miclip_core.zoo.load import load_built
from miclip_core.zoo.locate import Locate
from schemas.refs import ModelRef


def load_generator(ref: ModelRef, locate: Locate = default.locate, device: str | torch.device = "cpu") -> Generator:
    """A generator in fp32 and eval mode, with parameters that take no gradients.

    Raises:
        UnknownModel: there is no such model. NoGenerator: it reads images and draws none.
        WeightsMissing: its weights are damaged or of another architecture.
    """
    find_generator(ref)
    facts, family, built = load_built(ref, locate, device, torch.float32)
    return Generator(
        facts=facts,
        family=family,
        module=built.root,
        device=torch.device(device),
        truth=getattr(built.root, "truth_rows", None),
        exact=copy.deepcopy(built.root).cpu().double(),
    )
