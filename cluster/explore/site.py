"""What the explorer's pages know before they read any table: models, sets of units with their parts, how methods do, runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cluster.amounts import first_line
from cluster.catalog import Catalog
from cluster.changes import load_changes
from cluster.ledger import load_failures
from cluster.read import LakeTable
from cluster.runs import RunState, StageState, UnplannedCell, by_pipeline, find_state, latest_runs, list_runs
from cluster.stores.base import prefetch
from cluster.watching import seconds_taken
from schemas.errors import UnknownTable
from schemas.plans import Published, StoredPart

Row = dict[str, Any]
VERSION = 1
"""Of what the pages expect to find in site.json."""
MOST_RUNS = 30
"""Runs of each pipeline that are listed, newest first."""
MODEL_COLUMNS = (
    "model", "family", "n_layers", "width", "mlp_width", "grid_h", "grid_w", "input_h", "input_w", "embed_dim", "pool",
    "act_kind", "has_text", "parameters", "flops",
)  # fmt: skip
SAE_COLUMNS = (
    "model",
    "site",
    "sae",
    "arch",
    "latents",
    "k",
    "fvu",
    "l0",
    "dead_fraction",
    "recovered_zero",
    "top1_original",
    "top1_spliced",
)
SCORE_COLUMNS = ("model", "site", "sae", "variant", "seed", "measure", "n", "value", "low", "high", "ceiling")
PAIR_COLUMNS = ("model_a", "sae_a", "model_b", "sae_b", "k", "above_null", "share_a", "share_b", "r_p50")
SUMMARY_COLUMNS = (
    "model",
    "site",
    "sae",
    "vlm",
    "method",
    "masking",
    "direction",
    "metric",
    "value",
    "low",
    "high",
    "n",
)


def explorer_stages(catalog: Catalog) -> list[Published]:
    """The stages that have pages.

    Raises:
        UnknownTable: there is none in scope.
    """
    found = [published for published in catalog.stages if published.rows("explorer_features")]
    if not found:
        raise UnknownTable(
            "no stage in scope has published explorer_features, so there is nothing to look at; add a stage of kind explorer "
            "that reads your stages of features to the spec and run it again (all else is cached)"
        )
    return sorted(
        found, key=lambda p: (p.stage.subject, p.stage.params["unit_kind"] != "features", str(p.stage.params["site"]))
    )


def make_site(catalog: Catalog, place: Callable[[StoredPart], str]) -> Row:
    """The content of site.json. Equal stores give equal content: nothing in it comes from a clock.

    place: where the pages find a part, relative to them or a whole URL.
    """
    stages = explorer_stages(catalog)
    tables, runs = _Tables(catalog), list(_runs(catalog))
    ids = _set_ids(stages, runs)
    return {
        "version": VERSION,
        "models": list(_models(tables, [published.stage.subject for published in stages])),
        "sets": [_set(published, ids[published.stage.digest], place) for published in stages],
        "saes": tables.rows("sae_summary", SAE_COLUMNS),
        "scores": tables.rows("method_scores", SCORE_COLUMNS),
        "explanations": tables.rows("explanation_summary", SUMMARY_COLUMNS),
        "pairs": tables.rows("rosetta_pairs", PAIR_COLUMNS),
        "runs": runs,
    }


class _Tables:
    """Small tables as rows; none of what nobody has published."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def rows(self, table: str, columns: Sequence[str]) -> list[Row]:
        if table not in self._catalog.tables:
            return []
        return [_finite(row) for row in LakeTable(self._catalog, table, {}, columns).arrow().to_pylist()]


def _finite(row: Row) -> Row:
    """Numbers with six digits; what is none is null."""
    return {
        name: (float(f"{value:.6g}") if abs(value) < float("inf") else None) if isinstance(value, float) else value
        for name, value in row.items()
    }


def _models(tables: _Tables, subjects: Iterable[str]) -> Iterable[Row]:
    """Every inspected model, and those that have units and were inspected elsewhere; by name."""
    known = {row["model"]: row for row in tables.rows("models", MODEL_COLUMNS)}
    for model in sorted({*known, *subjects}):
        yield known.get(model, {"model": model})


