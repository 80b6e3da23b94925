"""How results moved: figures, concepts and features of stages that differ between two runs, or between two models of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy import sparse

from cluster.catalog import Catalog, load_drift
from cluster.changes import pair_alike, stages_by_place
from cluster.hold import Holds, load_holds
from cluster.ledger import get_checked, load_published
from cluster.parquet import PartEncoder
from cluster.parts import store_part
from cluster.runs import RunState, StageState, split_run
from cluster.sql import run_sql
from cluster.stores.base import Store, prefetch
from jobs.feature_matches import Matches, match_codes, match_decoders
from jobs.sae_files import WEIGHTS
from schemas import layout
from schemas.base import digest
from schemas.drift_tables import DRIFT
from schemas.errors import UsageError
from schemas.plans import Published, Shard, StageSpec

Row = dict[str, Any]
KIND = "drift"
METHOD = 1

_THERE = ("published", "cached")

METRICS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sae_summary": (
        ("site",),
        ("fvu", "l0", "cosine", "dead_fraction", "recovered_zero", "recovered_mean", "top1_original", "top1_spliced"),
    ),
    "probe_summary": (("site", "pool"), ("accuracy",)),
    "alignments": (("site", "pool", "w_out", "w_in", "lr", "seed"), ("final_loss", "final_out", "final_in")),
    "descriptions": (("site", "unit_kind", "variant", "seed"), ("units_described", "concepts_located", "units_dead")),
    "intervention_summary": (
        ("site", "unit_kind", "variant", "seed", "op", "beta", "error_mode", "positions"),
        ("acc_clean", "dacc"),
    ),
    "trace_summary": (("variant", "seed", "images_are"), ("images", "crossed_share")),
    "geometry_summary": (("site", "unit_kind", "variant", "seed"), ("silhouette", "purity")),
    "method_scores": (("site", "unit_kind", "variant", "seed", "measure"), ("value",)),
    "rosetta_pairs": (("model_a", "model_b", "k", "rule"), ("buddies", "above_null", "share_a", "share_b")),
    "explanation_summary": (
        ("site", "vlm", "method", "masking", "direction", "positions", "alpha_asked", "alpha_unit", "metric"),
        ("value", "n_empty"),
    ),
}
"""Table -> columns that tell its rows apart, and columns that are figures."""


class Pair(NamedTuple):
    """One stage then and now."""

    cell: str
    before: Published
    after: Published


@dataclass
class Drift:
    """Rows of the table `drift`, and what could not be compared."""

    rows: list[Row]
    pairs: int
    notes: list[str] = field(default_factory=list)

    def table(self, stage: str) -> pa.Table:
        """The rows as the table `drift`, of this stage."""
        filled = [{**dict.fromkeys(DRIFT.schema.names), **row, "stage": stage} for row in self.rows]
        return pa.Table.from_pylist(filled, schema=DRIFT.schema)


def compare_runs(store: Store, before: RunState, after: RunState) -> Drift:
    """What moved in stages that both runs publish and that are not the same stage."""
    was, now = stages_by_place(_there(before)), stages_by_place(_there(after))
    differ = [
        (place[0], old, new)
        for place in now
        for old, new in pair_alike(was.get(place, {}), now[place])
        if old is not None and new is not None and old != new
    ]
    return _compare(store, differ, (before, after))


def compare_models(store: Store, run: RunState, before: str, after: str) -> Drift:
    """How two models of one run differ in the stages that both have.

    Raises:
        UsageError: the run has published nothing of one of them.
    """
    by_model: dict[str, dict[tuple[str, str], dict[str, list[str]]]] = defaultdict(dict)
    for (cell, subject, output), details in stages_by_place(_there(run)).items():
        by_model[subject][cell.replace(subject, ""), output] = details
    for model in (before, after):
        if model not in by_model:
            there = ", ".join(sorted(by_model)) or "none"
            raise UsageError(f"run {run.run} has published no stage about {model!r}; there are {there}")
    found = [
        (f"{cell}{after}", old, new)
        for (cell, output), now in by_model[after].items()
        for old, new in pair_alike(by_model[before].get((cell, output), {}), now)
        if old is not None and new is not None
    ]
    return _compare(store, found, (run,))


def _there(state: RunState) -> list[StageState]:
    return [stage for stage in state.stages if stage.state in _THERE]


def _compare(store: Store, keys: Sequence[tuple[str, str, str]], runs: Sequence[RunState]) -> Drift:
    """Of (cell, stage then, stage now); the runs say which images have which labels."""
    digests = {digest for _, before, after in keys for digest in (before, after)}
    there = dict(prefetch(lambda digest: load_published(store, digest), sorted(digests)))
    pairs = [Pair(cell, old, new) for cell, b, a in keys if (old := there[b]) and (new := there[a])]
    indices = {s.digest for run in runs for s in run.stages if s.kind == "index_images" and s.state in _THERE}
    images = [p for _, p in prefetch(lambda digest: load_published(store, digest), sorted(indices)) if p]
    drift = Drift([], len(pairs))
    if len(pairs) < len(keys):
        drift.notes.append(f"{len(keys) - len(pairs)} stages of the run before are gone, and were not compared")
    drift.rows += _metrics(store, pairs)
    drift.rows += _predictions(store, pairs, images)
    drift.rows += _concepts(store, pairs)
    drift.rows += _features(store, pairs, drift.notes)
    return drift


def _row(pair: Pair, aspect: str, source: str, item: str, setting: str, status: str, **values: Any) -> Row:
    about = {"cell": pair.cell, "subject": pair.after.stage.subject, "subject_before": pair.before.stage.subject}
    return {**about, "aspect": aspect, "source": source, "item": item, "setting": setting, "status": status, **values}


def _with_table(pairs: Iterable[Pair], table: str) -> list[Pair]:
    return [p for p in pairs if p.before.rows(table) and p.after.rows(table)]


def _ask(store: Store, stages: Iterable[Published], query: str) -> list[Row]:
    rows: list[Row] = run_sql(Catalog(store, tuple(stages)), query).read_all().to_pylist()
    return rows


# ---------------------------------------------------------------- figures


def _metrics(store: Store, pairs: Sequence[Pair]) -> Iterator[Row]:
    for table, (keys, figures) in METRICS.items():
        if not (found := _with_table(pairs, table)):
            continue
        stages = {p.stage.digest: p for pair in found for p in (pair.before, pair.after)}
        rows = _ask(store, stages.values(), f"SELECT stage, {', '.join((*keys, *figures))} FROM {table}")
        by_stage: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            by_stage[row["stage"]][_setting(row, keys)] = row
        for pair in found:
            yield from _moved(
                pair, table, figures, by_stage[pair.before.stage.digest], by_stage[pair.after.stage.digest]
            )


def _setting(row: Row, keys: Iterable[str]) -> str:
    """`site=... variant=...`, without what is not said and without the models of the cell itself."""
    return " ".join(f"{key}={row[key]}" for key in keys if row[key] not in (None, ""))


def _moved(
    pair: Pair, table: str, figures: Sequence[str], was: Mapping[str, Row], now: Mapping[str, Row]
) -> Iterator[Row]:
    for setting in {**was, **now}:
        for name in figures:
            before = was[setting][name] if setting in was else None
            after = now[setting][name] if setting in now else None
            if before == after:
                continue
            status = "changed" if None not in (before, after) else "gained" if before is None else "lost"
            yield _row(pair, "metric", table, name, setting, status, before=_number(before), after=_number(after))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


_ACCURACY = """
WITH truth AS (SELECT image_id, min(label) AS label FROM images WHERE label IS NOT NULL GROUP BY image_id)
SELECT stage, avg((class_name = label)::INT) AS accuracy, avg(probability) AS mean_probability
FROM predictions LEFT JOIN truth USING (image_id) WHERE rank = 0 GROUP BY stage
"""
_AGREEMENT = """
SELECT count(*) AS images, avg((a.class_name = b.class_name)::INT) AS agreement
FROM predictions a JOIN predictions b USING (image_id)
WHERE a.stage = '{before}' AND b.stage = '{after}' AND a.rank = 0 AND b.rank = 0
"""


def _predictions(store: Store, pairs: Sequence[Pair], images: Sequence[Published]) -> Iterator[Row]:
    """Accuracy on labelled images, mean probability, and on how many shared images the first class is the same."""
    for pair in _with_table(pairs, "predictions"):
        both = (pair.before, pair.after)
        figures = {}
        if images:
            figures = {
                row["stage"]: row
                for row in _ask(store, {p.stage.digest: p for p in (*both, *images)}.values(), _ACCURACY)
            }
        for name in ("accuracy", "mean_probability"):
            before, after = (figures.get(p.stage.digest, {}).get(name) for p in both)
            if before != after:
                yield _row(pair, "metric", "predictions", name, "", "changed", before=before, after=after)
        query = _AGREEMENT.format(before=pair.before.stage.digest, after=pair.after.stage.digest)
        (shared,) = _ask(store, both, query)
        if shared["images"]:
            yield _row(pair, "metric", "predictions", "agreement", "", "changed", before=1.0, after=shared["agreement"])


# ---------------------------------------------------------------- concepts

_NAMED = """
SELECT stage, site, unit_kind, variant, seed, concept, count(DISTINCT unit) AS units FROM unit_concepts
WHERE direction = 'describe' AND rank = 0 AND NOT is_dead GROUP BY ALL
"""
_NAMED_BY = ("site", "unit_kind", "variant", "seed")


def _concepts(store: Store, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Concepts that are the best name of some unit now and were of none then, or the other way round."""
    found = _with_table(pairs, "unit_concepts")
    if not found:
        return
    stages = {p.stage.digest: p for pair in found for p in (pair.before, pair.after)}
    named: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for row in _ask(store, stages.values(), _NAMED):
        named[row["stage"]][_setting(row, _NAMED_BY), row["concept"]] = row["units"]
    for pair in found:
        was, now = named[pair.before.stage.digest], named[pair.after.stage.digest]
        for setting, concept in sorted(was.keys() ^ now.keys()):
            before, after = was.get((setting, concept), 0), now.get((setting, concept), 0)
            status = "gained" if after else "lost"
            yield _row(
                pair, "concept", "unit_concepts", concept, setting, status, before=float(before), after=float(after)
            )


