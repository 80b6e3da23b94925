"""Maps of explanations that are made while the driver dies: the tables are those of a quiet run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults import victim
from tests.faults.explained import STAGES, Explained

pytestmark = pytest.mark.slow

SPEC = tuple(STAGES)
READ = tuple(name for name in SPEC if STAGES[name]["kind"] != "map_explanations")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Explained:
    return Explained(tmp_path_factory.mktemp("case") / "lake", READ)


@pytest.fixture(scope="module")
def quiet(case: Explained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a run that nothing happened to."""
    lake = case.begin(tmp_path_factory.mktemp("quiet") / "lake")
    report = lake.run(case.spec(SPEC))
    assert report.exit_code == 0, report.failures
    points = lake.table(report, "explanation_map").to_pylist()
    clusters = lake.table(report, "explanation_clusters").to_pylist()
    assert len({row["stage"] for row in points}) == 2 and len(points) > 30 and len(clusters) == 3 + 4
    return lake.files()


@pytest.mark.parametrize(
    ("key", "nth", "when"),
    [
        (r"explanation_map/.*parquet$", 1, "before"),
        (r"explanation_map/.*parquet$", 1, "after"),
        (r"explanation_clusters/.*parquet$", 1, "before"),
        (r"explanation_clusters/.*parquet$", 2, "after"),
        (r"shards/\d+\.done\.json$", 1, "before"),
        (r"shards/\d+\.done\.json$", 2, "after"),
        (r"published\.json$", 1, "before"),
        (r"published\.json$", 1, "after"),
    ],
)
def test_a_driver_that_dies_leaves_maps_that_go_on_to_the_same_tables(
    case: Explained, quiet: dict[str, str], tmp_path: Path, key: str, nth: int, when: str
) -> None:
    lake = case.begin(tmp_path / "lake")
    code, _, err = victim.finish(victim.start(lake.uri, case.spec(SPEC), die={"key": key, "nth": nth, "when": when}))
    assert code == victim.DIED, err
    assert lake.files() != quiet
    assert lake.run(case.spec(SPEC)).exit_code == 0
    assert lake.files() == quiet


def test_a_driver_killed_at_random_moments_ends_with_the_same_maps(
    case: Explained, quiet: dict[str, str], tmp_path: Path
) -> None:
    rng, lake = random.Random(3), case.begin(tmp_path / "lake")
    for _ in range(3):
        process = victim.start(lake.uri, case.spec(SPEC))
        time.sleep(rng.uniform(3, 8))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
    assert lake.run(case.spec(SPEC)).exit_code == 0
    assert lake.files() == quiet
