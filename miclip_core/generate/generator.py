"""A loaded generator: latents by seed, images and the maps of its units, both differentiable in the latent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from miclip_core.generate.latents import normal_latents
from miclip_core.zoo.sitemap import Family, Native, element
from schemas.errors import BadSite, HookNeverFired
from schemas.models import ModelFacts, resolve_sites
from schemas.refs import Site


class DrawsImages(Protocol):
    """What a generator must do to take part in a zoo; `Generator` does it for models that are loaded by ref."""

    @property
    def facts(self) -> ModelFacts:
        """Family `generator`: its sites are maps, `input_hw` is the size of its images, `embed_dim` the latent's length."""
        ...

    @property
    def latent_dim(self) -> int:
        """Numbers d in a latent."""
        ...

    def latents(self, seed: int, indices: Sequence[int]) -> Tensor:
        """[B, d]: the latents of images `indices` of the set `seed`; each is a function of (seed, index) alone."""
        ...

    def sample(self, seed: int, indices: Sequence[int]) -> Tensor:
        """uint8 [B, 3, h, w]: the same images, whatever the batch and the machine."""
        ...

    def synthesize(self, latents_BZ: Tensor) -> Tensor:
        """[B, 3, h, w] in 0..1, differentiable in the latents [B, d]."""
        ...

    def run(self, latents_BZ: Tensor, sites: Sequence[str | Site]) -> tuple[Tensor, dict[str, Tensor]]:
        """Images as `synthesize` gives them, and by the canonical text of its site each map as rows [B, P, U]."""
        ...


@dataclass(eq=False)
class Generator:
    """A generator in eval mode on a device; its parameters take no gradients, latents may.

    Latents are standard normal and float32. exact: the same module in float64 on the CPU, which `sample` draws with.
    truth: what images of latents show, where that is known.
    """

    facts: ModelFacts
    family: Family
    module: nn.Module
    device: torch.device
    exact: nn.Module
    truth: Callable[[Tensor], list[dict[str, Any]]] | None = None

    @property
    def latent_dim(self) -> int:
        """Numbers d in a latent."""
        return self.facts.check_embeds()

    def latents(self, seed: int, indices: Sequence[int] | np.ndarray) -> Tensor:
        """[B, d] on the device: standard normal, image i of a set by (seed, i) alone."""
        return normal_latents(seed, indices, self.latent_dim).to(self.device)

    def synthesize(self, latents_BZ: Tensor) -> Tensor:
        """Images [B, 3, h, w] in 0..1 of latents [B, d], differentiable."""
        images: Tensor = self.family.forward(latents_BZ)
        return images

    def run(self, latents_BZ: Tensor, sites: Sequence[str | Site]) -> tuple[Tensor, dict[str, Tensor]]:
        """Images [B, 3, h, w] in 0..1 and, by canonical site, rows [B, P, U] of its map; all differentiable.

        Positions are row-major. Not for several threads at once.

        Raises:
            BadSite: a reduction is asked for. UnknownSite: the generator has no such site.
        """
        wanted = self._sites(sites)
        maps: dict[str, Tensor] = {}
        with _recording({site.path: self.family.sites[site.path] for site in wanted}, maps):
            images = self.synthesize(latents_BZ)
        if missing := [site.path for site in wanted if site.path not in maps]:
            raise HookNeverFired(f"{self.facts.model}: {', '.join(missing)} gave nothing while an image was drawn")
        return images, {str(site): maps[site.path].flatten(2).transpose(1, 2) for site in wanted}

    @torch.no_grad()
    def sample(self, seed: int, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Images `indices` of the set `seed` as uint8 [B, 3, h, w] on the CPU.

        Drawn in float64, where the last bits, which differ by batch, device and processor, decide no rounding but by a
        chance of about one in a billion per image.
        """
        latents = normal_latents(seed, indices, self.latent_dim).double()
        return torch.cat([as_uint8(self.exact(one)) for one in latents.split(1)])

    def truth_rows(self, seed: int, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """What images `indices` of the set `seed` show: label and further columns, without any where nothing is known."""
        latents = normal_latents(seed, indices, self.latent_dim)
        return [{} for _ in latents] if self.truth is None else self.truth(latents)

    def _sites(self, texts: Sequence[str | Site]) -> tuple[Site, ...]:
        found = resolve_sites(self.facts, texts)
        for site in found:
            if site.reduce is not None:
                raise BadSite(f"{site}: the units of {self.facts.model} are read as maps; leave :{site.reduce} away")
        return found


def as_uint8(images_BCHW: Tensor) -> Tensor:
    """Images in 0..1 as uint8, each value rounded to the nearest step of 1/255."""
    return (images_BCHW.detach().clamp(0, 1) * 255).round().to(torch.uint8)


@contextmanager
def _recording(entries: dict[str, Any], into: dict[str, Tensor]) -> Iterator[None]:
    """Keep what the modules of `entries` return, by path, with their graph."""

    def keep(path: str, entry: Native) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = element(entry, output)
            into[path] = entry.read(value) if entry.read else value

        return hook

    handles = [entry.module.register_forward_hook(keep(path, entry)) for path, entry in entries.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
