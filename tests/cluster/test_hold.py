"""Whoever waits for a sweep can be stopped, waits no longer than they say, and leaves a sweep alone that has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.hold import GC, Holds, load_holds
from cluster.lease import find_term, take
from cluster.stores import Store, make_store
from schemas.errors import Interrupted
from tests.paces import Time

NAME = "0" * 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def test_whoever_waits_for_a_dead_sweep_hears_of_a_stop(store: Store) -> None:
    take(store, GC, Time().pace())
    time = Time()

    def check() -> None:
        if time.slept >= 5:
            raise Interrupted("Ctrl-C")

    with pytest.raises(Interrupted):
        Holds(store, "p-00001", time.pace()).hold({NAME}, check)
    assert time.slept == 5 and load_holds(store, "p-00001") == {NAME}


def test_a_sweep_counts_as_dead_after_the_patience_of_the_night_or_its_own_if_that_is_longer(store: Store) -> None:
    take(store, GC, Time().pace()._replace(patience=10))
    time = Time()
    Holds(store, "p-00001", time.pace()._replace(patience=300)).hold({NAME})
    assert 300 <= time.slept <= 310
    term = find_term(store, GC)
    assert term is not None and (term.number, term.ended) == (2, True)


def test_a_sweep_that_ends_while_somebody_waits_is_followed_by_no_other(store: Store) -> None:
    sweep = take(store, GC, Time().pace())
    time = Time(during=sweep.release)
    Holds(store, "p-00001", time.pace()).hold({NAME})
    term = find_term(store, GC)
    assert term is not None and (term.number, time.slept) == (1, 5)
