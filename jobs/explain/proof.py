"""The proof that a vision-language model looks through the very tower in which features were found."""

from __future__ import annotations

import torch

from jobs.activations import Forward
from jobs.models import open_model
from jobs.protocol import Inputs
from miclip_core.explain.steer import blank_image
from miclip_core.zoo.model import VisionModel
from schemas.errors import NotTheTower

APART = 1e-4
"""Two towers are the same if tokens differ by at most this share of their length, in fp32."""


def check_tower(vlm: Forward, of: Forward, site: str, inputs: Inputs, device: str) -> None:
    """Whether two models give the same tokens at a site for a white image and one of seeded noise.

    Raises:
        NotTheTower: they do not; the message says by how much.
    """
    if vlm.model == of.model:
        return
    one, other = (_tokens(open_model(_exact(forward), inputs, device, ()), site) for forward in (of, vlm))
    if one.shape != other.shape:
        raise NotTheTower(f"{vlm.model} gives {tuple(other.shape[1:])} at {site}, {of.model} {tuple(one.shape[1:])}")
    apart = ((one - other).abs().amax(-1) / one.norm(dim=-1).clamp(min=1e-12)).max().item()
    if not apart <= APART:
        raise NotTheTower(
            f"the vision tower of {vlm.model} is not that of {of.model}: tokens at {site} differ by {apart:.2g} of their "
            f"length, at most {APART:g} was expected; give vlm: a model that holds this very tower, or features of its own"
        )


def _exact(forward: Forward) -> Forward:
    return forward.model_copy(update={"params": {**forward.params, "dtype": "fp32"}})


def _tokens(model: VisionModel, site: str) -> torch.Tensor:
    images = torch.stack([blank_image("white", model.facts), blank_image("noise", model.facts)])
    (tokens,) = model.run(images.to(model.device), [site]).values()
    return tokens
