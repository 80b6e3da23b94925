"""Units that models share stand for the same planted value, far more often than units that were permuted; place alone is told apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planted_rosetta import Setting, mine, same
from tests.planted_rosetta_tables import Run, above, cliques_by_size, strong

PAIRS = [
    ("demo:clip-p8", "demo:clip-p8-b"),
    ("demo:clip-p8", "demo:clip-p16"),
    ("demo:clip-p8-b", "demo:clip-p16"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three CLIPs on 400 images; what units stand for is judged on others."""
    folder = tmp_path_factory.mktemp("rosetta")
    models = ("demo:clip-p8", "demo:clip-p8-b", "demo:clip-p16")
    mine(folder, "three", Setting(images=400, models=models, changes={"anchors": ["demo:clip-p8"]}))
    return Run(folder, "three")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_strong_buddies_stand_for_the_same_value_and_permuted_ones_do_not(run: Run) -> None:
    """Over three pairs and K = 5 .81 of the buddies above r .7, and .96 of those that stand for a value; permuted .16 and .25."""
    assert len(run.together(PAIRS, lambda e: strong(e).r)) > 600
    assert run.together(PAIRS, lambda e: run.same(strong(e))).mean() >= 0.72
    assert run.together(PAIRS, lambda e: run.shuffled(strong(e))).mean() <= 0.3
    assert run.together(PAIRS, lambda e: run.same(run.both_selective(strong(e)))).mean() >= 0.88
    assert run.together(PAIRS, lambda e: run.shuffled(run.both_selective(strong(e)))).mean() <= 0.45


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_buddies_of_a_higher_r_are_purer(run: Run) -> None:
    """All of them .62, above .7 .81."""
    everything, high = run.together(PAIRS, run.same), run.together(PAIRS, lambda e: run.same(strong(e)))
    assert high.mean() >= everything.mean() + 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cliques_of_three_selective_units_stand_for_one_value(run: Run) -> None:
    """Of those that share no unit .98; of all of these .62, and .01 when units are permuted."""
    count, lows, whole, selective, by_chance = cliques_by_size(run, 5)[3]
    assert count > 500 and len(lows) > 100 and len(selective) > 30
    assert selective.mean() >= 0.85
    assert whole.mean() >= 0.4 and by_chance <= 0.06


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_units_that_answer_to_a_place_owe_their_r_to_it_and_others_do_not(run: Run) -> None:
    """Where place explains half of both units the median of place_r is .60, and .46 of the buddies are below the null; where it
    explains a tenth at most, 99 % of place_r are within .09, and none is below."""
    edges = run.mined.edges(*PAIRS[0])
    least = np.minimum(run.truth.place_U[edges.a], run.truth.place_U[edges.b])
    of_place, others = edges.where(least > 0.5), edges.where(least < 0.1)
    assert len(of_place.r) >= 15 and np.median(of_place.place_r) >= 0.4
    assert np.quantile(np.abs(others.place_r), 0.99) <= 0.15
    assert of_place.below.mean() >= 0.2 and others.below.mean() <= 0.03
    assert same(run.truth.value_U, above(edges)).mean() >= 0.45


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_strong_buddies_that_owe_their_r_to_place_are_less_pure(run: Run) -> None:
    """Of those with a place_r above .25 .36 tell the same value, of the others .82."""
    owed = run.together(PAIRS, lambda e: strong(e).place_r) > 0.25
    equal = run.together(PAIRS, lambda e: run.same(strong(e)))
    assert owed.sum() >= 15
    assert equal[owed].mean() <= equal[~owed].mean() - 0.2
