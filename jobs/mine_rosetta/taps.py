"""What one forward pass gives at the sites of several members of a model, range by range of the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from jobs.forward import ImageBatch, IndexForward
from jobs.mine_rosetta.members import Member
from jobs.mine_rosetta.scratch import BadImage, Raw
from jobs.models import open_model
from jobs.protocol import ImageBytes, Inputs
from jobs.rows import SetAside, pick, stop_for
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import as_rows
from miclip_core.zoo.stream import TappedBatch
from schemas.refs import Site

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Forwarded:
    """One forward pass: what it gave to each member, and the images of the index that it began and ended with.

    problems: images set aside before it, for all members alike; `first` and `last` are -1 where there are only those.
    """

    members: list[Raw]
    problems: tuple[BadImage, ...]
    first: int = -1
    last: int = -1


class Sink(Protocol):
    """Takes what one member gives for one range."""

    def add(self, images: Sequence[tuple[int, str]], values_BM: Tensor) -> None:
        """The next images that can be used."""
        ...

    def set_aside(self, problems: Sequence[BadImage]) -> None:
        """Images that cannot."""
        ...


Of = TypeVar("Of", bound=Sink)


class InMemory:
    """A sink that holds what it takes."""

    def __init__(self) -> None:
        self._images: list[tuple[int, str]] = []
        self._values: list[Tensor] = []
        self._problems: list[BadImage] = []

    def add(self, images: Sequence[tuple[int, str]], values_BM: Tensor) -> None:
        """The next images that can be used."""
        self._images += images
        self._values.append(values_BM)

    def set_aside(self, problems: Sequence[BadImage]) -> None:
        """Images that cannot."""
        self._problems += problems

    def take(self, numbers: int) -> Raw:
        """All of it, which is held no longer; `numbers` are those of one image."""
        values = torch.cat(self._values) if len(self._values) > 1 else (self._values or [torch.empty(0, numbers)])[0]
        self._values.clear()
        return Raw(tuple(self._images), values, tuple(self._problems))


Blame = Callable[[Member], AbstractContextManager[None]]
"""Says that an error inside is of one member, so that others of the same pass go on without it."""


class ModelTaps:
    """A model, opened when the first forward pass is asked for; a pass has images of one range alone.

    So nothing outside a range decides the last bits of what it gives.
    """

    def __init__(self, device: str, threads: int, blame: Blame) -> None:
        self._device = device
        self._threads = threads
        self._blame = blame
        self._model: VisionModel | None = None
        self.notes: list[str] = []

    def read(
        self,
        inputs: Inputs,
        members: Sequence[Member],
        ranges: Sequence[Range],
        at_once: int,
        make: Callable[[Range], list[Of]],
    ) -> Iterator[list[Of]]:
        """For each range of rows, in order, the sinks that `make` gives for it (one per member), once they hold it all.

        at_once: images of a forward pass.

        Raises:
            NonFiniteActivation, ImageChanged: where the forward says to stop. OutOfMemory: one image is too much.
        """
        left, sinks = list(ranges), make(ranges[0]) if ranges else []
        problems: list[BadImage] = []
        for done in self._forwards(inputs, members, ranges, at_once):
            problems += done.problems
            while done.last >= 0 and not left[0][0] <= done.first < left[0][1]:
                yield _settled(sinks, left.pop(0), problems)
                sinks = make(left[0])
            _give(sinks, done)
            is_last = done.last == left[0][1] - 1
            del done
            if is_last:
                yield _settled(sinks, left.pop(0), problems)
                sinks = make(left[0]) if left else []
        while left:
            yield _settled(sinks, left.pop(0), problems)
            sinks = make(left[0]) if left else []

    def _forwards(
        self, inputs: Inputs, members: Sequence[Member], ranges: Sequence[Range], at_once: int
    ) -> Iterator[Forwarded]:
        of = members[0].forward
        names = list(dict.fromkeys(site.site for member in members for site in member.sites))
        if self._model is None:
            self._model = open_model(of, inputs, self._device, names)
        effort = {**of.effort, "batch_size": at_once}
        forward = IndexForward(self._model, of.model_copy(update={"effort": effort}), self._threads)
        forward.notes = self.notes
        for batch in forward.run(inputs, ranges, [Site.parse(name) for name in names], apart=True):
            held = [batch]
            del batch  # what was tapped does not stay beside what is taken of it, nor that beside what is next
            yield _forwarded(members, held.pop(), self._blame)


def numbers_of(member: Member) -> int:
    """Numbers that the sites of a member give for one image; those of an SAE before it encodes them."""
    return sum(site.channels * site.grid[0] * site.grid[1] for site in member.sites)


def _give(sinks: Sequence[Sink], done: Forwarded) -> None:
    for sink, raw in zip(sinks, done.members):  # none, where images were only set aside
        sink.add(raw.images, raw.values)
        sink.set_aside(raw.problems)


def _settled(sinks: list[Of], within: Range, problems: list[BadImage]) -> list[Of]:
    """The sinks of a range, with the images of it that were set aside, which are then no longer among `problems`."""
    mine = [bad for bad in problems if within[0] <= bad.image_index < within[1]]
    problems[:] = [bad for bad in problems if bad not in mine]
    for sink in sinks:
        sink.set_aside(mine)
    return sinks


def _forwarded(members: Sequence[Member], batch: ImageBatch, blame: Blame) -> Forwarded:
    problems = tuple(_bad(p.image, p.reason, p.detail) for p in batch.problems)
    if batch.out is None:
        return Forwarded([], problems)
    found = []
    for member in members:
        with blame(member):
            found.append(_taken(member, batch.out, batch.images))
    return Forwarded(found, problems, batch.images[0].image_index, batch.images[-1].image_index)


def _taken(member: Member, out: TappedBatch, images: Sequence[ImageBytes]) -> Raw:
    """What a member has of a batch: images that are finite at all of its sites."""
    sites = [Site.parse(site.site) for site in member.sites]
    good_B, problems = np.ones(len(images), bool), []
    for site in sites:
        finite_B = out.finite[str(site)]
        if member.forward.params["on_nonfinite"] == "stop" and not finite_B.all():
            aside = SetAside(pick(images, ~finite_B), f"{site} is NaN or infinite", "use dtype: fp32")
            raise stop_for(aside, member.model)
        problems += [
            _bad(image, "nonfinite", f"{site} is NaN or infinite") for image in pick(images, good_B & ~finite_B)
        ]
        good_B &= finite_B
    kept = pick(images, good_B)
    values_BM = _values(member, out, sites, good_B)
    return Raw(tuple((image.image_index, image.image_id) for image in kept), values_BM, tuple(problems))


def _values(member: Member, out: TappedBatch, sites: Sequence[Site], good_B: np.ndarray) -> Tensor:
    """[B, M] float32 of the images that are good: per grid positions x channels."""
    kept = torch.from_numpy(np.flatnonzero(good_B))
    device = out.tensors[str(sites[0])].device
    values_BM = torch.empty(len(kept), numbers_of(member), device=device)
    named, first = {site.site: parsed for site, parsed in zip(member.sites, sites, strict=True)}, 0
    for group in member.groups:
        channels = sum(site.channels for site in group.sites)
        maps_BPU = values_BM[:, first : first + group.positions * channels].unflatten(1, (group.positions, channels))
        first, unit = first + group.positions * channels, 0
        for site in group.sites:
            parsed = named[site.site]
            tensor = out.tensors[str(parsed)]
            rows, _ = as_rows(out.model.facts.site(parsed.path), parsed, tensor)
            maps_BPU[..., unit : unit + site.channels] = rows if good_B.all() else rows[kept.to(device)]
            unit += site.channels
    return values_BM


def _bad(image: ImageBytes, reason: str, detail: str) -> BadImage:
    return BadImage(image.image_index, image.image_id, image.uri, reason, detail)
