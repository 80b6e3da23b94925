"""What other stages say of a range of units, read from their tables: figures, names, texts, places on the map, partners."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.described import Units
from jobs.explained import OWN_DIRECTION, Variant, read_rows
from jobs.make_explorer.plan import inputs_of, is_of_features, judges_of
from jobs.make_explorer.units import same_units
from jobs.protocol import Inputs
from schemas.plans import Plan

Row = dict[str, Any]
Ranges = Sequence[tuple[int, int]]
ByUnit = dict[int, list[Row]]

_STATISTICS = (
    "n_active", "images_active", "density", "is_dead", "mean", "std", "p50", "p90", "p99", "max", "skewness", "kurtosis",
    "enc_dec_cos", "decoder_norm", "b_enc", "clarity", "clarity_baseline", "clarity_z", "monosemanticity",
)  # fmt: skip
_WHOSE = ("site", "sae", "unit", "variant", "seed")
_VERDICT = ("truth", "correct", "clip_score")
_MOMENTS = ("mean", "variance", "min", "max", "positive")
_SCORES = ("iou", "clip", "synthetic", "auroc", "named")
_SELECTED = ("feature", *Variant._fields, "sequence", "iou")
PREFERRED = ("miclip", "clip_dissect", "auroc", "act_values", "netdissect", "v_interp")
"""Methods in the order in which one of them names a unit in lists."""


def read_features(inputs: Inputs, stage: str, ranges: Ranges) -> dict[int, Row]:
    """Feature -> its statistics, histogram and nearest features."""
    columns = ("feature", *_STATISTICS, "histogram", "neighbours", "neighbour_cos")
    return {row["feature"]: row for row in read_rows(inputs, stage, "sae_features", columns, ranges)}


def figures_of(row: Row) -> Row:
    """The statistics of a feature by their names, without those that are unknown."""
    return {name: row[name] for name in _STATISTICS if row[name] is not None}


def read_moments(inputs: Inputs, plan: Plan, ranges: Ranges) -> dict[int, Row]:
    """Neuron -> its statistics over images and positions, where a stage has them."""
    stage = plan.stage.inputs.get("moments")
    if stage is None:
        return {}
    rows = _rows(inputs, stage, "activation_moments", ("unit", *_MOMENTS), "unit", ranges)
    return {row["unit"]: {name: row[name] for name in _MOMENTS} for row in rows}


def _rows(inputs: Inputs, stage: str, table: str, columns: Sequence[str], by: str, ranges: Ranges) -> Iterator[Row]:
    for batch in inputs.table(stage, table, columns, (by, ranges)):
        yield from batch.to_pylist()


# ---------------------------------------------------------------- names


def read_names(inputs: Inputs, plan: Plan, ranges: Ranges) -> ByUnit:
    """Unit -> one entry per method that describes it: its best concepts with scores, and whether the first is true."""
    judged = {stage: _read_judged(inputs, stage, ranges) for stage in inputs_of(plan, "judged")}
    found: dict[int, dict[tuple[str, str], Row]] = defaultdict(dict)
    columns = (*_WHOSE, "direction", "method", "concept", "rank", "score")
    most = int(str(plan.stage.params["names"]))
    for stage in inputs_of(plan, "names"):
        verdicts = [judged[judge] for judge in judges_of(plan, stage)]
        for row in _rows(inputs, stage, "unit_concepts", columns, "unit", ranges):
            if row["direction"] != "describe" or row["rank"] >= most:
                continue
            variant = row["variant"] if row["seed"] is None else f"{row['variant']} seed {row['seed']}"
            truth = next((verdict[_whose(row)] for verdict in verdicts if _whose(row) in verdict), {})
            entry = {"method": row["method"], "variant": variant, "stage": stage, "concepts": [], **truth}
            found[row["unit"]].setdefault((stage, variant), entry)["concepts"].append(
                [row["rank"], row["concept"], row["score"]]
            )
    return {unit: [_sorted(entry) for entry in sorted(of.values(), key=_preference)] for unit, of in found.items()}


def _sorted(entry: Row) -> Row:
    """Its concepts as [name, score] pairs, best first."""
    best = [[name, score] for _, name, score in sorted(entry["concepts"])]
    return {name: value for name, value in entry.items() if name != "stage"} | {"concepts": best}


def _preference(entry: Row) -> tuple[int, str, str]:
    method = entry["method"]
    return (PREFERRED.index(method) if method in PREFERRED else len(PREFERRED), entry["variant"], entry["stage"])


def _read_judged(inputs: Inputs, stage: str, ranges: Ranges) -> dict[tuple[Any, ...], Row]:
    """List of a unit -> whether its first name is what the unit stands for, and what that is."""
    columns = (*_WHOSE, *_VERDICT)
    return {
        _whose(row): {name: row[name] for name in _VERDICT if row[name] is not None}
        for row in _rows(inputs, stage, "description_eval", columns, "unit", ranges)
    }


def _whose(row: Row) -> tuple[Any, ...]:
    """What tells the lists of one stage apart: a path has neurons at several positions, an SAE is applied at several sites."""
    return tuple(row[name] for name in _WHOSE)


def units_of_plan(plan: Plan) -> Units:
    """Whose pages a plan makes."""
    params = plan.stage.params
    sae = f"sae:{plan.stage.inputs['sae']}" if is_of_features(plan) else None
    return Units(str(params["site"]), str(params["unit_kind"]), sae)


def read_selectivity(inputs: Inputs, plan: Plan, ranges: Ranges) -> ByUnit:
    """Feature -> what labels say that it tells, best first: of images and of patches, as many as names of a method."""
    found: ByUnit = defaultdict(list)
    columns = ("feature", "level", "concept", "auroc", "best_f1", "rank_in_feature")
    most = int(str(plan.stage.params["names"]))
    for row in read_rows(inputs, plan.stage.inputs["units"], "sae_selectivity", columns, ranges):
        if row["rank_in_feature"] is not None and row["rank_in_feature"] < most:
            found[row["feature"]].append({
                "level": row["level"], "concept": row["concept"], "auroc": row["auroc"], "f1": row["best_f1"],
            })  # fmt: skip
    return {
        unit: sorted(rows, key=lambda row: (-row["auroc"], row["level"], row["concept"]))
        for unit, rows in found.items()
    }


# ---------------------------------------------------------------- texts


def read_texts(inputs: Inputs, plan: Plan, ranges: Ranges) -> ByUnit:
    """Feature -> its texts, the chosen first, controls last; those of stages that were scored have scores."""
    chosen = _read_chosen(inputs, plan, ranges)
    found: dict[int, dict[tuple[Any, ...], Row]] = defaultdict(dict)
    columns = ("feature", *Variant._fields, "sequence", "status", "text")
    for role, table, scores in (("scores", "explanation_scores", _SCORES), ("texts", "explanations", ())):
        for stage in inputs_of(plan, role):
            for row in read_rows(inputs, stage, table, (*columns, *scores), ranges):
                way = _way(row)
                if row["status"] == "ok":
                    found[row["feature"]].setdefault(way, _text(row, scores, (row["feature"], way) in chosen))
    return {unit: sorted(of.values(), key=_text_order) for unit, of in found.items()}


def _way(row: Row) -> tuple[Any, ...]:
    return (*(row[name] for name in Variant._fields), row["sequence"])


def _text(row: Row, scores: Sequence[str], is_chosen: bool) -> Row:
    variant = Variant(*(row[name] for name in Variant._fields))
    told = {name: row[name] for name in scores if row[name] is not None}
    is_control = variant.direction != OWN_DIRECTION
    return {
        "vlm": variant.vlm,
        "how": str(variant),
        "text": row["text"],
        "chosen": is_chosen,
        "control": is_control,
        **told,
    }


def _text_order(text: Row) -> tuple[Any, ...]:
    return (text["control"], not text["chosen"], -text.get("iou", -1.0), text["vlm"], text["how"])


def _read_chosen(inputs: Inputs, plan: Plan, ranges: Ranges) -> set[tuple[int, tuple[Any, ...]]]:
    return {
        (row["feature"], _way(row))
        for stage in inputs_of(plan, "scores")
        for row in read_rows(inputs, stage, "selected_explanations", _SELECTED, ranges)
    }


def read_places(inputs: Inputs, plan: Plan, ranges: Ranges) -> dict[int, Row]:
    """Feature -> x, y and topic of the first of its texts on the first map that has one."""
    found: dict[int, Row] = {}
    for stage in inputs_of(plan, "map"):
        topics = {
            row["cluster"]: row["topic"]
            for row in read_rows(inputs, stage, "explanation_clusters", ("cluster", "topic"))
        }
        for row in read_rows(inputs, stage, "explanation_map", ("feature", "cluster", "x", "y"), ranges):
            found.setdefault(row["feature"], {"x": row["x"], "y": row["y"], "topic": topics[row["cluster"]]})
    return found


# ---------------------------------------------------------------- units of other models


def read_partners(inputs: Inputs, plan: Plan, ranges: Ranges) -> ByUnit:
    """Unit -> its best buddies in every other model that are above the null, largest r first."""
    found: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    units, model = units_of_plan(plan), plan.stage.subject
    for stage in inputs_of(plan, "partners"):
        for own, other in (("a", "b"), ("b", "a")):
            columns = [f"{name}_{side}" for side in "ab" for name in ("model", "sae", "site", "unit")]
            for row in _rows(inputs, stage, "rosetta_buddies", (*columns, "r", "is_below_null"), f"unit_{own}", ranges):
                is_ours = row[f"model_{own}"] == model and same_units(units, row[f"site_{own}"], row[f"sae_{own}"])
                if is_ours and not row["is_below_null"]:
                    partner = {name: row[f"{name}_{other}"] for name in ("model", "sae", "site", "unit")}
                    found[row[f"unit_{own}"]][partner["model"]].append({**partner, "r": row["r"]})
    most = int(str(plan.stage.params["partners"]))
    return {
        unit: sorted((row for rows in of.values() for row in sorted(rows, key=_strength)[:most]), key=_strength)
        for unit, of in found.items()
    }


def _strength(row: Row) -> tuple[float, str, str, int]:
    return -row["r"], row["model"], row["site"], row["unit"]