# ---------------------------------------------------------------- features


def _features(store: Store, pairs: Sequence[Pair], notes: list[str]) -> Iterator[Row]:
    """Which features of an SAE are still there: by decoder rows where widths allow it, by codes where they are stored."""
    for pair in pairs:
        weights = [_weights(found) for found in (pair.before, pair.after)]
        if all(weights):
            decoders = [_decoder(get_checked(store, stored)) for stored in weights if stored]
            if decoders[0].shape[1] != decoders[1].shape[1]:
                widths = " and ".join(str(d.shape[1]) for d in decoders)
                notes.append(f"{pair.cell}: decoders of widths {widths} are not compared; codes over images may be")
            else:
                yield from _matched(pair, "weights", "decoder_cosine", match_decoders(*decoders), len(decoders[1]))
    for pair in _with_table(pairs, "sae_codes"):
        codes = _shared_codes(store, pair)
        if codes is None:
            notes.append(
                f"{pair.cell}: fewer than {LEAST_SHARED} images are in the codes of both; features not compared"
            )
        else:
            matches = match_codes(*codes)
            yield from _matched(pair, "sae_codes", "code_correlation", matches, codes[1].shape[0])


LEAST_SHARED = 16
"""Images below which a correlation of codes says nothing."""


def _weights(published: Published) -> Any:
    return next((a for a in published.artifacts if a.name == WEIGHTS), None)


