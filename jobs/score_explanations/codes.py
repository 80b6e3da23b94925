"""What the features of an SAE do on images that it has not seen: made ones, or others of an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jobs.activations import Forward, forward_effort
from jobs.models import open_model
from jobs.protocol import Inputs
from jobs.rows import ROUND_TO
from jobs.sae_files import WEIGHTS
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.geometry import square_view, to_pixels
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.stream import tapped
from schemas.plans import Plan
from schemas.refs import Site


class Activations(NamedTuple):
    """Of all features in one image: float32 [U] each."""

    mean_U: np.ndarray
    max_U: np.ndarray


@dataclass(frozen=True, eq=False)
class Tower:
    """A model and an SAE of its tokens, which are rounded as the sae_features stage rounds them.

    patches: the tokens that count, from first to last: the patches, or all where there is no grid.
    """

    model: VisionModel
    sae: Sae
    forward: Forward
    site: Site
    round_to: str
    patches: slice

    @property
    def batch_size(self) -> int:
        """Images in a forward pass."""
        return int(str(self.forward.effort["batch_size"]))

    def to_pixels(self, pixels_CIJ: Tensor) -> Tensor:
        """Any image uint8 [3, i, j] as the model sees it, uint8 [3, h, w]."""
        image = Image.fromarray(pixels_CIJ.permute(1, 2, 0).numpy())
        view = square_view if self.forward.params["geometry"] == "square" else to_pixels
        return view(image, self.model.facts.geometry)

    @torch.no_grad()
    def activations(self, names: Sequence[str], pixels: Tensor) -> Iterator[Activations]:
        """Of images uint8 [n, 3, h, w] as the model sees them; names [n] are for errors.

        Only whole batches are run, so that no image depends on how many others there are.

        Raises:
            NonFiniteActivation: a token is no number.
        """
        size, site = self.batch_size, self.site
        some = [(names[i : i + size], pixels[i : i + size]) for i in range(0, len(names), size)]
        for batch in tapped(self.model, some, [site], batch_size=size):
            for tokens_PD in batch.rows(site)[0][:, self.patches].to(ROUND_TO[self.round_to]):
                yield self._of_image(tokens_PD)

    def _of_image(self, tokens_PD: Tensor) -> Activations:
        codes = self.sae.encode(tokens_PD.to(self.sae.W_enc)).to("cpu")
        latents, values = codes.latents.numpy().astype(np.int64), codes.values.double().numpy()
        total = np.bincount(latents, weights=values, minlength=codes.width)
        largest = np.full(codes.width, -np.inf)
        np.maximum.at(largest, latents, values)
        silent = np.bincount(latents, minlength=codes.width) < len(tokens_PD)  # somewhere its code is 0
        largest[silent] = np.maximum(largest[silent], 0)
        return Activations((total / len(tokens_PD)).astype(np.float32), largest.astype(np.float32))


def open_tower(plan: Plan, inputs: Inputs, device: str) -> Tower:
    """The model and SAE of a plan with effort `forward` and what `_codes` of planning puts into params.

    Raises:
        WeightsMissing: the checkpoint changed since. BadSae: the SAE cannot be read, or is of another width.
    """
    params: Any = plan.stage.params
    forward, site = forward_effort(plan), str(params["site"])
    sae = load_sae(inputs.published(plan.stage.inputs["sae"], WEIGHTS)).to(device)
    model = open_model(forward, inputs, device, [site])
    first = params["first_patch"] if params["grid"] else 0
    count = int(np.prod(params["grid"])) if params["grid"] else params["tokens"]
    patches = slice(first, first + count)
    return Tower(model, sae, forward, Site.parse(site), str(params["round_to"]), patches)
