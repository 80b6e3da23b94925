"""What a measure is given: the features of one shard, the texts about them by every way to explain, and the images to score on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from jobs.activations import Forward, forward_effort
from jobs.between import places_of
from jobs.columns import as_ranges, read_index
from jobs.explained import Row, about, read_rows, variant_of
from jobs.forward import read_pixels
from jobs.protocol import ImageBytes, Inputs, Part, Setting
from jobs.top_images import TopImage, read_top_images
from schemas.base import canonical_json
from schemas.errors import ImagesShared
from schemas.models import Geometry
from schemas.plans import Plan, Shard, load_json
from schemas.tables import TABLES


class Text(NamedTuple):
    """A text about a feature that is worth scoring: neither empty nor a refusal."""

    feature: int
    sequence: int
    text: str


class Shown(NamedTuple):
    """A top image of a feature; rank 0 is the strongest."""

    feature: int
    rank: int
    top: TopImage


@dataclass(frozen=True, eq=False)
class Task:
    """One shard of a round of sibling stages, which measure the same of the same features; they differ in the texts alone.

    notes: what people should know. held: what the worker keeps from shard to shard.
    """

    plans: tuple[Plan, ...]
    shard: Shard
    inputs: Inputs
    setting: Setting
    notes: list[str]
    held: dict[Hashable, Any] = field(default_factory=dict)

    def hold(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is made once for all shards of a worker that ask by an equal key, such as a model."""
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]

    @property
    def params(self) -> Any:
        """What decides the measure, the same for all stages but for what names the way to explain."""
        return self.plans[0].stage.params

    @property
    def effort(self) -> Any:
        """How it is done here."""
        return self.plans[0].effort

    @property
    def device(self) -> str:
        """Where tensors go."""
        return self.setting.device

    @property
    def features_stage(self) -> str:
        """The sae_features stage over the images to score on."""
        return self.plans[0].stage.inputs["features"]

    @property
    def index(self) -> str:
        """The index of these images."""
        return self.plans[0].stage.inputs["index"]

    # ---------------------------------------------------------------- texts

    def features(self, plan: Plan) -> list[int]:
        """The features of this shard, ascending: its part of those that any explain stage of the plan has rows of."""
        stages = explain_stages(plan)
        return self.part(self.hold(("features", *stages), lambda: sorted(set().union(*map(self._features, stages)))))

    def part(self, features: Sequence[int]) -> list[int]:
        """Those of some features that this shard is about."""
        places = places_of(self.plans[0], self.shard, len(features))
        return list(features[places.start : places.stop])

    def _features(self, stage: str) -> set[int]:
        batches = self.inputs.table(stage, "explanations", ("feature",))
        return {feature for batch in batches for feature in batch["feature"].to_pylist()}

    def texts(self, stage: str, features: Sequence[int]) -> list[Text]:
        """Texts of an explain stage about ascending features, by feature and sequence."""
        columns = ("feature", "sequence", "status", "text")
        rows = read_rows(self.inputs, stage, "explanations", columns, as_ranges(features)) if features else ()
        return sorted(Text(row["feature"], row["sequence"], row["text"]) for row in rows if row["status"] == "ok")

    def texts_of_each(self) -> list[tuple[Plan, Text]]:
        """The texts of all sibling stages about the features of this shard, stage after stage."""
        return [
            (plan, text) for plan in self.plans for text in self.texts(explain_stages(plan)[0], self.features(plan))
        ]

    # ---------------------------------------------------------------- images

    def top_images(self, features: Iterable[int]) -> dict[int, list[Shown]]:
        """The top images of features, by their rows in the index; in place of one that is left out the next one counts."""
        wanted, found, left_out = sorted(set(features)), dict[int, list[Shown]](), self.left_out
        first = self.params["top_k"] if left_out else self.params["top"]
        tops = read_top_images(self.inputs, self.features_stage, wanted, first) if wanted else {}
        for feature, images in tops.items():
            kept = [top for top in images if top.image_index not in left_out]
            for rank, top in enumerate(kept[: self.params["top"]]):
                found.setdefault(top.image_index, []).append(Shown(feature, rank, top))
        return found

    def pixels(self, rows: Iterable[int]) -> Iterator[tuple[ImageBytes, Tensor]]:
        """Images by their rows in the index, ascending, as the model sees them: uint8 [3, h, w]; those that are gone are left out.

        Raises:
            ImageChanged: an image is not what was indexed, and the sae_features stage stops for that.
        """
        forward, wanted = self.forward, sorted(set(rows))
        geometry = load_json(Geometry, canonical_json(self.effort["geometry"]))
        threads, size = self.setting.resources.decode_threads, int(str(forward.effort["batch_size"]))
        problems, first = Counter[str](), dict[str, str]()
        for batch in read_pixels(self.inputs, forward, geometry, as_ranges(wanted), threads, size):
            for problem in batch.problems:
                problems[problem.reason] += 1
                first.setdefault(problem.reason, f"{problem.image.uri}: {problem.detail}")
            yield from zip(batch.images, batch.pixels)  # what fills the batch is dropped
        self.notes.extend(
            f"{count} images left out: {reason}, first {first[reason]}" for reason, count in sorted(problems.items())
        )

    @property
    def forward(self) -> Forward:
        """The model over the images to score on."""
        return forward_effort(self.plans[0])

    def check_images(self) -> None:
        """That explanations were made from other images than these.

        Raises:
            ImagesShared: some are the same, and the spec says to stop for that.
        """
        self._get_left_out()

    @property
    def left_out(self) -> frozenset[int]:
        """Rows of the index whose images were there when explanations were made: no text is scored on them."""
        return self._get_left_out()

    def _get_left_out(self) -> frozenset[int]:
        found: frozenset[int] = self.hold(("left out", *self._sets), self._find_shared)
        return found

    @property
    def _sets(self) -> tuple[tuple[str, int], ...]:
        """Index and rows of the images to score on, then those of every set that explanations were made from."""
        stage = self.plans[0].stage
        shown: Any = stage.params["shown_rows"]
        others = ((stage.inputs[f"shown.{number}"], rows) for number, rows in enumerate(shown))
        return ((self.index, self.params["rows"]), *dict.fromkeys(others))

    def _find_shared(self) -> frozenset[int]:
        to_score, *others = self._sets
        ours = self._read_ids(*to_score, "image_index")
        theirs = pa.chunked_array(chunk for other in others for chunk in self._read_ids(*other)["image_id"].chunks)
        shared = ours.filter(pc.is_in(ours["image_id"], value_set=theirs))
        rows = shared["image_index"].to_pylist()
        if rows and self.params["on_shared"] == "stop":
            uris = read_index(self.inputs, self.index, "uri", as_ranges(sorted(rows)[:3]))
            raise ImagesShared(
                f"{len(shared)} of the {len(ours)} images to score on are among those that explanations were made from, the "
                f"first: {', '.join(map(str, uris.values()))}; give the sae_features stage that score_explanations "
                "reads images of its own, or on_shared: leave_out to score on the others"
            )
        if len(shared):
            self.notes.append(f"{len(shared)} of {len(ours)} images are left out: explanations were made from them")
        return frozenset(rows)

    def _read_ids(self, index: str, rows: int, *more: str) -> pa.Table:
        """Of large sets: the column image_id and as few others as there have to be."""
        return pa.Table.from_batches(
            self.inputs.table(index, "images", ("image_id", *more), ("image_index", [(0, rows)]))
        )


