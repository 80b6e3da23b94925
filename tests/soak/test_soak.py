"""Half an hour of random faults on small runs, in a folder and in a bucket: afterwards every file is as it should be."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from schemas.specs import PipelineSpec, SelftestSpec, as_pipeline
from tests.faultproxy import FaultProxy, Rule
from tests.faults import victim
from tests.lakes import Lake, export, make_extract

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("MICLIP_SOAK_MINUTES", "30"))
SEED = int(os.environ.get("MICLIP_SOAK_SEED", "0"))
FAULTS = ("kill a driver", "kill a driver and its workers", "kill a worker", "stop a driver", "burst of the store")
EXPECTED = (0, -signal.SIGKILL, -signal.SIGINT, 130)
MAX_DISTURBANCES = 40
"""So many faults one lake sees at most; then a last driver is left in peace."""


@dataclass
class Tally:
    """What was done to the runs, for the summary."""

    lakes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    sent_again: int = 0

    def __str__(self) -> str:
        lines = [f"{n:5} lakes of {name}" for name, n in sorted(self.lakes.items())]
        lines += [f"{n:5} x {name}" for name, n in sorted(self.faults.items())]
        lines += [f"{n:5} drivers ended with code {code}" for code, n in sorted(self.codes.items())]
        return "\n".join([*lines, f"{self.sent_again:5} requests broken by the proxy", "every file as undisturbed"])


class Chaos:
    """One lake on which drivers run and are disturbed until one of them has ended well."""

    def __init__(self, spec: PipelineSpec, store: str, proxy: FaultProxy | None, rng: random.Random, tally: Tally):
        self._spec, self._store, self._proxy, self._rng, self._tally = spec, store, proxy, rng, tally
        self._drivers: list[subprocess.Popen[str]] = []

    def run(self, executor: str, end: float) -> None:
        """Start one or two drivers, disturb them, start them again until `end`; then one driver in peace."""
        try:
            for _ in range(self._rng.randint(2, MAX_DISTURBANCES)):
                if time.monotonic() > end:
                    break
                while len(self._drivers) < self._rng.randint(1, 2):
                    self._drivers.append(victim.start(self._store, self._spec, executor))
                time.sleep(self._rng.uniform(0.2, 8.0 if executor == "ray" else 4.0))
                self._disturb(self._rng.choice(FAULTS))
                if 0 in self._reap():
                    break
        finally:
            if self._proxy is not None:
                self._count_broken()
            for driver in self._drivers:
                _end(driver, signal.SIGKILL)
        victim.finish_well(victim.start(self._store, self._spec))

    def _disturb(self, fault: str) -> None:
        driver = self._rng.choice(self._drivers)
        if fault == "burst of the store":
            if self._proxy is None:
                return
            self._count_broken()
            self._proxy.rules = [_random_rule(self._rng) for _ in range(self._rng.randint(1, 4))]
        elif driver.poll() is not None:
            return
        elif fault == "kill a worker":
            if not (workers := _workers(driver)):
                return
            workers[self._rng.randrange(len(workers))].kill()
        elif fault == "kill a driver and its workers":
            _end(driver, signal.SIGKILL)
        else:
            driver.send_signal(signal.SIGKILL if fault == "kill a driver" else signal.SIGINT)
        self._tally.faults[fault] += 1

    def _reap(self) -> list[int]:
        """Exit codes of the drivers that have ended; none may fail by itself, but for a shard whose workers were killed."""
        codes = []
        for driver in [d for d in self._drivers if d.poll() is not None]:
            self._drivers.remove(driver)
            _end(driver, signal.SIGKILL)  # what a killed driver leaves behind
            out, err = driver.communicate(timeout=300)
            codes.append(driver.returncode)
            assert driver.returncode in EXPECTED or "WorkerLost" in out, f"code {driver.returncode}: {err}"
        self._tally.codes.update(codes)
        return codes

    def _count_broken(self) -> None:
        assert self._proxy is not None
        self._tally.sent_again += sum(rule.fired for rule in self._proxy.rules)
        self._proxy.rules = []


def _end(driver: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signal everything that the driver started, Ray's processes too."""
    try:
        os.killpg(driver.pid, number)
    except ProcessLookupError:
        pass
    driver.wait()


def _workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return [child for child in children if "HostActor" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def _random_rule(rng: random.Random) -> Rule:
    first, times = rng.randint(1, 30), rng.randint(1, 5)
    method = rng.choice(["GET", "PUT", ".*"])
    match rng.choice(["status", "reset", "lose_answer", "cut_body", "tear_upload", "delay"]):
        case "status":
            status, code = rng.choice([(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")])
            return Rule("status", method=method, first=first, times=times, status=status, code=code)
        case "lose_answer" | "tear_upload" as action:
            return Rule(action, method="PUT", first=first, times=times)
        case "cut_body":
            return Rule("cut_body", method="GET", first=first, times=times)
        case "delay":
            return Rule("delay", method=method, first=first, times=times, seconds=1.0)
        case _:
            return Rule("reset", method=method, first=first, times=times)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PipelineSpec, dict[str, str]]]:
    """Name -> (a spec, the files of an undisturbed run)."""
    folder = tmp_path_factory.mktemp("soak")
    world = export(folder / "world", 64)
    outputs = ["activations", "activation_moments", "top_images", "embeddings"]
    extract = {"sites": ["stage.2@map:mean", "stage.4@map"], "outputs": outputs, "batch_size": 4, "shard_rows": 8}
    made = {
        "selftest": as_pipeline(SelftestSpec(rows=240, shard_rows=8, variants=("a", "b", "c"), sleep_ms=100)),
        "extract": make_extract(world, ("demo:clip-rn",), **extract),
    }
    undisturbed = {}
    for name, spec in made.items():
        lake = Lake(folder / name)
        assert lake.run(spec).exit_code == 0
        undisturbed[name] = lake.files()
    return {name: (made[name], undisturbed[name]) for name in made}


@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_random_faults_for_half_an_hour_change_no_file(
    specs: dict[str, tuple[PipelineSpec, dict[str, str]]],
    moto_bucket: str,
    moto_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_proxy.url)
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "60")
    rng, tally = random.Random(SEED), Tally()
    end, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < end:
        for name, (spec, undisturbed) in specs.items():
            for place, executor in (("folder", "serial"), ("bucket", "serial"), ("folder", "ray"), ("bucket", "ray")):
                if time.monotonic() > end and number:
                    break
                number += 1
                store = f"s3://{moto_bucket}/{number}" if place == "bucket" else str(tmp_path / str(number))
                Chaos(spec, store, moto_proxy if place == "bucket" else None, rng, tally).run(executor, end)
                assert Lake(store).files() == undisturbed, f"lake {number}: {name}, {place}, {executor}, seed {SEED}"
                tally.lakes[f"{name} in a {place} on {executor}"] += 1
    with capsys.disabled():
        print(f"\nsoak of {MINUTES:g} minutes, seed {SEED}\n{tally}")
    assert tally.faults
