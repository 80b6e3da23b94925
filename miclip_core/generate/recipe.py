"""How a folder with generator.json becomes a generator that runs, and where its sites are."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from miclip_core.generate.files import WEIGHTS, read_config
from miclip_core.world.decoder import Decoder
from miclip_core.world.scene import IMAGE_SIZE
from miclip_core.zoo.checkpoint import load_complete, read_checkpoint
from miclip_core.zoo.recipe import Built, Recipe
from miclip_core.zoo.sitemap import Family, Native
from schemas.models import Geometry

_SIDE = (IMAGE_SIZE, IMAGE_SIZE)
# Images come as pixels in 0..1: nothing is resized or normalised.
_DRAWN = Geometry(
    resize="squash", resize_hw=_SIDE, crop_hw=_SIDE, interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def from_path(name: str, path: Path) -> Recipe:
    """The generator of a folder; `fill` reads its weights, stored in half precision, all or none."""
    config = read_config(path)

    def build() -> Built:
        decoder = Decoder(**config)
        return Built(root=decoder, visual=decoder, geometry=_DRAWN)

    def fill(built: Built) -> None:
        weights = {key: value.float() for key, value in read_checkpoint(path / WEIGHTS).items()}
        load_complete(built.root, weights, name)

    return Recipe(
        architecture=name,
        files=(path / WEIGHTS,),
        revision=None,
        libraries=("torch",),
        build=build,
        fill=fill,
        settings=config,
    )


def matches(visual: nn.Module) -> bool:
    """The decoder of the demo generator."""
    return isinstance(visual, Decoder)


def describe(visual: Decoder) -> Family:
    """`act.0` to `act.n`: the units of every layer after their ReLU, as maps; `forward` takes latents."""
    side = IMAGE_SIZE // 2
    return Family(
        name="generator",
        visual=visual,
        sites={f"act.{i}": Native(layer.act, layout="map") for i, layer in enumerate(visual.layers)},
        forward=visual,
        n_blocks=len(visual.layers),
        width=visual.layers[-1].film.out_features // 2,
        grid=(side, side),
        input_hw=_SIDE,
        norm_eps=0.0,
        act_kind="relu",
        pool="none",
        final_norm_position="none",
        latent=visual.latent_length,
    )
