"""The statistics of every unit of the members of one model: moments, then, given these, shape and activity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa

from jobs.between import pack, unpack, unpack_all
from jobs.blame import blaming
from jobs.mine_rosetta.maps import MapReader, Maps
from jobs.mine_rosetta.members import LEAST_SAMPLES, Member
from jobs.mine_rosetta.plan import ACTIVITY, MOMENTS, SCALE, unit_member_of
from jobs.mine_rosetta.scratch import BadImage
from jobs.mine_rosetta.units import units_batch
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.rows import make_batch
from miclip_core.rosetta.statistics import UnitStatistics
from miclip_core.zoo.reducers import Moments, Reducer, State
from schemas.errors import BadMaps
from schemas.plans import Plan, Shard

AT_ONCE = 1 << 22
"""Numbers that are turned to float64 at a time."""
MANY_RARE = 1 / 3
"""Above this share of rare units people are told: what is compared is no longer the model."""


class UnitsWorker:
    """Serves the members of one model, which see its images in one pass; `notes` says what people should know."""

    def __init__(self, setting: Setting) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._members = {plan.digest: unit_member_of(plan) for plan in setting.plans}
        self._maps = MapReader(setting, float(str(setting.plans[0].effort["cache_gb"])), self._blaming)
        self.notes = self._maps.notes

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Sums over a range of images, or the merge of those of all ranges."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        match plans[0].rounds[shard.round].name:
            case "moments":
                yield from self._moments(plans, shard, inputs)
            case "activity":
                yield from self._activity(plans, shard, inputs)
            case "scale":
                for plan in plans:
                    with blaming(plan):
                        yield _merged_moments(plan, inputs)
            case _:
                for plan in plans:
                    with blaming(plan):
                        yield self._units(plan, inputs)

    def _moments(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[Part | Artifact]:
        found = {plan.digest: [Moments() for _ in self._members[plan.digest].groups] for plan in plans}
        for plan, maps in self._read(plans, shard, inputs):
            yield from _bad_inputs(plan, maps.problems)
            _add(found[plan.digest], maps)
            del maps  # before the next are made
        for plan in plans:
            if not found[plan.digest][0].is_empty:
                yield pack(plan.digest, MOMENTS, _joined([moments.state() for moments in found[plan.digest]]))

    def _activity(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[Artifact]:
        found = {plan.digest: [UnitStatistics(moments) for moments in _load_moments(plan, inputs)] for plan in plans}
        for plan, maps in self._read(plans, shard, inputs):
            _add(found[plan.digest], maps)
            del maps
        for plan in plans:
            yield pack(plan.digest, ACTIVITY, _joined([statistics.state() for statistics in found[plan.digest]]))

    def _units(self, plan: Plan, inputs: Inputs) -> Part:
        """The table. Raises BadMaps: too few images can be used, or no unit varies."""
        moments, member = _load_moments(plan, inputs), self._members[plan.digest]
        found = [UnitStatistics(of) for of in moments]
        for state in unpack_all(inputs, plan, _round(plan, ACTIVITY), ACTIVITY):
            for statistics, of, part in zip(found, moments, _parted(state), strict=True):
                statistics.merge(UnitStatistics.from_state(part, of))
        check_units(member.name, moments, found)
        rows = units_batch(plan, member, moments, found)
        self.notes.extend(notes_on_rare(plan, member.name, rows))
        return Part(plan.digest, "rosetta_units", rows)

    def _read(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[tuple[Plan, Maps]]:
        """The maps of a shard, some images after another."""
        members = [self._members[plan.digest] for plan in plans]
        size = min(int(str(plan.effort["images_at_once"])) for plan in plans)
        ranges = [(first, min(first + size, shard.stop)) for first in range(shard.start, shard.stop, size)]
        for found in self._maps.read(inputs, members, ranges, size):
            for plan in plans:
                yield plan, found.pop(0)

    def _blaming(self, member: Member) -> AbstractContextManager[None]:
        """An error of one member is not of its siblings."""
        return blaming(*(plan for plan in self._plans.values() if self._members[plan.digest] == member))


def _add(reducers: Sequence[Reducer], maps: Maps) -> None:
    """Give each group of maps to its reducer, a few images at a time."""
    for reducer, rows_BPU in zip(reducers, maps.groups, strict=True):
        step = max(1, AT_ONCE // max(1, rows_BPU[:1].numel()))
        for rows in rows_BPU.split(step) if len(rows_BPU) else ():
            reducer.add(rows, np.arange(rows.shape[1]), ())


def check_units(name: str, moments: Sequence[Moments], found: Sequence[UnitStatistics]) -> None:
    """Nothing, if the units of a member can be compared with others. Raises BadMaps."""
    images, least = found[0].images, min(of.count for of in moments)
    if images < 2 or least < LEAST_SAMPLES:
        raise BadMaps(
            f"{name}: {images} images can be used, which give {least} values of a unit; expected at least 2 images and "
            f"{LEAST_SAMPLES} values; table bad_inputs says what was wrong with the others"
        )
    if all(of.scale.dead.all() for of in found):
        raise BadMaps(
            f"{name}: none of {sum(len(of.low) for of in found)} units varies over {images} images; expected maps that differ; "
            "check that the images are not all alike, and the weights of the model"
        )


def notes_on_rare(plan: Plan, name: str, rows: pa.RecordBatch) -> list[str]:
    """What people should know where many units that vary are active too rarely; rows of rosetta_units: all of a member."""
    dead, rare = (rows[column].to_numpy(zero_copy_only=False) for column in ("is_dead", "is_rare"))
    number, alive, params = int((rare & ~dead).sum()), int((~dead).sum()), plan.stage.params
    if number <= MANY_RARE * alive:
        return []
    return [
        f"{name}: {number:,} of {alive:,} units that vary are active on fewer than {params['min_active_images']} images or "
        f"{params['min_active_positions']} positions; pairs leave them out unless rare: keep; give more images, or a smaller "
        "min_active_images"
    ]


def _bad_inputs(plan: Plan, problems: Sequence[BadImage]) -> Iterator[Part]:
    if problems:
        columns = {name: list(values) for name, values in zip(BadImage._fields, zip(*problems), strict=True)}
        yield Part(plan.digest, "bad_inputs", make_batch("bad_inputs", {"stage": plan.digest, **columns}))


def _merged_moments(plan: Plan, inputs: Inputs) -> Artifact:
    states = [_parted(state) for state in unpack_all(inputs, plan, _round(plan, MOMENTS), MOMENTS)]
    if not states:
        raise BadMaps(
            f"{unit_member_of(plan).name}: none of its images can be used; table bad_inputs of other stages, or images: on_nonfinite: "
            "stop, says why"
        )
    merged = [Moments.from_state(part) for part in states[0]]
    for state in states[1:]:
        for moments, part in zip(merged, state, strict=True):
            moments.merge(Moments.from_state(part))
    return pack(plan.digest, SCALE, _joined([moments.state() for moments in merged]))


def _load_moments(plan: Plan, inputs: Inputs) -> list[Moments]:
    (shard,) = plan.shards(_round(plan, SCALE))
    state = unpack(inputs, plan, shard.number, SCALE)
    assert state is not None, "the round before ended without its artifact"
    return [Moments.from_state(part) for part in _parted(state)]


def _round(plan: Plan, name: str) -> int:
    return [round_.name for round_ in plan.rounds].index(name)


def _joined(states: Sequence[Mapping[str, np.ndarray]]) -> State:
    """States of the groups of a member as one: names begin with the number of the group."""
    return {f"{i}.{name}": array for i, state in enumerate(states) for name, array in state.items()}


def _parted(state: Mapping[str, np.ndarray]) -> list[State]:
    """The inverse of `_joined`."""
    parts: dict[int, State] = {}
    for key, array in state.items():
        number, name = key.split(".", 1)
        parts.setdefault(int(number), {})[name] = array
    return [parts[i] for i in sorted(parts)]


def open_worker(setting: Setting, inputs: Inputs) -> UnitsWorker:
    """Nothing is loaded before a shard needs it."""
    return UnitsWorker(setting)
