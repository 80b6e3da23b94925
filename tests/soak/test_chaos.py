"""The soak notices what it looks for, and draws the same faults for the same seed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cluster.stores.base import Store, make_store
from tests.published import publish_numbers, run_spec
from tests.soak.chaos import Nights, Runs, check_damage, check_lake, contents, problems_of, write_script


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return publish_numbers(tmp_path_factory.mktemp("quiet"))


@pytest.fixture
def store(quiet: Store, tmp_path: Path) -> Store:
    """The same lake once more, to be spoiled."""
    shutil.copytree(quiet.uri, tmp_path / "lake")
    return make_store(str(tmp_path / "lake"))


def first_part(store: Store) -> str:
    return store.list("tables/selftest/")[0]


def test_a_lake_like_the_undisturbed_one_passes(quiet: Store, store: Store) -> None:
    check_lake(store, contents(quiet), set())
    check_damage(store, random.Random(1), print)
    check_lake(store, contents(quiet), set())


@pytest.mark.parametrize("how", ["flipped", "gone", "doubled", "never planted", "another table"])
def test_whatever_is_not_as_undisturbed_fails(quiet: Store, store: Store, how: str) -> None:
    key, planted = first_part(store), set()
    data = store.get(key)
    match how:
        case "flipped":
            store.replace(key, data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "gone":
            store.delete(key)
        case "doubled":
            store.create(key.replace("part-", "part-9"), data)
        case "never planted":
            planted = {"tables/selftest/nothing.parquet"}
        case _:
            assert run_spec(store, "kind: selftest\nname: more\nrows: 10\n").exit_code == 0
    with pytest.raises(AssertionError):
        check_lake(store, contents(quiet), planted)


def test_damage_is_named_by_its_key(store: Store) -> None:
    key = first_part(store)
    store.replace(key, store.get(key)[:-1])
    assert problems_of(store) == [key]


@pytest.mark.parametrize("faults", [Runs.faults, Nights.faults])
def test_a_script_follows_from_its_seed_alone(faults: tuple[str, ...]) -> None:
    one, two, other = (write_script(random.Random(seed), faults, 4.0) for seed in ("7", "7", "8"))
    assert one == two != other
    drawn = [step for seed in range(40) for step in write_script(random.Random(seed), faults, 4.0)]
    assert {step.fault for step in drawn} == set(faults)
