"""Maps of the members of a model for ranges of images: computed by a forward pass, or read back from the node's disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.mine_rosetta.drawn import GeneratorTaps, draws_images
from jobs.mine_rosetta.members import Member
from jobs.mine_rosetta.scratch import BLOCK_ROWS, BadImage, BlockFile, Raw, Scratch
from jobs.mine_rosetta.taps import Blame, InMemory, ModelTaps, Range, numbers_of
from jobs.protocol import Inputs, Setting
from jobs.sae_files import WEIGHTS
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from schemas.base import digest

FILL_BYTES = 16 << 20
"""Of maps that are computed at once to be kept on disk."""


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of one member for the images of a range that it can use, ordered by image_index.

    images: (image_index, image_id). groups: per group of the member, rows float32 [B, P, U]. problems: images set aside.
    """

    images: tuple[tuple[int, str], ...]
    groups: tuple[Tensor, ...]
    problems: tuple[BadImage, ...] = ()

    @property
    def index(self) -> np.ndarray:
        """int64 [B]: rows of the index."""
        return np.array([image[0] for image in self.images], np.int64)


class MapReader:
    """Maps of any members; models and SAEs are opened when they are first needed, and none if all is kept on disk."""

    def __init__(self, setting: Setting, cache_gb: float, blame: Blame = lambda _: nullcontext()) -> None:
        self._setting = setting
        self._blame = blame
        self._scratch = Scratch(cache_gb * 2**30)
        self._taps: dict[str, ModelTaps | GeneratorTaps] = {}
        self._saes: dict[str, Sae] = {}
        self.notes: list[str] = []

    def read(
        self, inputs: Inputs, members: Sequence[Member], ranges: Sequence[Range], at_once: int
    ) -> Iterator[list[Maps]]:
        """For each of the disjoint ranges of rows of the index, in order: the maps of each member; all are of one forward.

        at_once: images of a forward pass, where maps are not kept.

        Raises:
            NonFiniteActivation, ImageChanged: where the forward says to stop. OutOfMemory: one image is too much.
        """
        if any(member.cached for member in members):
            streams = [self._alone(inputs, member, ranges, at_once) for member in members]
            raws: Iterator[list[Raw]] = ([next(stream) for stream in streams] for _ in ranges)
        else:
            raws = self._computed(inputs, members, ranges, at_once)
        for found in raws:
            yield [self._maps(inputs, member, found.pop(0)) for member in members]

    def _alone(self, inputs: Inputs, member: Member, ranges: Sequence[Range], at_once: int) -> Iterator[Raw]:
        if member.cached:
            return self._kept(inputs, member, ranges, at_once)
        return (raw for (raw,) in self._computed(inputs, [member], ranges, at_once))

    # -------------------------------------------------------------- from numbers to maps

    def _maps(self, inputs: Inputs, member: Member, raw: Raw) -> Maps:
        """Views of the numbers, but for the latents of an SAE."""
        with self._blame(member):
            return self._made(inputs, member, raw)

    def _made(self, inputs: Inputs, member: Member, raw: Raw) -> Maps:
        values_BM, groups, first = raw.values.to(self._setting.device), [], 0
        for group in member.groups:
            channels = sum(site.channels for site in group.sites)
            numbers = group.positions * channels
            groups.append(values_BM[:, first : first + numbers].unflatten(1, (group.positions, channels)))
            first += numbers
        if member.sae is not None:
            groups = [self._latents(inputs, member.sae, groups[0])]
        return Maps(raw.images, tuple(groups), raw.problems)

    def _latents(self, inputs: Inputs, sae: str, rows_BPC: Tensor) -> Tensor:
        opened = self._sae(inputs, sae)
        if not len(rows_BPC):
            return rows_BPC.new_empty(0, rows_BPC.shape[1], opened.config.latents)
        codes = opened.encode(rows_BPC.flatten(0, 1).to(opened.W_enc.dtype))
        return codes.dense().float().unflatten(0, rows_BPC.shape[:2])

    def _sae(self, inputs: Inputs, stage: str) -> Sae:
        if stage not in self._saes:
            self._saes[stage] = load_sae(inputs.published(stage, WEIGHTS)).to(self._setting.device)
        return self._saes[stage]

    # -------------------------------------------------------------- computed

    def _computed(
        self, inputs: Inputs, members: Sequence[Member], ranges: Sequence[Range], at_once: int
    ) -> Iterator[list[Raw]]:
        taps = self._taps_of(members[0])
        for sinks in taps.read(inputs, members, ranges, at_once, lambda _: [InMemory() for _ in members]):
            found = [sink.take(numbers_of(member)) for sink, member in zip(sinks, members, strict=True)]
            del sinks
            yield found

    def _taps_of(self, member: Member) -> ModelTaps | GeneratorTaps:
        of = digest([member.forward.inputs, member.forward.params])
        if of not in self._taps:
            setting = self._setting
            self._taps[of] = (
                GeneratorTaps(setting.device, self._blame)
                if draws_images(member.model)
                else ModelTaps(setting.device, setting.resources.decode_threads, self._blame)
            )
            self._taps[of].notes = self.notes
        return self._taps[of]

    # -------------------------------------------------------------- kept on disk

    def _kept(self, inputs: Inputs, member: Member, ranges: Sequence[Range], at_once: int) -> Iterator[Raw]:
        """The same, of what the node keeps; blocks that it lacks are computed and kept, if there is room for all of them."""
        files = _Files(self._scratch, member, self._key(member))
        blocks = dict.fromkeys(block for range_ in ranges for block in _blocks(range_))
        missing = [block for block in blocks if not files.has(block)]
        if not files.has_room(len(missing)):
            yield from (raw for (raw,) in self._computed(inputs, [member], ranges, at_once))
            return
        filled, ahead = self._fill(inputs, member, files, missing), set(missing)
        for range_ in ranges:
            pieces = []
            for block in _blocks(range_):
                while block in ahead:
                    ahead.discard(next(filled))
                pieces.append(self._piece(inputs, member, files, block, range_))
            yield _joined(pieces)

    def _piece(self, inputs: Inputs, member: Member, files: _Files, block: int, range_: Range) -> Raw:
        """What a block has of a range; computed where its file was damaged or is gone."""
        inside = max(range_[0], block * BLOCK_ROWS), min(range_[1], (block + 1) * BLOCK_ROWS)
        if (found := files.read(block, inside)) is not None:
            return found
        ((raw,),) = self._computed(inputs, [member], [inside], self._fill_size(member))
        return raw

    def _fill(self, inputs: Inputs, member: Member, files: _Files, blocks: Sequence[int]) -> Iterator[int]:
        """Compute blocks and write them; gives the number of each when it is there."""
        rows = member.forward.rows
        ranges = [(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)) for block in blocks]
        with ExitStack() as stack:
            taps = self._taps_of(member).read(
                inputs,
                [member],
                ranges,
                self._fill_size(member),
                lambda range_: [stack.enter_context(files.writing(range_[0] // BLOCK_ROWS))],
            )
            for block, _ in zip(blocks, taps):
                stack.close()
                yield block

    def _fill_size(self, member: Member) -> int:
        """Images of a forward pass whose maps are kept: it follows from the member, so that all compute the same bits."""
        size = min(BLOCK_ROWS, int(str(member.forward.effort["batch_size"])))
        while size > 1 and 4 * size * numbers_of(member) > FILL_BYTES:
            size //= 2
        return size

    def _key(self, member: Member) -> str:
        """All that decides the numbers of a block to the last bit."""
        stages = [member.forward.stage(site.site, "fp32").digest for site in member.sites]
        machine = [self._setting.device, torch.get_num_threads(), torch.__version__]
        return digest([stages, member.forward.index, self._fill_size(member), *machine])


class _Files:
    """The files of one member."""

    def __init__(self, scratch: Scratch, member: Member, key: str) -> None:
        self._scratch = scratch
        self._key = key
        self._numbers = numbers_of(member)

    def has(self, block: int) -> bool:
        return self._scratch.has(self._key, block, self._numbers)

    def has_room(self, blocks: int) -> bool:
        return self._scratch.room_for(self._key, 4 * BLOCK_ROWS * blocks * self._numbers)

    def writing(self, block: int) -> AbstractContextManager[BlockFile]:
        return self._scratch.writing(self._key, block)

    def read(self, block: int, within: Range) -> Raw | None:
        return self._scratch.read(self._key, block, self._numbers, within)


def _blocks(range_: Range) -> range:
    """The blocks of the disk that a range of rows touches."""
    return range(range_[0] // BLOCK_ROWS, -(-range_[1] // BLOCK_ROWS))


def _joined(pieces: Sequence[Raw]) -> Raw:
    if len(pieces) == 1:
        return pieces[0]
    images, problems = ([one for piece in pieces for one in getattr(piece, name)] for name in ("images", "problems"))
    # some come from the disk, and some from the device, where a file was damaged
    return Raw(tuple(images), torch.cat([piece.values.cpu() for piece in pieces]), tuple(problems))
