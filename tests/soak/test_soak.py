"""Half an hour of random faults on small runs, in a folder and in a bucket: afterwards every table is as it should be."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.spec_file import parse_spec
from schemas.job_files import as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.selftest_specs import SelftestSpec
from tests.faultproxy import FaultProxy
from tests.lakes import Lake, export, make_extract
from tests.soak.chaos import Nights, Runs, Tally

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("MICLIP_SOAK_MINUTES", "30"))
SEED = int(os.environ.get("MICLIP_SOAK_SEED", "0"))
ALONE = int(os.environ.get("MICLIP_SOAK_LAKE", "0"))
"""The number of the one lake to disturb; 0 goes from lake to lake until the time is over."""
SEEDS = 3
NIGHT = """\
kind: pipeline
name: night
stages:
  first: {kind: selftest, rows: 48, shard_rows: 8, variants: [a, b], seed: 0, sleep_ms: 400}
  second: {kind: selftest, reads: first, rows: 24, shard_rows: 8, sleep_ms: 400}
  beside: {kind: selftest, subject: beside, rows: 16, shard_rows: 8, seed: 9}
"""


class Scenario(NamedTuple):
    """What runs, where its lake lies, and what carries it out."""

    what: str
    place: str
    executor: str

    def __str__(self) -> str:
        return f"{self.what} in a {self.place}, {self.executor}"


SCENARIOS = [
    *(Scenario(*one) for one in itertools.product(("selftest", "extract"), ("folder", "bucket"), ("serial", "ray"))),
    *(Scenario("nights", place, "serial") for place in ("folder", "bucket")),
]


class Quiet(NamedTuple):
    """Specs and lakes where they ran undisturbed."""

    runs: dict[str, tuple[PipelineSpec, Lake]]
    spec: Path
    nights: list[Lake]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    folder = tmp_path_factory.mktemp("soak")
    world = export(folder / "world", 64)
    outputs = ["activations", "activation_moments", "top_images", "embeddings"]
    extract = {"sites": ["stage.2@map:mean", "stage.4@map"], "outputs": outputs, "batch_size": 4, "shard_rows": 8}
    specs = {
        "selftest": as_pipeline(SelftestSpec(rows=240, shard_rows=8, variants=("a", "b", "c"), sleep_ms=100)),
        "extract": make_extract(world, ("demo:clip-rn",), **extract),
    }
    (folder / "night.yaml").write_text(NIGHT)
    at_once = [f"stages.{stage}.sleep_ms=0" for stage in ("first", "second")]
    nights = [parse_spec(NIGHT, "night.yaml", [f"stages.first.seed={n}", *at_once]).pipeline for n in range(SEEDS)]
    return Quiet(
        {name: (spec, run_quietly(folder / name, spec)) for name, spec in specs.items()},
        folder / "night.yaml",
        [run_quietly(folder / f"night{seed}", spec) for seed, spec in enumerate(nights)],
    )


@pytest.fixture(autouse=True)
def _interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_quietly(folder: Path, spec: PipelineSpec) -> Lake:
    lake = Lake(folder)
    assert lake.run(spec).exit_code == 0
    return lake


def lakes_to_come(end: float) -> Iterator[tuple[int, Scenario]]:
    """Numbers of lakes and what happens there: every scenario once in each round, in an order that the seed decides."""
    for number in itertools.count(1):
        if not ALONE and number > 1 and time.monotonic() > end:
            return
        round_, place = divmod(number - 1, len(SCENARIOS))
        if ALONE in (0, number):
            yield number, random.Random(f"{SEED} round {round_}").sample(SCENARIOS, len(SCENARIOS))[place]
        if number == ALONE:
            return


def disturb(scenario: Scenario, number: int, quiet: Quiet, store: str, proxy: FaultProxy | None, end: float, tally: Tally) -> None:  # fmt: skip
    """One lake of a scenario, from its first driver to what must be true in the end."""
    name, rng = f"lake {number} of seed {SEED}", random.Random(f"{SEED} lake {number}")
    print(f"{name}: {scenario}", flush=True)
    if scenario.what == "nights":
        nights = Nights(name, store, proxy, rng, tally, quiet.spec, quiet.nights)
        nights.pass_nights(end, longest=6.0)
        nights.finish()
        return
    spec, undisturbed = quiet.runs[scenario.what]
    runs = Runs(name, store, proxy, rng, tally, spec, scenario.executor, undisturbed)
    runs.disturb_for(end, longest=8.0 if scenario.executor == "ray" else 4.0)
    runs.finish()


@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_random_faults_for_half_an_hour_change_no_table(
    quiet: Quiet,
    moto_bucket: str,
    moto_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_proxy.url)
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "60")
    tally, end = Tally(), time.monotonic() + 60 * MINUTES
    share = 60 * MINUTES / len(SCENARIOS)  # so that even a short soak comes round to every scenario
    for number, scenario in lakes_to_come(end):
        in_bucket = scenario.place == "bucket"
        store = f"s3://{moto_bucket}/{number}" if in_bucket else str(tmp_path / str(number))
        until = min(end, time.monotonic() + share)
        disturb(scenario, number, quiet, store, moto_proxy if in_bucket else None, until, tally)
        tally.lakes[str(scenario)] += 1
    print(f"\nsoak of {MINUTES:g} minutes, seed {SEED}\n{tally}")
    assert tally.faults
