"""Features that are explained while things go wrong: the tables are those of a quiet run, and one bad stage spoils no other."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.pipeline_spec import PipelineSpec
from tests.faults import victim
from tests.faults.conftest import Place
from tests.faults.test_sameness import ShuffledExecutor
from tests.jobs.explain.lake_of_texts import make_model, make_sae, make_spec, publish_sae
from tests.lakes import Lake

pytestmark = pytest.mark.slow


class Case:
    """A model and an SAE, and what is asked: alphas are compared, then every method explains, in shards of four features."""

    def __init__(self, folder: Path) -> None:
        self._model = make_model(folder / "vlm")
        self._sae = publish_sae(Lake(folder / "any"), self._model, make_sae())

    def begin(self, store: str) -> Lake:
        """A lake in which there is nothing but the SAE."""
        lake = Lake(store)
        publish_sae(lake, self._model, make_sae())
        return lake

    def spec(self, **changes: Any) -> PipelineSpec:
        """What every run asks for, but for some changes."""
        auto = {"alpha": "auto", "alpha_grid": [0.5, 2], "validation": 6, "direction": ["sae", "random"]}
        return make_spec(self._model, self._sae, **{**auto, "shard_features": 4, **changes})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def quiet(case: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a run that nothing happened to."""
    lake = case.begin(str(tmp_path_factory.mktemp("quiet") / "lake"))
    report = lake.run(case.spec())
    assert report.exit_code == 0, report.failures
    assert len(lake.table(report, "explanations")) == 11 * 5 and len(lake.table(report, "explanation_alphas")) == 4
    return lake.files()


@pytest.mark.parametrize(
    ("key", "nth", "when"),
    [
        (r"explanations/.*parquet$", 1, "before"),
        (r"explanations/.*parquet$", 3, "after"),
        (r"shards/\d+\.done\.json$", 12, "after"),
        (r"trials", 3, "before"),
        (r"explanation_alphas/.*parquet$", 2, "before"),
        (r"published\.json$", 6, "before"),
    ],
)
def test_a_driver_that_dies_leaves_texts_that_go_on_to_the_same_tables(
    case: Case, quiet: dict[str, str], tmp_path: Path, key: str, nth: int, when: str
) -> None:
    lake = case.begin(str(tmp_path / "lake"))
    code, _, err = victim.finish(victim.start(lake.uri, case.spec(), die={"key": key, "nth": nth, "when": when}))
    assert code == victim.DIED, err
    assert lake.run(case.spec()).exit_code == 0
    assert lake.files() == quiet


def test_a_driver_killed_at_random_moments_ends_with_the_same_tables(
    case: Case, quiet: dict[str, str], tmp_path: Path
) -> None:
    rng, lake = random.Random(5), case.begin(str(tmp_path / "lake"))
    for _ in range(3):
        process = victim.start(lake.uri, case.spec())
        time.sleep(rng.uniform(6, 16))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
    assert lake.run(case.spec()).exit_code == 0
    assert lake.files() == quiet


def test_two_drivers_at_once_end_in_one_set_of_tables(case: Case, quiet: dict[str, str], tmp_path: Path) -> None:
    lake = case.begin(str(tmp_path / "lake"))
    both = [victim.start(lake.uri, case.spec()) for _ in range(2)]
    for process in both:
        victim.finish_well(process)
    assert lake.files() == quiet


def test_three_workers_in_any_order_change_no_byte(case: Case, quiet: dict[str, str], tmp_path: Path) -> None:
    store = case.begin(str(tmp_path / "lake")).uri
    lake = Lake(store, ShuffledExecutor(store, 3, seed=5))
    assert lake.run(case.spec()).exit_code == 0
    assert lake.files() == quiet


def test_texts_in_a_bucket_are_those_in_a_folder(case: Case, quiet: dict[str, str], bucket: Place) -> None:
    lake = case.begin(bucket.store("lake"))
    assert lake.run(case.spec()).exit_code == 0
    assert lake.files() == quiet


def test_a_stage_that_cannot_be_done_leaves_the_others_as_they_are(case: Case, tmp_path: Path) -> None:
    """A question that holds a place for one more image fails where it is asked; all that ask others are published."""
    lake = case.begin(str(tmp_path / "lake"))
    report = lake.run(case.spec(alpha=1, steering_prompt="What is in <image>?"))
    assert report.exit_code == 1
    failed = [failure for failure in report.failures if "explanations" in failure]
    assert len(failed) == 2 and all("BadPrompt" in failure for failure in failed), report.failures
    states = {state.detail: state.state for state in report.state.stages if state.kind == "explain"}
    assert sorted(states.values()) == ["failed", "failed", "published", "published", "published"], states
    assert all(("steering" in detail) == (state == "failed") for detail, state in states.items()), states


def test_an_alpha_that_no_number_can_hold_is_a_status_of_every_row_and_fails_no_stage(
    case: Case, tmp_path: Path
) -> None:
    lake = case.begin(str(tmp_path / "lake"))
    report = lake.run(case.spec(alpha=[1e38, 1], direction="sae"))
    assert report.exit_code == 0, report.failures
    rows = lake.table(report, "explanations").to_pylist()
    lost = [row for row in rows if row["status"] == "not_finite"]
    assert len(rows) == 11 * 5 and len(lost) == 11 * 2 and {row["alpha_asked"] for row in lost} == {"1e+38"}


def test_two_ray_workers_give_the_tables_of_one(case: Case, quiet: dict[str, str], tmp_path: Path) -> None:
    lake = case.begin(str(tmp_path / "lake"))
    process = victim.start(lake.uri, case.spec(resources={"workers": 2}), executor="ray", cpus=2)
    victim.finish_well(process)
    assert lake.files() == quiet
