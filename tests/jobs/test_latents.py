"""Which features are explained, and on which of them alphas are compared."""

from __future__ import annotations

import pytest

from jobs.latents import Feature, choose, choose_validation

DEAD = (0, 3)
FEATURES = [Feature(number, number not in DEAD, None, 1.0) for number in range(12)]


def numbers(features: list[Feature]) -> list[int]:
    return [feature.number for feature in features]


def test_alphas_are_compared_on_the_first_active_features() -> None:
    assert numbers(choose_validation(FEATURES, 4)) == [1, 2, 4, 5]


def test_alphas_are_never_compared_on_more_than_half_of_the_active_features() -> None:
    there = numbers(choose(FEATURES, (), None))
    assert numbers(choose_validation(FEATURES, 500)) == there[:5] and len(there) == 10


@pytest.mark.parametrize(("active", "expected"), [(0, 0), (1, 1), (2, 1), (3, 1)])
def test_one_feature_is_enough_to_compare_alphas_on(active: int, expected: int) -> None:
    some = [Feature(number, number < active, None, 1.0) for number in range(4)]
    assert len(choose_validation(some, 500)) == expected
