"""Lakes on which processes run and are disturbed after a script, and what must be true of them afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from cluster.catalog import Scope, open_catalog, stored_objects, verify
from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from schemas.errors import DamagedPart
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Published, StoredPart, load_json
from tests.faultproxy import FaultProxy, Rule
from tests.faults import victim
from tests.lakes import Lake

KILL, KILL_ALL, STOP, BURST = "kill a driver", "kill a driver and its workers", "stop a driver", "burst of the store"
KILL_WORKER, FOREIGN, GC = "kill a worker", "foreign bytes where a part will lie", "remove old runs meanwhile"
DAMAGES = ("a byte flipped", "half of it", "gone")
MAX_DISTURBANCES = 40
"""So many faults one lake sees at most; then a last driver is left in peace."""
STOPPED = (-signal.SIGKILL, -signal.SIGINT, 130)
"""How a process ends that was killed or stopped, also before it could catch anything."""
PATIENCE, BUDGET = 30, 20
"""Seconds after which the lease of a night that was killed is taken, and for which it asks a store again."""


@dataclass
class Tally:
    """What was done to the runs, for the summary."""

    lakes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    broken_requests: int = 0

    def __str__(self) -> str:
        lines = [f"{n:5} lakes of {name}" for name, n in sorted(self.lakes.items())]
        lines += [f"{n:5} x {name}" for name, n in sorted(self.faults.items())]
        lines += [f"{n:5} processes ended with code {code}" for code, n in sorted(self.codes.items())]
        return "\n".join(
            [*lines, f"{self.broken_requests:5} requests broken by the proxy", "every table as undisturbed"]
        )


class Step(NamedTuple):
    """So many drivers are to run, and after a while a fault befalls one of them; `pick` and `seed` say which and how."""

    drivers: int
    pause: float
    fault: str
    pick: float
    seed: int


def write_script(rng: random.Random, faults: Sequence[str], longest: float) -> list[Step]:
    """All that will be tried on one lake, drawn before anything happens, so that no timing changes what is drawn."""
    return [
        Step(rng.randint(1, 2), rng.uniform(0.2, longest), rng.choice(faults), rng.random(), rng.getrandbits(32))
        for _ in range(rng.randint(2, MAX_DISTURBANCES))
    ]


class Chaos(ABC):
    """One lake on which processes run and are disturbed until one of them has ended well."""

    faults: tuple[str, ...]

    def __init__(self, name: str, store: str, proxy: FaultProxy | None, rng: random.Random, tally: Tally) -> None:
        self.name, self.uri, self.store = name, store, make_store(store)
        self.planted: set[str] = set()
        self._proxy, self._rng, self._tally = proxy, rng, tally
        self._processes: list[subprocess.Popen[str]] = []
        self._begun = time.monotonic()

    @abstractmethod
    def start(self) -> subprocess.Popen[str]:
        """A driver, as the leader of a process group."""

    @abstractmethod
    def judge(self, code: int, out: str, err: str) -> bool:
        """Whether a process that ended with this did all the work; an AssertionError if it may not end so."""

    def disturb_for(self, end: float, longest: float) -> None:
        """Start drivers, disturb them and start them again, until one ended well or the time is over."""
        try:
            for step in write_script(self._rng, self.faults, longest):
                if time.monotonic() > end:
                    break
                while len(self._processes) < step.drivers:
                    self._processes.append(self.start())
                time.sleep(step.pause)
                self._disturb(step)
                if self._reap():
                    break
        finally:
            if self._proxy is not None:
                self._mend()
            for process in self._processes:
                end_group(process)
            self._processes = []

    def say(self, what: str) -> None:
        """One line of what happened, to read where it went wrong."""
        print(f"{self.name} +{time.monotonic() - self._begun:.1f}s: {what}", flush=True)

    def _disturb(self, step: Step) -> None:
        process = self._processes[int(step.pick * len(self._processes))]
        done = self.befall(step, process)
        if done:
            self.say(f"{step.fault}{'' if done is True else f': {done}'}")
            self._tally.faults[step.fault] += 1

    def befall(self, step: Step, process: subprocess.Popen[str]) -> bool | str:
        """Let a fault happen; False where there is nothing that it could happen to."""
        if step.fault == BURST:
            return self._burst(random.Random(step.seed))
        if process.poll() is not None:
            return False
        if step.fault == KILL_ALL:
            end_group(process)
        else:
            process.send_signal(signal.SIGKILL if step.fault == KILL else signal.SIGINT)
        return f"process {process.pid}"

    def _burst(self, rng: random.Random) -> bool | str:
        if self._proxy is None:
            return False
        self._mend()
        self._proxy.rules = [random_rule(rng) for _ in range(rng.randint(1, 4))]
        return ", ".join(f"{r.action} of {r.method} {r.first} to {r.first + r.times - 1}" for r in self._proxy.rules)

    def _mend(self) -> None:
        assert self._proxy is not None
        self._tally.broken_requests += sum(rule.fired for rule in self._proxy.rules)
        self._proxy.rules = []

    def _reap(self) -> bool:
        """Whether a process that has ended did all the work."""
        ended = [process for process in self._processes if process.poll() is not None]
        self._processes = [process for process in self._processes if process not in ended]
        return sum(self._bury(process) for process in ended) > 0  # all of them, not up to the first

    def _bury(self, process: subprocess.Popen[str]) -> bool:
        end_group(process)  # what a killed driver leaves behind
        out, err = process.communicate(timeout=300)
        self._tally.codes[process.returncode] += 1
        self.say(f"process {process.pid} ended with code {process.returncode}")
        return process.returncode not in STOPPED and self.judge(process.returncode, out, err)


class Runs(Chaos):
    """Drivers of one spec; `quiet` is a lake where the same spec ran and nothing happened."""

    faults = (KILL, KILL_ALL, KILL_WORKER, STOP, BURST, FOREIGN)

    def __init__(
        self, name: str, store: str, proxy: FaultProxy | None, rng: random.Random, tally: Tally, spec: PipelineSpec,
        executor: str, quiet: Lake,
    ) -> None:  # fmt: skip
        super().__init__(name, store, proxy, rng, tally)
        self._spec, self._executor, self._quiet = spec, executor, quiet

    def start(self) -> subprocess.Popen[str]:
        return victim.start(self.uri, self._spec, self._executor)

    def judge(self, code: int, out: str, err: str) -> bool:
        lost = "WorkerLost" in out  # a shard whose workers were killed three times
        assert code == 0 or lost, f"code {code}: {out}{err}"
        return code == 0

    def befall(self, step: Step, process: subprocess.Popen[str]) -> bool | str:
        if step.fault == FOREIGN:
            return self._plant(random.Random(step.seed))
        if step.fault != KILL_WORKER:
            return super().befall(step, process)
        workers = workers_of(process)
        if workers:
            workers[int(step.pick * len(workers))].kill()
        return bool(workers)

    def _plant(self, rng: random.Random) -> bool | str:
        """Half a part, under the key of one that is not there yet, as no sound store would keep it."""
        missing = [key for key in self._quiet.store.list("tables") if not self.store.exists(key)]
        if not missing:
            return False
        key = rng.choice(missing)
        whole = self._quiet.store.get(key)
        if not self.store.create(key, whole[: len(whole) // 2]):  # a worker was faster
            return False
        self.planted.add(key)
        return key

    def finish(self) -> None:
        """A last driver in peace, after which everything is as undisturbed."""
        victim.finish_well(victim.start(self.uri, self._spec))
        check_lake(self.store, contents(self._quiet.store), self.planted)
        check_damage(self.store, self._rng, self.say)


class Nights(Chaos):
    """`miclip nightly` night after night, each with another seed, and `miclip gc` in between; `quiet` has a lake per seed."""

    faults = (KILL, KILL_ALL, STOP, BURST, GC)

    def __init__(
        self, name: str, store: str, proxy: FaultProxy | None, rng: random.Random, tally: Tally, spec: Path,
        quiet: Sequence[Lake],
    ) -> None:  # fmt: skip
        super().__init__(name, store, proxy, rng, tally)
        self._spec, self._quiet, self._seed = spec, quiet, 0

    def start(self) -> subprocess.Popen[str]:
        said = ("--set", f"stages.first.seed={self._seed}", "--executor", "serial", "--keep-runs", "2")
        return self._command("nightly", str(self._spec), *said)

    def _command(self, *words: str) -> subprocess.Popen[str]:
        shared = ("--store", self.uri, "--patience", str(PATIENCE), "--json")
        return start_command(self._spec.parent, *words, *shared, MICLIP_STORE_BUDGET_S=str(BUDGET))

    def judge(self, code: int, out: str, err: str) -> bool:
        """Nights and removals step back from each other, and stop where their lease could not be kept."""
        said = json.loads(out) if out.strip() else {}
        steps_back = code == 3 and said.get("error") in ("LeaseHeld", "LeaseLost")
        troubled = code == 1 and said.get("problems") and said["status"] == "DONE"
        assert code == 0 or steps_back or troubled, f"code {code}: {out}\n{err}"
        return code == 0 and "run" in said

    def befall(self, step: Step, process: subprocess.Popen[str]) -> bool | str:
        if step.fault != GC:
            return super().befall(step, process)
        self._processes.append(self._command("gc", "--yes", "--keep-runs", "1"))
        return f"process {self._processes[-1].pid}"

    def pass_nights(self, end: float, longest: float) -> None:
        """Each night is disturbed until it has ended well once; nothing that is published is ever damaged then."""
        begun = time.monotonic()
        for seed in range(len(self._quiet)):
            self._seed = seed
            self.say(f"night with seed {seed}")
            self.disturb_for(begun + (end - begun) * (seed + 1) / len(self._quiet), longest)
            check_whole(self.store)

    def finish(self) -> None:
        """A last night and a last removal in peace leave the tables of that night and nothing else."""
        for words in ("nightly", "gc"):
            process = self.start() if words == "nightly" else self._command("gc", "--yes", "--keep-runs", "1")
            out, err = process.communicate(timeout=400)
            assert process.returncode == 0 and "held" not in json.loads(out), (out, err)
        check_lake(self.store, contents(self._quiet[self._seed].store), set())
        check_damage(self.store, self._rng, self.say)


# ---------------------------------------------------------------- what must be true


def contents(store: Store) -> dict[str, Any]:
    """Stage -> rows and sha256 of the parts of every table and of every artifact, wherever they lie."""
    found = {}
    for published in all_published(store):
        tables = {name: [(p.rows, p.sha256) for p in parts] for name, parts in published.tables.items()}
        found[published.stage.digest] = (tables, [(a.name, a.sha256) for a in published.artifacts], published.content)
    return found


def all_published(store: Store) -> Iterator[Published]:
    """What every stage of a store has published."""
    for key in store.list("stages"):
        if key.endswith("/published.json"):
            yield load_json(Published, store.get(key))


def check_lake(store: Store, expected: dict[str, Any], planted: set[str]) -> None:
    """Every table is as expected, every object whole, and no part lies there that no table names, but for planted ones."""
    assert contents(store) == expected
    check_whole(store)
    named = [part.key for p in all_published(store) for parts in p.tables.values() for part in parts]
    assert len(named) == len(set(named))
    assert set(store.list("tables")) == {*named, *planted} and not planted & set(named)


def check_whole(store: Store) -> None:
    """Every object that was ever published is what it was."""
    assert problems_of(store) == []


def problems_of(store: Store) -> list[str]:
    """Keys that `miclip verify --all` would name."""
    return [verdict.key for verdict in verify(open_catalog(store, Scope(all=True))) if verdict.problem]


def check_damage(store: Store, rng: random.Random, say: Any) -> None:
    """An object that is damaged on purpose is named, and it alone; a worker refuses to read it; put back it is well."""
    named = [(p.stage.digest, stored) for p in all_published(store) for stored in stored_objects(p)]
    digest, stored = rng.choice(sorted(named, key=lambda item: item[1].key))
    whole, how = store.get(stored.key), rng.choice(DAMAGES)
    place = rng.randrange(len(whole))
    say(f"damaged on purpose: {stored.key}, {how}")
    if how == "gone":
        store.delete(stored.key)
    else:
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        store.replace(stored.key, whole[: len(whole) // 2] if how == "half of it" else flipped)
    assert problems_of(store) == [stored.key]
    if isinstance(stored, StoredPart):
        with pytest.raises(DamagedPart):
            list(StoreInputs(store).table(digest, stored.table))
    store.replace(stored.key, whole)
    check_whole(store)


# ---------------------------------------------------------------- processes and requests


def start_command(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """`miclip ...` in a process group of its own."""
    env = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), **environment}
    command, pipe = [sys.executable, "-m", "cluster.cli", *words], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=victim.ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill everything that a process started, Ray's processes too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's workers below a driver, by process id."""
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return sorted((c for c in children if "HostActor" in " ".join(c.cmdline())), key=lambda c: c.pid)
    except psutil.Error:
        return []


def random_rule(rng: random.Random) -> Rule:
    """A fault of the store that a client has to live with."""
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
