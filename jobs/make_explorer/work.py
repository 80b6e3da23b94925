"""The explorer worker: gathers what is known of a range of units into rows, and makes the index of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from jobs.blame import blaming
from jobs.make_explorer import about
from jobs.make_explorer.pictures import Pictures, Shown, read_tops
from jobs.make_explorer.plan import INDEX, PAGES, is_of_features
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.rows import make_batch
from jobs.threads import use_cpus
from schemas.plans import Plan, Shard
from schemas.tables import TABLES

Row = dict[str, Any]
BATCH_ROWS = 128
END = 2**31
"""The last shard goes on to the last unit, where planning did not know how many there are."""


class ExplorerWorker:
    """Serves the sets of units of one model; it opens no model."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._plans = {plan.digest: plan for plan in setting.plans}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """The pages of a range of units, with their rows of the index put by; or the index."""
        self.notes.clear()
        for plan in (self._plans[stage] for stage in stages):
            with blaming(plan):
                if plan.rounds[shard.round].name == PAGES:
                    yield from _make_pages(plan, shard, inputs)
                else:
                    yield from _make_index(plan, inputs)


def _make_pages(plan: Plan, shard: Shard, inputs: Inputs) -> Iterator[Part | Artifact]:
    stop = END if shard.stop == plan.rounds[0].rows and is_of_features(plan) else shard.stop
    units = _Units(plan, inputs, [(shard.start, stop)])
    short: list[Row] = []
    for start in range(0, len(units.numbers), BATCH_ROWS):
        rows = [units.page(unit) for unit in units.numbers[start : start + BATCH_ROWS]]
        yield Part(plan.digest, "explorer_features", _batch(plan, "explorer_features", rows))
        short += [units.short(unit) for unit in units.numbers[start : start + BATCH_ROWS]]
    yield Artifact(plan.digest, INDEX, _pack(_batch(plan, "explorer_index", short)))


def _make_index(plan: Plan, inputs: Inputs) -> Iterator[Part]:
    for shard in plan.shards(0):
        with pa.ipc.open_stream(inputs.artifact(plan.digest, shard.number, INDEX)) as reader:
            for batch in reader:
                yield Part(plan.digest, "explorer_index", batch)


def _pack(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _batch(plan: Plan, table: str, rows: Iterable[Row]) -> pa.RecordBatch:
    """Rows of a table; what is the same for all units of a plan is filled in."""
    units, rows = about.units_of_plan(plan), list(rows)
    schema = TABLES[table].schema
    same = {"stage": plan.digest, "model": plan.stage.subject, **units._asdict()}
    columns = {name: [row[name] for row in rows] for name in schema.names if name not in same}
    return make_batch(table, {**columns, **same})


class _Units:
    """All that is known of a range of units, and the rows that it makes."""

    def __init__(self, plan: Plan, inputs: Inputs, ranges: Sequence[tuple[int, int]]) -> None:
        self._features: dict[int, Row] = {}
        self._concepts: about.ByUnit = {}
        self._texts: about.ByUnit = {}
        self._places: dict[int, Row] = {}
        self._moments: dict[int, Row] = {}
        if is_of_features(plan):
            self._read_features(plan, inputs, ranges)
            self.numbers = sorted(self._features)
        else:
            self._moments = about.read_moments(inputs, plan, ranges)
            self.numbers = [unit for start, stop in ranges for unit in range(start, stop)]
        self._names = about.read_names(inputs, plan, ranges)
        self._partners = about.read_partners(inputs, plan, ranges)
        self._tops = read_tops(inputs, plan, ranges)
        self._pictures = Pictures(plan, inputs, self._tops)

    def _read_features(self, plan: Plan, inputs: Inputs, ranges: Sequence[tuple[int, int]]) -> None:
        self._features = about.read_features(inputs, plan.stage.inputs["units"], ranges)
        self._concepts = about.read_selectivity(inputs, plan, ranges)
        self._texts = about.read_texts(inputs, plan, ranges)
        self._places = about.read_places(inputs, plan, ranges)

    def page(self, unit: int) -> Row:
        """The row of explorer_features, without what all units of a plan share."""
        feature = self._features.get(unit)
        shown = self._pictures.show(self._tops.get(unit, ()))
        near = zip(feature["neighbours"], feature["neighbour_cos"]) if feature else ()
        return {
            "unit": unit,
            "figures": _json(self._figures(unit)),
            "histogram": feature["histogram"] if feature else None,
            "names": _json(self._names.get(unit, [])),
            "concepts": _json(self._concepts.get(unit, [])),
            "texts": _json(self._texts.get(unit, [])),
            "partners": _json(self._partners.get(unit, [])),
            "neighbours": _json([list(pair) for pair in near]),
            **_columns(shown),
        }

    def _figures(self, unit: int) -> Row:
        return about.figures_of(self._features[unit]) if self._features else self._moments.get(unit, {})

    def short(self, unit: int) -> Row:
        """The row of explorer_index, likewise."""
        figures, names, texts = self._figures(unit), self._names.get(unit, []), self._texts.get(unit, [])
        concepts, partners, place = (
            self._concepts.get(unit, []),
            self._partners.get(unit, []),
            self._places.get(unit, {}),
        )
        own = [text for text in texts if not text["control"]]
        name, score = names[0]["concepts"][0] if names else (None, None)
        return {
            "unit": unit,
            "name": name,
            "name_score": score,
            "text": own[0]["text"] if own else None,
            "text_iou": own[0].get("iou") if own else None,
            "concept": concepts[0]["concept"] if concepts else None,
            "auroc": concepts[0]["auroc"] if concepts else None,
            "words": _words(names, concepts, own),
            "images_active": figures.get("images_active"),
            "density": figures.get("density", figures.get("positive")),
            "largest": figures.get("max"),
            "monosemanticity": figures.get("monosemanticity"),
            "partners": len({partner["model"] for partner in partners}),
            "best_r": partners[0]["r"] if partners else None,
            **{column: place.get(column) for column in ("x", "y", "topic")},
        }


def _columns(shown: Shown) -> Row:
    return {**shown.__dict__, "images": _json(shown.images)}


def _words(names: Sequence[Row], concepts: Sequence[Row], texts: Sequence[Row]) -> str:
    """What a search looks at, each once."""
    said = [concept for entry in names for concept, _ in entry["concepts"]]
    said += [row["concept"] for row in concepts] + [row["text"] for row in texts]
    return "\n".join(dict.fromkeys(word.lower() for word in said))


def _json(value: Any) -> str:
    """As short as it can be: numbers have six digits, and what is none is null."""
    return json.dumps(_rounded(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def open_worker(setting: Setting, inputs: Inputs) -> ExplorerWorker:
    """Nothing is loaded before there is work."""
    return ExplorerWorker(setting)
