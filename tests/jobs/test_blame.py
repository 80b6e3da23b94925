"""Errors say which of the stages that run together they are about, or none if all would meet them."""

from __future__ import annotations

import pytest

from jobs.blame import blaming
from schemas.errors import (
    BadSae,
    BadSpec,
    MiclipError,
    ModelUnreachable,
    OutOfMemory,
    StoreDenied,
    StoreFull,
    StoreUnreachable,
)
from schemas.plans import Plan, Round, StageSpec


def make_plan(site: str) -> Plan:
    stage = StageSpec(kind="describe", method=1, subject="demo:vit", output="auroc", params={"site": site})
    return Plan(stage=stage, rounds=(Round(name="map", rows=1, shard_rows=1),), worker="describe")


ONE, OTHER = make_plan("resid_post.0"), make_plan("resid_post.1")


@pytest.mark.parametrize("error", [BadSae("no"), BadSpec("no")])
def test_what_goes_wrong_with_some_stages_is_theirs(error: MiclipError) -> None:
    with pytest.raises(type(error)) as found, blaming(ONE, OTHER):
        raise error
    assert found.value is error and error.stages == (ONE.digest, OTHER.digest)


def test_whoever_is_nearer_to_the_error_knows_better() -> None:
    with pytest.raises(BadSae) as found, blaming(ONE, OTHER), blaming(OTHER):
        raise BadSae("no")
    assert found.value.stages == (OTHER.digest,)


@pytest.mark.parametrize("kind", [OutOfMemory, StoreUnreachable, StoreDenied, StoreFull, ModelUnreachable])
def test_nobody_is_blamed_for_the_device_or_the_store(kind: type[MiclipError]) -> None:
    with pytest.raises(kind) as found, blaming(ONE):
        raise kind("no")
    assert found.value.stages == ()


def test_errors_that_are_not_ours_pass() -> None:
    with pytest.raises(ZeroDivisionError), blaming(ONE):
        raise ZeroDivisionError
