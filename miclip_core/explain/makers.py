"""Images made from texts: by the demo world's renderer, which draws what a text says, or by a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from miclip_core.explain.pipelines import load_pipeline
from miclip_core.world.captions import ANY, Claims
from miclip_core.world.reading import read
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, OBJECT_FIELDS, Scenes, World, attributes
from schemas.errors import BadSpec, NonFiniteActivation

_WORLD = World(objects=(0.0, 0.6, 0.4))  # the chances of one and of two objects, of those with either
_INDEX = HELD_OUT_INDICES.stop  # past every image set, so that no made image is one of them
_POSITION = OBJECT_FIELDS.index("position")


class ImageMaker(Protocol):
    """Makes one image from each text."""

    def make(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """uint8 RGB [n,3,h,w] on the CPU; an image depends on its own text and seed alone. It may be black (`is_black`)."""
        ...


def is_black(pixels_BCIJ: Tensor) -> Tensor:
    """Which images have no light at all, as safety filters return them: bool [B]."""
    return (pixels_BCIJ == 0).flatten(1).all(1)


class WorldMaker:
    """The demo world's renderer: what a text says is drawn, and what it leaves open is drawn from the seed.

    Images are 64 x 64 and have one or two objects, or as many as the text names, up to four. Background, words, marks and
    everything about objects have the world's own chances. An object that is said to be where an earlier one is goes to
    another place.
    """

    def make(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """As in `ImageMaker`.

        Raises:
            BadSpec: not as many seeds as texts.
        """
        _check_pairs(texts, seeds)
        images = [render_scenes(said_scene(text, seed))[0][0] for text, seed in zip(texts, seeds, strict=True)]
        images_BIJC = np.stack(images) if images else np.empty((0, 64, 64, 3), np.uint8)
        return torch.from_numpy(images_BIJC).permute(0, 3, 1, 2).contiguous()


def said_scene(text: str, seed: int) -> Scenes:
    """The one scene that `WorldMaker` draws."""
    claims = _possible(read(text).claims())
    said = {field: claims.objects[:, :, number] for number, field in enumerate(OBJECT_FIELDS)}
    return attributes(
        replace(_WORLD, seed=seed), [_INDEX], said | {"background": claims.background, "word": claims.word}
    )


def _possible(claims: Claims) -> Claims:
    """Without positions that an earlier object of the one claim has."""
    positions = claims.objects[0, :, _POSITION]
    for k in range(1, len(positions)):
        if positions[k] in positions[:k]:
            positions[k] = ANY
    return claims


class DiffusionMaker:
    """A text-to-image pipeline of the diffusers library (extra `diffusion`), such as Stable Diffusion.

    folder: as `save_pretrained` of the pipeline writes it, with safetensors. prefix: before the text, which is put in lower
    case. steps: of denoising. guidance: scale of classifier-free guidance. size: pixels of height and width. batch_size:
    images made at once; a last batch is filled up, so that an image does not depend on how many are asked for.

    Raises:
        BadSpec: no steps or no images at once. Further what `load_pipeline` raises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prefix: str = "A realistic image of ",
        steps: int = 28,
        guidance: float = 4.5,
        size: int = 512,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        batch_size: int = 1,
    ):
        if steps < 1 or batch_size < 1:
            raise BadSpec(f"found steps={steps} and batch_size={batch_size}, expected 1 or more")
        self._pipeline = load_pipeline(folder, dtype).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._asked = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
        self._prefix, self._size, self._batch_size = prefix, size, batch_size

    def make(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """As in `ImageMaker`.

        Raises:
            BadSpec: not as many seeds as texts. NonFiniteActivation: an image is not made of numbers.
        """
        _check_pairs(texts, seeds)
        prompts = [self._prefix + text.lower() for text in texts]
        batches = [self._draw(prompts[i : i + self._batch_size], seeds[i : i + self._batch_size])
                   for i in range(0, len(prompts), self._batch_size)]  # fmt: skip
        return torch.cat(batches) if batches else torch.empty(0, 3, self._size, self._size, dtype=torch.uint8)

    @torch.no_grad()
    def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        fill = self._batch_size - len(prompts)
        # Noise is drawn on the CPU, by each image's own generator: the same on every device and in every batch.
        generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *[seeds[-1]] * fill]]
        made = self._pipeline(
            prompt=[*prompts, *[prompts[-1]] * fill], generator=generators, output_type="np", **self._asked
        )
        light = torch.from_numpy(np.asarray(made.images[: len(prompts)], np.float32))
        if not torch.isfinite(light).all():
            raise NonFiniteActivation("the diffusion pipeline made an image of NaN or infinite values; take dtype fp32")
        return (light.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def _check_pairs(texts: Sequence[str], seeds: Sequence[int]) -> None:
    if len(texts) != len(seeds):
        raise BadSpec(f"found {len(texts)} texts and {len(seeds)} seeds, expected one seed per text")
