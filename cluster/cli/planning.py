"""What a plan says in numbers: states, shards and estimates of stages, cells and the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from cluster.amounts import some
from cluster.cells import CellPlans, cells_read
from cluster.cost import Cost, Part, Terms, cost_of, load_rates
from cluster.ledger import find_published, stored_plan
from cluster.planned import PlannedPipeline, stage_state, title
from cluster.runs import StageState
from cluster.stores import Store, ask_many
from cluster.works import group_siblings
from jobs.kinds import get_kind
from schemas.plans import Plan, Resources

_SUMS = ("shards", "shards_left", "bytes")
HOURS = ("gpu_hours", "cpu_hours")


def make_report(planned: PlannedPipeline, store: Store, terms: Terms) -> dict[str, Any]:
    """Every stage with its state and estimate, what cells cost, those that cannot be planned yet, and totals.

    Hours and money are of what is left, by what past runs in the store took; `null` where none tells.
    """
    rates = load_rates(store)
    everything = list(_look_up(planned.plans(), store))
    works = group_siblings([(plan, resources) for _, plan, resources in everything])
    shared = {plan.digest: work.key for work in works for plan in work.plans}
    stages, parts = [], defaultdict[str, list[Part]](list)
    for state, plan, resources in everything:
        cell = state.cell
        estimate = get_kind(plan.stage.kind).estimate(plan, planned.known)
        part = Part(shared[plan.digest], plan, resources, estimate, state.shards_done)
        parts[cell].append(part)
        stages.append(
            {
                "cell": cell,
                "stage": plan.digest,
                "kind": plan.stage.kind,
                "subject": plan.stage.subject,
                "output": plan.stage.output,
                "detail": state.detail,
                "state": state.state,
                "error": state.error,
                "shards": state.shards,
                "shards_left": state.shards - state.shards_done,
                "rounds": len(plan.rounds),
                "forward": shared[plan.digest],
                "workers": _workers(plan, resources),
                **estimate._asdict(),
                **_numbers(cost_of([part], rates, terms)),
            }
        )
    by_stage: dict[str, list[CellPlans]] = defaultdict(list)
    for c in planned.cells:
        by_stage[c.cell.name].append(c)
    missing = [
        {"cell": title(c), "why": c.error, "refused": c.refusal is not None, "never": _never(c, by_stage)}
        for c in planned.cells
        if not c.plans
    ]
    return {
        "pipeline": planned.spec.name,
        "store": store.uri,
        "limited": planned.limited,
        "stages": stages,
        "cells": {cell: _numbers(cost_of(of, rates, terms)) for cell, of in parts.items()},
        "not_planned": missing,
        "total": _total(stages) | _words(cost_of(chain.from_iterable(parts.values()), rates, terms)),
    }


def _look_up(
    plans: Sequence[tuple[str, Plan, Resources]], store: Store
) -> Iterator[tuple[StageState, Plan, Resources]]:
    """Where each stage stands, and its plan; of one that was begun as it was begun, for its finished shards are of that cut."""
    published = find_published(store, {plan.digest for _, plan, _ in plans})

    def look_up(item: tuple[str, Plan, Resources]) -> tuple[StageState, Plan, Resources]:
        cell, plan, resources = item
        state = stage_state(store, cell, plan, published=plan.digest in published)
        is_begun = state.shards_done and plan.digest not in published
        return state, stored_plan(store, plan) if is_begun else plan, resources

    return (found for _, found in ask_many(look_up, plans))


def _never(unplanned: CellPlans, by_stage: Mapping[str, list[CellPlans]]) -> bool:
    """Whether a cell without plans will have none later either, for what it is itself or for what it reads."""
    if unplanned.refusal is not None:
        return True
    return any(not read.plans and _never(read, by_stage) for read in cells_read(unplanned.cell, by_stage))


def _workers(plan: Plan, resources: Resources) -> int:
    return min(resources.workers, max((r.n_shards for r in plan.rounds), default=0))


def _numbers(cost: Cost) -> dict[str, Any]:
    """Hours and money, or null where no past run, or no price, tells all of them."""
    hours = dict.fromkeys(HOURS) if cost.unknown else {name: getattr(cost, name) for name in HOURS}
    return {**hours, "money": None if cost.unknown or cost.unpriced else cost.money}


def _words(cost: Cost) -> dict[str, Any]:
    """Hours and money as far as they are known, what they rest on, and what they leave out."""
    kinds = {name: sorted(getattr(cost, name)) for name in ("borrowed", "unknown", "unpriced")}
    return {**{name: getattr(cost, name) for name in (*HOURS, "money")}, "rests_on": dict(cost.rests_on), **kinds}


def _total(stages: list[dict[str, Any]]) -> dict[str, Any]:
    left = [stage for stage in stages if stage["state"] != "cached"]
    return {
        "stages": len(stages),
        "cached": len(stages) - len(left),
        "to_do": len(left),
        "shards_left": sum(s["shards_left"] for s in left),
        "flops": _flops(left),
        "bytes": sum(s["bytes"] for s in left),
    }


def lines_of(report: dict[str, Any], by_stage: bool) -> list[dict[str, Any]]:
    """One line per cell (or stage) for people; what sibling stages share counts once."""
    if by_stage:
        lines = [
            {
                **s,
                "name": f"{s['cell']}  {s['output']} {s['detail']}".rstrip(),
                "flops": s["flops"] + s["shared_flops"],
                "memory": s["memory"] + s["worker_memory"],
            }
            for s in report["stages"]
        ]
    else:
        lines = [
            _line_of(cell, stages) | report["cells"][cell]
            for cell, stages in _grouped(report["stages"], "cell").items()
        ]
    empty = dict.fromkeys((*_SUMS, "images", "flops", "memory"), 0) | dict.fromkeys((*HOURS, "money"))
    states = {True: "cannot be planned", False: "not inspected yet"}
    return lines + [{"name": m["cell"], "state": states[m["never"]], **empty} for m in report["not_planned"]]


def device_hours(numbers: Mapping[str, Any]) -> str:
    """1.5 and 0 -> 1.50 GPU-h; `?` where no past run tells, `-` where nothing is left."""
    if numbers["gpu_hours"] is None:
        return "?"
    found = [(numbers["gpu_hours"], "GPU-h"), (numbers["cpu_hours"], "CPU-h")]
    return (
        ", ".join(f"{hours:,.2f} {unit}" if hours >= 0.01 else f"<0.01 {unit}" for hours, unit in found if hours) or "-"
    )


def cost_notes(total: dict[str, Any], priced: bool) -> Iterator[str]:
    """What the hours of a plan rest on, and what they leave out, in sentences."""
    if past := [f"{kind} {some(shards, 'shard')}" for kind, shards in total["rests_on"].items() if shards]:
        yield f"busy hours are what past runs in this store took, at least: {', '.join(past)}; waiting is not in them"
    if stated := [kind for kind, shards in total["rests_on"].items() if not shards]:
        yield f"busy hours of {', '.join(stated)} are FLOPs at the TFLOP/s that were given"
    if total["borrowed"]:
        yield f"{', '.join(total['borrowed'])}: not all of it was run before; what other models took stands for it"
    if total["unknown"]:
        yield f"{', '.join(total['unknown'])}: no past run tells how long it takes, so it is in no sum; a run with --limit would"
    if priced and total["unpriced"]:
        yield f"{', '.join(total['unpriced'])}: no price is given, so it is in no sum of costs"


def _line_of(cell: str, stages: list[dict[str, Any]]) -> dict[str, Any]:
    cached = sum(stage["state"] == "cached" for stage in stages)
    failed = sum(stage["state"] == "failed" for stage in stages)
    if cached == len(stages):
        state = "cached"
    else:
        parts = [(cached, "cached"), (failed, "failed"), (len(stages) - cached - failed, "to do")]
        state = "to do" if not cached and not failed else "to do: " + ", ".join(f"{n} {w}" for n, w in parts if n)
    sums = {key: sum(stage[key] for stage in stages) for key in _SUMS}
    name = cell if len(stages) == 1 else f"{cell}  ({len(stages)} stages)"
    most = {"images": max(stage["images"] for stage in stages), "flops": _flops(stages), "memory": _memory(stages)}
    return {"name": name, "state": state, **sums, **most}


def _flops(stages: list[dict[str, Any]]) -> int:
    """Of stages some of which are done together by one worker."""
    shared = sum(max(s["shared_flops"] for s in group) for group in _grouped(stages, "forward").values())
    return sum(s["flops"] for s in stages) + shared


def _memory(stages: list[dict[str, Any]]) -> int:
    """Of the largest worker: its stages are open side by side, other workers come before, after or beside it."""
    groups = _grouped(stages, "forward").values()
    return max(sum(s["memory"] for s in group) + max(s["worker_memory"] for s in group) for group in groups)


def _grouped(stages: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for stage in stages:
        groups[stage[key]].append(stage)
    return groups
