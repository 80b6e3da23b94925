"""What a generator has at the sites of a member while it draws the images of a set of its own, range by range of the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.mine_rosetta.members import Member
from jobs.mine_rosetta.scratch import BadImage
from jobs.mine_rosetta.taps import Blame, Of, Range
from jobs.models import open_generator
from jobs.protocol import ImageBytes, Inputs
from jobs.rows import SetAside, pick, stop_for
from miclip_core.generate.files import find_generator
from miclip_core.generate.generator import Generator
from miclip_core.generate.location import parse_image
from schemas.errors import NoGenerator, UnknownModel
from schemas.refs import ModelRef

_COLUMNS = ("image_index", "image_id", "uri", "duplicate_of")


def draws_images(model: str) -> bool:
    """Whether a model ref names a generator."""
    try:
        find_generator(ModelRef.parse(model))
    except (NoGenerator, UnknownModel):
        return False
    return True


class GeneratorTaps:
    """A generator, opened when the first map is asked for; it draws each image again from the latent of its number."""

    def __init__(self, device: str, blame: Blame) -> None:
        self._device = device
        self._blame = blame
        self._generator: Generator | None = None
        self.notes: list[str] = []

    def read(
        self,
        inputs: Inputs,
        members: Sequence[Member],
        ranges: Sequence[Range],
        at_once: int,
        make: Callable[[Range], list[Of]],
    ) -> Iterator[list[Of]]:
        """As `ModelTaps.read`: for each range of rows, in order, the sinks that `make` gives for it, once they hold it all.

        Raises:
            NonFiniteActivation: where the forward says to stop. WeightsMissing: the generator changed since.
        """
        for range_ in ranges:
            sinks = make(range_)
            images = _usable(inputs, members[0].forward.index, range_)
            for start in range(0, len(images), at_once):
                some = images[start : start + at_once]
                rows = self._draw(inputs, members, some, at_once)
                for sink, member in zip(sinks, members, strict=True):
                    with self._blame(member):
                        _give(sink, member, some, rows)
            yield sinks

    def _draw(
        self, inputs: Inputs, members: Sequence[Member], images: Sequence[ImageBytes], at_once: int
    ) -> dict[str, Tensor]:
        """Rows [B, P, U] of every site; a short batch is filled with its last image, so that all run in one shape."""
        if self._generator is None:
            self._generator = open_generator(members[0].forward, inputs, self._device)
        drawn = [parse_image(image.uri) for image in images]
        numbers = [number for _, number in drawn]
        latents = self._generator.latents(drawn[0][0].seed, numbers + numbers[-1:] * (at_once - len(numbers)))
        sites = dict.fromkeys(site.site for member in members for site in member.sites)
        with torch.no_grad():
            _, rows = self._generator.run(latents, list(sites))
        return {site: found[: len(images)] for site, found in rows.items()}


def _usable(inputs: Inputs, index: str, range_: Range) -> list[ImageBytes]:
    """Images of the index but for repeats, without their bytes, which nobody needs here."""
    found = []
    for batch in inputs.table(index, "images", _COLUMNS, ("image_index", [range_])):
        found += [row for row in batch.to_pylist() if row["duplicate_of"] is None]
    found.sort(key=lambda row: row["image_index"])
    return [ImageBytes(row["image_index"], row["image_id"], row["uri"], None) for row in found]


def _give(sink: Of, member: Member, images: Sequence[ImageBytes], rows: dict[str, Tensor]) -> None:
    """Per grid positions x channels of the images whose maps are finite, as ModelTaps gives them."""
    groups = [torch.cat([rows[site.site] for site in group.sites], 2).flatten(1) for group in member.groups]
    values_BM = torch.cat(groups, 1)
    good_B = torch.isfinite(values_BM).all(1).cpu().numpy()
    if not good_B.all():
        bad = pick(images, ~good_B)
        if member.forward.params["on_nonfinite"] == "stop":
            raise stop_for(SetAside(bad, "a map is NaN or infinite", "draw from another seed"), member.model)
        sink.set_aside(
            [BadImage(i.image_index, i.image_id, i.uri, "nonfinite", "a map is NaN or infinite") for i in bad]
        )
    kept = torch.from_numpy(np.flatnonzero(good_B)).to(values_BM.device)
    sink.add([(image.image_index, image.image_id) for image in pick(images, good_B)], values_BM[kept])
