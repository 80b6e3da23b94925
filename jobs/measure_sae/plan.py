"""The planning side of measurements; their plans are made beside the SAEs that they are of, in `jobs/sae_measurement.py`."""

from __future__ import annotations

from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_measurement import count_held_out
from schemas.plans import Plan

TABLES: dict[str, dict[str, tuple[str, ...]]] = {"summary": {"measure": ("sae_summary",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"summary": ()}
SHARED_RUNS = 3
"""As the model is, with zeros and with the mean; one more for each SAE."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """None: no spec is of this kind."""
    return ()


def estimate(plan: Plan, known: Known) -> Estimate:
    """The held-out images, and what the model computes on them."""
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    images = count_held_out(plan)
    return Estimate(
        images=images,
        flops=images * facts.flops,
        shared_flops=images * SHARED_RUNS * facts.flops,
        worker_memory=LIBRARY_BYTES + 8 * facts.params,
    )
