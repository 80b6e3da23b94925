"""The worker of two members that are compared, or of one with itself: tiles of products, candidates again, buddies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.mine_rosetta.maps import MapReader
from jobs.mine_rosetta.pair import Pair
from jobs.mine_rosetta.pair_rescore import run_rescore
from jobs.mine_rosetta.pair_tables import pair_parts
from jobs.mine_rosetta.pair_tiles import run_tiles
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from schemas.plans import Shard


class PairWorker:
    """Serves one pair; `notes` says what people should know, such as a batch that was halved."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        (plan,) = setting.plans
        self._device = setting.device
        self._pair = Pair.of(plan, inputs)
        self._maps = MapReader(setting, float(str(plan.effort["cache_gb"])))
        self.notes = self._maps.notes

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Nearest units of some tiles, sums of candidates over a range of images, or the tables."""
        self.notes.clear()
        match self._pair.plan.rounds[shard.round].name:
            case "tiles":
                yield from run_tiles(self._pair, shard.start, self._maps, inputs, self._device)
            case "rescore":
                yield from run_rescore(self._pair, shard, self._maps, inputs, self._device)
            case _:
                yield from pair_parts(self._pair, inputs)


def open_worker(setting: Setting, inputs: Inputs) -> PairWorker:
    """The units of both are read; nothing else is loaded before a shard needs it."""
    return PairWorker(setting, inputs)