def _set_ids(stages: Iterable[Published], runs: Iterable[Row]) -> dict[str, str]:
    """Stage -> what addresses call its set: model, site, and `neurons` or the SAE, whatever else the stage read.

    Of several over the same units the first of the newest runs has that name. Those of other cells are told apart by the
    cell and the stage of the units, and older stages of the same cell by their digest.
    """
    cells: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: not run["stands"]):
        for part in run["stages"]:
            cells.setdefault(part["digest"], f"{run['pipeline']}/{part['cell']}")
    newest = {digest: number for number, digest in enumerate(cells)}
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for stage in sorted((one.stage for one in stages), key=lambda stage: newest.get(stage.digest, len(newest))):
        sae = stage.inputs.get("sae")
        plain = f"{stage.subject}/{stage.params['site']}/{sae[:12] if sae else 'neurons'}"
        by_digest = f"{plain}/{stage.digest[:12]}"
        cell = cells.get(stage.digest)
        by_cell = f"{plain}/{cell}/{stage.inputs['units'][:12]}" if cell else by_digest
        ids[stage.digest] = next(name for name in (plain, by_cell, by_digest) if name not in taken)
        taken |= {plain, by_cell}
    return ids


def _set(published: Published, name: str, place: Callable[[StoredPart], str]) -> Row:
    """One set of units. Parts are in the order of units, so rows add up to the first unit of each."""
    stage, params = published.stage, published.stage.params
    return {
        "id": name,
        "stage": stage.digest,
        "model": stage.subject,
        "site": params["site"],
        "kind": params["unit_kind"],
        "sae": f"sae:{stage.inputs['sae']}" if "sae" in stage.inputs else None,
        "units": published.rows("explorer_features"),
        "map": any(name.startswith("map.") for name in stage.inputs),
        "features": _parts(published.tables["explorer_features"], place),
        "index": _parts(published.tables["explorer_index"], place),
    }


def _parts(parts: Sequence[StoredPart], place: Callable[[StoredPart], str]) -> list[Row]:
    return [{"url": place(part), "rows": part.rows, "bytes": part.bytes} for part in parts]


# ---------------------------------------------------------------- runs


def _runs(catalog: Catalog) -> Iterable[Row]:
    store = catalog.store
    names = [run for runs in by_pipeline(list_runs(store)).values() for run in reversed(runs[-MOST_RUNS:])]
    standing = {tables.run for tables in latest_runs(store)}
    for run, state in prefetch(lambda name: find_state(store, name), names):
        if state is not None:
            yield _told(catalog, state, run in standing)


def _told(catalog: Catalog, state: RunState, stands: bool) -> Row:
    """One run with its stages, and what it changed if a night was kept of it; what failed says why in one line."""
    changes = load_changes(catalog.store, state.run)
    return {
        "run": state.run,
        "pipeline": state.pipeline,
        "status": state.status,
        "seconds": round(seconds_taken(catalog.store, state), 1),
        "message": first_line(state.message),
        "limited": state.limited,
        "stands": stands,
        "changes": changes and changes.model_dump(mode="json"),
        "stages": [_told_part(catalog, part) for part in state.parts],
    }


def _told_part(catalog: Catalog, part: StageState | UnplannedCell) -> Row:
    """One stage, or a cell that has none."""
    stage = part if isinstance(part, StageState) else None
    return {
        "digest": stage.digest if stage else "",
        "cell": part.cell,
        "what": f"{stage.output} {stage.detail}".strip() if stage else "",
        "state": part.state,
        "done": stage.shards_done if stage else 0,
        "shards": stage.shards if stage else 0,
        "error": first_line(part.error),
        "failures": _failures(catalog, stage.digest) if stage and stage.state == "failed" else [],
    }


def _failures(catalog: Catalog, digest: str) -> list[Row]:
    found = load_failures(catalog.store, digest)
    return [
        {"shard": one.shard, "error": f"{one.error}: {first_line(one.message)}", "attempts": one.attempts}
        for one in found
    ]
