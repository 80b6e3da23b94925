"""Import_sae cells to plans: one stage per foreign SAE, named by the content of its files and not by where they are."""

from __future__ import annotations

from pydantic import JsonValue

from jobs.activations import get_facts
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_files import WEIGHTS
from jobs.sae_measurement import make_measurement
from jobs.sae_tokens import SiteTokens, find_tokens
from schemas.base import digest
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec
from schemas.refs import SaeRef
from schemas.sae_specs import ImportSaeSpec

METHOD = 1
TABLES: dict[str, dict[str, tuple[str, ...]]] = {"sae": {"import": ()}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"sae": (WEIGHTS,)}


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """Two plans per SAE: its import, and its measurement.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec, UnknownSite: the spec asks for tokens that are not there.
    """
    spec = cell.spec
    assert isinstance(spec, ImportSaeSpec)
    facts = get_facts(cell, known)
    tokens = next(iter(find_tokens(cell, known)))
    refs = [SaeRef.parse(text) for text in dict.fromkeys(spec.saes)]
    imported = [_plan(facts, tokens, ref, known.files[ref.location]) for ref in refs]
    return (*imported, *(make_measurement(spec, facts, tokens, plan.stage) for plan in imported))


def _plan(facts: ModelFacts, tokens: SiteTokens, ref: SaeRef, sha256: str) -> Plan:
    params: dict[str, JsonValue] = {"site": tokens.site, "format": ref.source, "sha256": sha256}
    stage = StageSpec(kind="import_sae", method=METHOD, subject=facts.model, output="sae", params=params)
    return Plan(
        stage=stage,
        rounds=(Round(name="import", rows=1, shard_rows=1),),
        worker=f"import_sae {digest(params)}",  # not shared: a file that cannot be read must not fail the others
        effort={
            "location": ref.location,
            "width": tokens.width(facts),
        },
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """Reading a file; how large the SAE is, it says itself."""
    return Estimate(worker_memory=LIBRARY_BYTES)
