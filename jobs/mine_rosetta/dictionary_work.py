"""The dictionary worker: which images excite all units of an entry most, and the maps of its units on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from jobs.activations import Forward
from jobs.between import pack, unpack_all
from jobs.columns import read_index
from jobs.mine_rosetta.exemplars import Chosen, ExemplarRows
from jobs.mine_rosetta.maps import MapReader
from jobs.mine_rosetta.plan import CHOOSE, PEAKS, members_of
from jobs.mine_rosetta.shown import Shown, read_shown
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from schemas.plans import Plan, Shard

CHOSEN = "chosen"
HELD_NUMBERS = 1 << 24
"""Of maps on their way to the table: 64 MB."""


class DictionaryWorker:
    """Serves dictionaries; `notes` says what people should know of a shard."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._reader: MapReader | None = None
        self._reads: Forward | None = None
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """The best images of a shard, those of all shards, or the maps of one member."""
        self.notes.clear()
        for plan in (self._plans[stage] for stage in stages):
            most: Any = plan.stage.params["exemplars"]
            name = plan.rounds[shard.round].name
            if name == PEAKS:
                found = Chosen.of_scores(self._scores(plan, shard, inputs), shard.start, most)
                yield pack(plan.digest, CHOSEN, found.arrays)
            elif name == CHOOSE:
                found = Chosen.merged(unpack_all(inputs, plan, shard.round - 1, CHOSEN), most)
                yield pack(plan.digest, CHOSEN, found.arrays)
            else:
                yield from self._maps(plan, shard, inputs)

    def _scores(self, plan: Plan, shard: Shard, inputs: Inputs) -> np.ndarray:
        """float64 [rows, entries]: mean over its models of the largest z of the units of an entry; NaN where one has none."""
        shown = [read_shown(inputs, plan.stage, m, member) for m, member in enumerate(members_of(plan))]
        entries = 1 + max(int(one.entry.max(initial=-1)) for one in shown)
        total, models = np.zeros((shard.stop - shard.start, entries)), np.zeros(entries)
        of_models = groupby((one for one in shown if len(one)), key=lambda one: one.member.forward)
        for of_model in (list(group) for _, group in of_models):
            there = np.unique(np.concatenate([one.entry for one in of_model]))
            at_once: Any = plan.effort["images_at_once"]
            peaks = self._peaks(of_model, shard, inputs, entries, at_once[of_model[0].member.model])
            total[:, there] += peaks[:, there]
            models[there] += 1
        return total / np.maximum(models, 1)

    def _peaks(self, shown: Sequence[Shown], shard: Shard, inputs: Inputs, entries: int, at_once: int) -> np.ndarray:
        """float32 [rows, entries]: the largest z that any unit of an entry in one model reaches; NaN for unusable images."""
        peaks = np.full((shard.stop - shard.start, entries), np.nan, np.float32)
        ranges = [(start, min(start + at_once, shard.stop)) for start in range(shard.start, shard.stop, at_once)]
        reader = self._reader_of(shown[0].member.forward)
        for found in reader.read(inputs, [one.member for one in shown], ranges, at_once):
            for one, maps in zip(shown, found, strict=True):
                rows = maps.index - shard.start
                for places, z_BPQ in one.maps(maps):
                    np.fmax.at(peaks, (rows[:, None], one.entry[places][None]), z_BPQ.amax(1).cpu().numpy())
        return peaks

    def _maps(self, plan: Plan, shard: Shard, inputs: Inputs) -> Iterator[Part]:
        """The maps of one member on the images of its entries, each image forwarded alone."""
        member = members_of(plan)[shard.start]
        shown = read_shown(inputs, plan.stage, shard.start, member)
        (best,) = unpack_all(inputs, plan, shard.round - 1, CHOSEN)
        chosen = Chosen(**best).of(shown.entry)
        ranges = [(index, index + 1) for index in np.unique(chosen.image_index).tolist()]
        rows = ExemplarRows(plan.digest, shown, chosen, read_index(inputs, member.forward.index, "uri", ranges))
        reader = self._reader_of(member.forward)
        for (found,) in reader.read(inputs, [member], ranges, at_once=1) if ranges else ():
            rows.add(found)
            if rows.numbers > HELD_NUMBERS:
                yield Part(plan.digest, "rosetta_exemplars", rows.take())
        if rows.numbers:
            yield Part(plan.digest, "rosetta_exemplars", rows.take())

    def _reader_of(self, forward: Forward) -> MapReader:
        """A reader that has no other model open: all models of a zoo would not fit."""
        if self._reader is None or self._reads != forward:
            effort: Any = self._setting.plans[0].effort
            self._reader, self._reads = MapReader(self._setting, effort["cache_gb"]), forward
            self._reader.notes = self.notes
        return self._reader


def open_worker(setting: Setting, inputs: Inputs) -> DictionaryWorker:
    """No model is opened before there is work."""
    return DictionaryWorker(setting)
