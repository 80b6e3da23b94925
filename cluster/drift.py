"""How results moved between two runs, or between two models of one: figures and concepts of stages that are not the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from cluster.amounts import some
from cluster.catalog import Catalog, stage_site
from cluster.changes import Alike, pair_alike, stages_by_place
from cluster.drift_features import match_features, share_rows
from cluster.drift_table import Drift, Features, Pair, Row
from cluster.ledger import load_published
from cluster.runs import RunState
from cluster.sae_names import OUTPUT, SaeNames
from cluster.sql import run_sql
from cluster.stores.base import Store, prefetch
from schemas.errors import KeyMissing, UsageError, WorkFailed
from schemas.plans import Published

METRICS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sae_summary": (
        ("site", "sae"),
        ("fvu", "l0", "cosine", "dead_fraction", "recovered_zero", "recovered_mean", "top1_original", "top1_spliced"),
    ),
    "probe_summary": (("site", "pool"), ("accuracy",)),
    "alignments": (("site", "pool", "w_out", "w_in", "lr", "seed"), ("final_loss", "final_out", "final_in")),
    "descriptions": (
        ("site", "sae", "unit_kind", "variant", "seed"),
        ("units_described", "concepts_located", "units_dead"),
    ),
    "intervention_summary": (
        ("site", "sae", "unit_kind", "variant", "seed", "op", "beta", "error_mode", "positions"),
        ("acc_clean", "dacc"),
    ),
    "trace_summary": (("variant", "seed", "images_are"), ("images", "crossed_share")),
    "geometry_summary": (("site", "sae", "unit_kind", "variant", "seed"), ("silhouette", "purity")),
    "method_scores": (("site", "sae", "unit_kind", "variant", "seed", "measure"), ("value",)),
    "rosetta_pairs": (
        ("model_a", "sae_a", "model_b", "sae_b", "k", "rule"),
        ("buddies", "above_null", "share_a", "share_b"),
    ),
    "explanation_summary": (
        ("site", "sae", "vlm", "method", "masking", "direction", "positions", "alpha_asked", "alpha_unit", "metric"),
        ("value", "n_empty"),
    ),
}
"""Table -> columns that tell its rows apart, and columns that are figures."""


SAES = frozenset({"sae", "sae_a", "sae_b"})
"""Columns that hold the digest of an SAE; a setting has its name in place of that."""
SITE_AND_SAE = ("site", "sae")

_UNREADABLE = (WorkFailed, UsageError, KeyMissing)
"""What reading a stage of an old run raises: parts that are damaged, gone or of another version."""

Found = tuple[str, str, str]
"""(cell, stage then, stage now)"""


def compare_runs(store: Store, before: RunState, after: RunState) -> Drift:
    """What moved in stages that both runs publish and that are not the same stage."""
    was, now = stages_by_place(before.published), stages_by_place(after.published)
    found = [(place[0], *both) for place in now for both in _in_both(was.get(place, {}), now[place])]
    return _compare(store, found, (before, after))


def compare_models(store: Store, run: RunState, before: str, after: str) -> Drift:
    """How two models of one run differ in the stages that both have.

    Raises:
        UsageError: the run has published nothing of one of them.
    """
    by_model: dict[str, dict[tuple[str, str], tuple[str, Alike]]] = defaultdict(dict)
    for (cell, subject, output), details in stages_by_place(run.published).items():
        by_model[subject][cell.replace(subject, ""), output] = cell, details
    for model in (before, after):
        if model not in by_model:
            there = ", ".join(sorted(by_model)) or "none"
            raise UsageError(f"run {run.run} has published no stage about {model!r}; there are {there}")
    was = by_model[before]
    found = [
        (cell, *both)
        for place, (cell, now) in by_model[after].items()
        if place in was
        for both in _in_both(was[place][1], now)
    ]
    return _compare(store, found, (run,))


def _in_both(was: Alike, now: Alike) -> Iterator[tuple[str, str]]:
    for old, new in pair_alike(was, now):
        if old is not None and new is not None:
            yield old, new


def _compare(store: Store, found: Sequence[Found], runs: Sequence[RunState]) -> Drift:
    """The runs, the later one last, say which images have which labels and what SAEs are called."""
    differ = [(cell, old, new) for cell, old, new in found if old != new]
    there = _load(store, (stage for _, *both in differ for stage in both))
    pairs = [Pair(cell, there[old], there[new]) for cell, old, new in differ if old in there and new in there]
    stages = [stage for run in runs for stage in run.published]
    images = _load(store, (stage.digest for stage in stages if stage.kind == "index_images"))
    saes = SaeNames(stages, ((old, new) for _, old, new in found))
    drift = Drift([], len(pairs), same=len(found) - len(differ))
    if gone := len(differ) - len(pairs):
        drift.notes.append(f"{some(gone, 'stage')} of the run before are gone, and were not compared")
    try:
        _add_pairs(drift, store, pairs, list(images.values()), saes)
    except _UNREADABLE:  # one pair, or more, as the others by themselves tell
        for pair in pairs:
            try:
                _add_pairs(drift, store, [pair], list(images.values()), saes)
            except _UNREADABLE as error:
                drift.notes.append(f"{pair.cell}: not compared: {error}")
                drift.pairs -= 1
    return drift


def _add_pairs(drift: Drift, store: Store, pairs: Sequence[Pair], images: Sequence[Published], saes: SaeNames) -> None:
    """Add what moved between these pairs: all of it, or nothing if one of them cannot be read."""
    notes: list[str] = []
    rows = [*_metrics(store, pairs, saes, notes), *_predictions(store, pairs, images), *_concepts(store, pairs, saes)]
    features: list[Features] = []
    for pair in pairs:
        features += match_features(store, pair, _setting_of_sae(pair.after, saes), notes)
    drift.rows += [*rows, *chain.from_iterable(map(share_rows, features))]
    drift.features += features
    drift.notes += notes


def _load(store: Store, digests: Iterable[str]) -> dict[str, Published]:
    """What these stages have published, but for those that are gone."""
    found = prefetch(lambda digest: load_published(store, digest), sorted(set(digests)))
    return {digest: published for digest, published in found if published is not None}


def _with_table(pairs: Iterable[Pair], table: str) -> list[Pair]:
    return [pair for pair in pairs if pair.before.rows(table) and pair.after.rows(table)]


def _ask(store: Store, pairs: Iterable[Pair], query: str, beside: Iterable[Published] = ()) -> list[Row]:
    """Rows of a query over the stages of these pairs, and over some others."""
    stages = {p.stage.digest: p for p in (*(p for pair in pairs for p in (pair.before, pair.after)), *beside)}
    rows: list[Row] = run_sql(Catalog(store, tuple(stages.values())), query).read_all().to_pylist()
    return rows


def _setting(row: Row, keys: Iterable[str], saes: SaeNames) -> str:
    """`site=... variant=...`: what tells a row from others of its cell, night after night; what is null is not said."""
    words = {key: saes.name(row[key], row.get("site") or "") if key in SAES and row[key] else row[key] for key in keys}
    return " ".join(f"{key}={word}" for key, word in words.items() if word not in (None, ""))


def _setting_of_sae(published: Published, saes: SaeNames) -> str:
    """That of a stage that is an SAE or reads one."""
    stage = published.stage
    sae = stage.digest if stage.output == OUTPUT else stage.inputs.get("sae")
    return _setting({"site": stage_site(published), "sae": sae}, SITE_AND_SAE, saes)


# ---------------------------------------------------------------- figures


def _metrics(store: Store, pairs: Sequence[Pair], saes: SaeNames, notes: list[str]) -> Iterator[Row]:
    for table, (keys, figures) in METRICS.items():
        if not (found := _with_table(pairs, table)):
            continue
        by_stage: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in _ask(store, found, f"SELECT stage, {', '.join((*keys, *figures))} FROM {table}"):
            by_stage[row["stage"]][_setting(row, keys, saes)].append(row)
        for pair in found:
            was, now = by_stage[pair.before.stage.digest], by_stage[pair.after.stage.digest]
            settings = sorted({**was, **now})
            several = [setting for setting in settings if len(was[setting]) > 1 or len(now[setting]) > 1]
            if several:
                notes.append(
                    f"{pair.cell}: several rows of {table} have one setting, such as {several[0]!r}; which is which cannot be "
                    "told, so they were not compared"
                )
            for setting in settings:
                if setting not in several:
                    yield from _moved(pair, table, figures, setting, [*was[setting], None][0], [*now[setting], None][0])


def _moved(
    pair: Pair, table: str, figures: Sequence[str], setting: str, was: Row | None, now: Row | None
) -> Iterator[Row]:
    for name in figures:
        yield from pair.figure(table, name, setting, *(None if row is None else row[name] for row in (was, now)))


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
        figures = {row["stage"]: row for row in _ask(store, [pair], _ACCURACY, images)} if images else {}
        for name in ("accuracy", "mean_probability"):
            yield from pair.figure("predictions", name, "", *(figures.get(p.stage.digest, {}).get(name) for p in both))
        query = _AGREEMENT.format(before=pair.before.stage.digest, after=pair.after.stage.digest)
        (shared,) = _ask(store, [pair], query)
        if shared["images"]:
            yield from pair.figure("predictions", "agreement", "", 1.0, shared["agreement"])


# ---------------------------------------------------------------- concepts

_NAMED_BY = ("site", "sae", "unit_kind", "variant", "seed")
_NAMED = f"""
SELECT stage, {", ".join(_NAMED_BY)}, concept, count(DISTINCT unit) AS units FROM unit_concepts
WHERE direction = 'describe' AND rank = 0 AND NOT is_dead GROUP BY ALL
"""


def _concepts(store: Store, pairs: Sequence[Pair], saes: SaeNames) -> Iterator[Row]:
    """Concepts that are the best name of some unit now and were of none then, or the other way round."""
    if not (found := _with_table(pairs, "unit_concepts")):
        return
    named: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for row in _ask(store, found, _NAMED):
        named[row["stage"]][_setting(row, _NAMED_BY, saes), row["concept"]] += row["units"]
    for pair in found:
        was, now = named[pair.before.stage.digest], named[pair.after.stage.digest]
        for setting, concept in sorted(was.keys() ^ now.keys()):
            before, after = float(was[setting, concept]), float(now[setting, concept])
            status = "gained" if after else "lost"
            yield pair.row("concept", "unit_concepts", concept, setting, status, before=before, after=after)
