"""Precision of located units by hand."""

from __future__ import annotations

import pytest

from miclip_core.evaluate.localisation import Precision, precision_at

TRUTH = {0: "red", 1: "red", 2: "red", 3: "star", 4: "blue"}


def test_precision_is_the_share_of_places_with_a_unit_that_stands_for_the_concept() -> None:
    """Unit 9 stands for nothing; unit 3 stands for star, also where it is found for red."""
    located = {"red": [1, 9, 3, 0], "star": [3], "blue": [9, 8]}
    found = precision_at(located, TRUTH, {"red", "star", "blue"}, tau=4)
    assert found == {"blue": Precision(0, 0.25), "red": Precision(0.5, 0.75), "star": Precision(0.25, 0.25)}
    assert list(found) == ["blue", "red", "star"]


def test_what_is_behind_place_tau_does_not_count() -> None:
    found = precision_at({"red": [1, 9, 0, 2]}, TRUTH, {"red"}, tau=2)
    assert found == {"red": Precision(0.5, 1.0)}


def test_a_concept_without_units_or_not_offered_is_not_judged_and_one_without_a_list_is_wrong() -> None:
    assert precision_at({"green": [1]}, TRUTH, {"green", "star"}, tau=5) == {"star": Precision(0, 0.2)}


def test_the_ceiling_is_reached_by_lists_of_all_units_of_each_concept() -> None:
    located = {"red": [0, 1, 2, 9, 8], "star": [3, 9], "blue": [4]}
    assert all(p.value == p.ceiling for p in precision_at(located, TRUTH, set(located), tau=5).values())


def test_lists_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="tau is 0"):
        precision_at({}, TRUTH, {"red"}, 0)
    with pytest.raises(ValueError, match="'red': a unit is twice"):
        precision_at({"red": [1, 1]}, TRUTH, {"red"}, 5)