def _decoder(data: bytes) -> np.ndarray:
    from safetensors.numpy import load

    return load(data)["W_dec"]


_CODES = "SELECT image_id, feature, max(value) AS value FROM sae_codes WHERE stage = '{stage}' GROUP BY ALL"


def _shared_codes(store: Store, pair: Pair) -> list[sparse.csr_matrix] | None:
    """The largest code of each feature in each image that both have codes of, [U, B] and [V, B]; None if they are few."""
    found = [
        run_sql(Catalog(store, (p,)), _CODES.format(stage=p.stage.digest)).read_all() for p in (pair.before, pair.after)
    ]
    images = [table["image_id"].unique() for table in found]
    shared = sorted(set(images[0].to_pylist()) & set(images[1].to_pylist()))
    if len(shared) < LEAST_SHARED:
        return None
    place = pa.array(shared)
    return [_as_matrix(table, place) for table in found]


def _as_matrix(codes: pa.Table, images: pa.Array) -> sparse.csr_matrix:
    place = pa.compute.index_in(codes["image_id"], images)
    codes = codes.filter(place.is_valid())
    column = place.drop_null().to_numpy()
    feature, value = codes["feature"].to_numpy(), codes["value"].to_numpy()
    return sparse.csr_matrix((value, (feature, column)), shape=(int(feature.max(initial=-1)) + 1, len(images)))


def _matched(pair: Pair, source: str, item: str, matches: Matches, features: int) -> Iterator[Row]:
    """A row per feature then, and one that says which share of them is still there."""
    site = str(pair.after.stage.params.get("site") or "")
    setting, same = f"site={site}" if site else "", matches.same
    now = float(same.sum()) / max(1, features)
    share = {"before": float(same.mean()) if len(same) else None, "after": now}
    yield _row(pair, "metric", source, f"matched_by_{item}", setting, "changed", **share)
    for feature in range(len(same)):
        similarity = float(matches.similarity[feature])
        if np.isnan(similarity):
            continue
        values = {"feature_before": feature, "feature_after": int(matches.nearest[feature]), "similarity": similarity}
        yield _row(pair, "feature", source, item, setting, "matched" if same[feature] else "lost", **values)


# ---------------------------------------------------------------- beside a run


def save_drift(store: Store, run: str, before: str, drift: Drift) -> Published:
    """Write the rows of a run and the pointer that makes them a table; what is there already stays.

    The pointer lies in the folder of the run and goes with it: a stage that read those of the run before would keep them
    for ever.
    """
    stage = StageSpec(
        kind=KIND,
        method=METHOD,
        subject=split_run(run)[0],
        output=KIND,
        params={"before": before, "after": run},
    )
    encoder = PartEncoder(DRIFT)
    for batch in drift.table(stage.digest).combine_chunks().to_batches():
        encoder.add(batch)
    Holds(store, run).hold({stage.digest, *load_holds(store, run)})
    whole = Shard(number=0, round=0, start=0, stop=len(drift.rows))
    parts = [store_part(store, DRIFT.name, stage, whole, n, part) for n, part in enumerate(encoder.finish())]
    published = Published(
        stage=stage, tables={DRIFT.name: tuple(parts)}, content=digest([part.sha256 for part in parts])
    )
    store.create(layout.run_key(run, "drift.json"), published.canonical_json().encode())
    return load_drift(store, run) or published
