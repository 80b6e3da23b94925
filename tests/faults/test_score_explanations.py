"""Explanations that are scored while the driver dies: the tables are those of a quiet run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults import victim
from tests.faults.explained import Explained
from tests.lakes import Lake

pytestmark = pytest.mark.slow

READ = ("shown", "others", "texts")
SPEC = (*READ, "scores")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Explained:
    return Explained(tmp_path_factory.mktemp("case") / "lake", READ)


@pytest.fixture(scope="module")
def quiet(case: Explained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a run that nothing happened to."""
    lake = case.begin(tmp_path_factory.mktemp("quiet") / "lake")
    report = lake.run(case.spec(SPEC))
    assert report.exit_code == 0, report.failures
    rows = lake.table(report, "explanation_scores").to_pylist()
    assert len(rows) == 12 * 3 and len({row["text"] for row in rows}) > 6 and any(row["iou"] for row in rows)
    assert len({row["feature"] for row in lake.table(report, "selected_explanations").to_pylist()}) > 6
    return lake.files()


@pytest.mark.parametrize(
    ("key", "nth", "when"),
    [
        (r"explanation_iou/.*parquet$", 2, "before"),
        (r"explanation_clip/.*parquet$", 3, "after"),
        (r"explanation_synthetic/.*parquet$", 4, "before"),
        (r"shards/\d+\.done\.json$", 5, "before"),
        (r"shards/\d+\.done\.json$", 15, "after"),
        (r"artifacts/.*labels", 2, "after"),
        (r"explanation_scores/.*parquet$", 1, "after"),
        (r"selected_explanations/.*parquet$", 1, "before"),
        (r"published\.json$", 4, "after"),
    ],
)
def test_a_driver_that_dies_leaves_scores_that_go_on_to_the_same_tables(
    case: Explained, quiet: dict[str, str], tmp_path: Path, key: str, nth: int, when: str
) -> None:
    lake = case.begin(tmp_path / "lake")
    code, _, err = victim.finish(victim.start(lake.uri, case.spec(SPEC), die={"key": key, "nth": nth, "when": when}))
    assert code == victim.DIED, err
    assert lake.files() != quiet
    assert lake.run(case.spec(SPEC)).exit_code == 0
    assert lake.files() == quiet


def test_a_driver_killed_at_random_moments_ends_with_the_same_tables(
    case: Explained, quiet: dict[str, str], tmp_path: Path
) -> None:
    rng, lake = random.Random(7), case.begin(tmp_path / "lake")
    for _ in range(3):
        process = victim.start(lake.uri, case.spec(SPEC))
        time.sleep(rng.uniform(5, 12))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
    assert lake.run(case.spec(SPEC)).exit_code == 0
    assert lake.files() == quiet


def test_what_was_done_before_the_kill_is_not_done_again(
    case: Explained, quiet: dict[str, str], tmp_path: Path
) -> None:
    """Quietly there are a shard per measure and bucket of features; those whose mark is there are not asked for again."""
    lake, fresh = case.begin(tmp_path / "lake"), case.begin(tmp_path / "fresh")
    die = {"key": r"shards/\d+\.done\.json$", "nth": 9, "when": "after"}
    assert victim.finish(victim.start(lake.uri, case.spec(SPEC), die=die))[0] == victim.DIED
    left, whole = (_shards(one, case) for one in (lake, fresh))
    assert 0 < left < whole


def _shards(lake: Lake, case: Explained) -> int:
    """Shards of scoring that a run does."""
    assert lake.run(case.spec(SPEC)).exit_code == 0
    return lake.count("shard_done", "score_explanations")
