"""The only loop from images to tapped tensors: batches of the planned shape in, checked tables of rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.reducers import Reducer
from miclip_core.zoo.select import as_rows
from schemas.errors import NonFiniteActivation
from schemas.refs import Site

Images = tuple[Sequence[str], Tensor]
"""Image ids, and their pixels: uint8 [b, 3, h, w] from `model.geometry`, or floats that are already normalised."""

Quarantine = Callable[[str, str], None]
"""Called with (image id, site) for an image that gave NaN or infinity there; it is then left out of that site alone, so
that what one site gives does not depend on which others are tapped with it."""


@dataclass(frozen=True, eq=False)
class TappedBatch:
    """What one forward gave for the images of one batch, padding removed.

    tensors: canonical site -> selected tensor [b, ...], in the natural shape of the site.
    finite: canonical site -> bool [b], whether every value of that image is a finite number.
    """

    image_ids: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    finite: Mapping[str, np.ndarray]
    model: VisionModel
    sites: tuple[Site, ...]

    def ids(self, site: Site) -> tuple[str, ...]:
        """The images whose values at one site are finite, in order."""
        return tuple(name for name, good in zip(self.image_ids, self.finite[str(site)], strict=True) if good)

    def rows(self, site: Site) -> tuple[Tensor, np.ndarray]:
        """The table form of one site for the images of `ids`: rows [n, R, W] and positions [R] or [n, R]."""
        tensor, finite_B = self.tensors[str(site)], self.finite[str(site)]
        if not finite_B.all():
            tensor = tensor[torch.from_numpy(np.flatnonzero(finite_B)).to(tensor.device)]
        return as_rows(self.model.facts.site(site.path), site, tensor, self.ids(site))


def tapped(
    model: VisionModel,
    batches: Iterable[Images],
    taps: Sequence[str | Site],
    *,
    batch_size: int,
    edits: Sequence[Edit] = (),
    quarantine: Quarantine | None = None,
) -> Iterator[TappedBatch]:
    """Run every batch at exactly `batch_size` images (a short one is padded by its last image) and yield its taps.

    A fixed shape keeps the kernels, and so the bits, independent of how many images the last batch has.

    Raises:
        NonFiniteActivation: a tap is NaN or infinite and there is no `quarantine`; names the site and the images.
        ValueError: a batch is empty or longer than batch_size.
    """
    sites = model.sites(taps)
    for image_ids, pixels in batches:
        count = len(image_ids)
        if not 0 < count <= batch_size or count != len(pixels):
            raise ValueError(f"batch of {len(pixels)} images and {count} ids; expected 1..{batch_size} of both")
        padded = torch.cat([pixels, pixels[-1:].expand(batch_size - count, -1, -1, -1)])
        ids = [*image_ids, *[image_ids[-1]] * (batch_size - count)]
        images = model.normalise(padded) if padded.dtype == torch.uint8 else padded.to(model.device, model.dtype)
        out = model.run(images, sites, edits, image_ids=ids)
        tensors = {name: tensor[:count] for name, tensor in out.items()}
        yield _checked(model, tuple(image_ids), tensors, sites, quarantine)


def reduce_stream(
    model: VisionModel,
    batches: Iterable[Images],
    reducers: Mapping[str, Sequence[Reducer]],
    *,
    batch_size: int,
    edits: Sequence[Edit] = (),
    quarantine: Quarantine | None = None,
) -> None:
    """Feed the rows of every site to its reducers, batch after batch; memory does not grow with the images.

    reducers: canonical site text -> the reducers that see its rows.
    """
    for batch in tapped(model, batches, list(reducers), batch_size=batch_size, edits=edits, quarantine=quarantine):
        for site in batch.sites:
            if not (image_ids := batch.ids(site)):
                continue
            rows, positions = batch.rows(site)
            for reducer in reducers[str(site)]:
                reducer.add(rows, positions, image_ids)


def _checked(
    model: VisionModel,
    image_ids: tuple[str, ...],
    tensors: dict[str, Tensor],
    sites: tuple[Site, ...],
    quarantine: Quarantine | None,
) -> TappedBatch:
    """Find images with a value that is no number; stop, or tell which."""
    finite = {name: torch.isfinite(tensor).flatten(1).all(1).cpu().numpy() for name, tensor in tensors.items()}
    for name, finite_B in finite.items():
        names = [image_ids[i] for i in np.flatnonzero(~finite_B)]
        if names and quarantine is None:
            raise NonFiniteActivation(
                f"{name} of {model.facts.model} is NaN or infinite for {len(names)} images: {', '.join(names[:8])}; "
                "use fp32, take them out of the image set, or set on_nonfinite: quarantine"
            )
        for image_id in names:
            assert quarantine is not None
            quarantine(image_id, name)
    return TappedBatch(image_ids, tensors, finite, model, sites)