def explain_stages(plan: Plan) -> list[str]:
    """The explain stages that a plan reads, in their order."""
    inputs = plan.stage.inputs
    count = sum(name.startswith("explanations.") for name in inputs)
    return [inputs[f"explanations.{number}"] for number in range(count)]


def explanation(plan: Plan, text: Text) -> Row:
    """The columns that say which text a row is about."""
    return {**variant_of(plan.stage)._asdict(), "feature": text.feature, "sequence": text.sequence}


def make_parts(plan: Plan, table: str, rows: Sequence[Row]) -> Iterator[Part]:
    """Rows of a table; what all of them say of the stage is filled in."""
    if rows:
        full = [{**about(plan.stage), **row} for row in rows]
        yield Part(plan.digest, table, pa.RecordBatch.from_pylist(full, schema=TABLES[table].schema))


class Rows:
    """Rows of sibling stages that are made out of order, and stored in it."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[Any, Row]]] = {}

    def add(self, plan: Plan, place: Any, row: Row) -> None:
        """place: a tuple by which the rows of a stage are sorted."""
        self._found.setdefault(plan.digest, []).append((place, row))

    def parts(self, plans: Iterable[Plan], table: str) -> Iterator[Part]:
        """All of them."""
        for plan in plans:
            rows = sorted(self._found.pop(plan.digest, []), key=lambda pair: pair[0])
            yield from make_parts(plan, table, [row for _, row in rows])
