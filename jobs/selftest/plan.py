"""Selftest cells to plans: per variant one stage, a round of row ranges and a round that adds them up."""

from __future__ import annotations

from jobs.protocol import Cell, Estimate, Known
from schemas.plans import Plan, Round, StageSpec
from schemas.selftest_specs import SelftestSpec

METHOD = 1
TABLES = {"rows": {"map": ("selftest",), "merge": ("selftest_summary",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"rows": ()}


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """One plan per variant; variants are siblings."""
    spec = cell.spec
    assert isinstance(spec, SelftestSpec)
    inputs = {f"{name}.{i}": plan.digest for name, plans in cell.reads.items() for i, plan in enumerate(plans)}
    effort = {
        name: value
        for name, value in spec.model_dump(mode="json").items()
        if spec.roles()[name] == "effort" and name not in ("resources", "shard_rows", "gang")
    }
    return tuple(
        Plan(
            stage=StageSpec(
                kind="selftest",
                method=METHOD,
                subject=spec.subject if cell.model is None else cell.model,
                output="rows",
                params={"rows": spec.rows, "seed": spec.seed, "nan_rows": list(spec.nan_rows), "variant": variant},
                inputs=inputs,
            ),
            rounds=(
                Round(name="map", rows=spec.rows, shard_rows=spec.shard_rows),
                Round(name="merge", rows=1, shard_rows=1),
            ),
            worker=f"selftest {spec.subject if cell.model is None else cell.model}",
            effort=effort,
            gang=spec.gang,
        )
        for variant in spec.variants
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """Bytes of the rows; nothing else costs anything."""
    return Estimate(bytes=plan.rounds[0].rows * 40)
