"""Training that is killed, anywhere and by anybody: the weights afterwards are those of a quiet run, and what was kept was used."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from cluster.inputs import StoreInputs
from cluster.keep import newest_step
from cluster.pipeline import RunReport
from schemas.pipeline_spec import PipelineSpec
from tests.faults import victim
from tests.lakes import Lake, export

pytestmark = pytest.mark.slow
STEPS, KEEP_EVERY = 24, 2
SAE = {
    "kind": "train_sae",
    "latents": [48],
    "k": [4],
    "seed": [0, 1],
    "steps": STEPS,
    "batch_tokens": 128,
    "buffer_batches": 3,
    "block_images": 8,
    "keep_every": KEEP_EVERY,
}
SITE = "resid_post.3@patch"


def make_spec(folder: Path, live: bool = False, **fields: Any) -> PipelineSpec:
    acts = {"kind": "extract", "sites": [SITE], "outputs": ["activations"]}
    of_live = {"sites": [SITE], "batch_size": 8}
    stages = (
        {"sae": {**SAE, **of_live, **fields}} if live else {"acts": acts, "sae": {**SAE, "reads": "acts", **fields}}
    )
    images = {"ref": f"folder:{folder}/world/images"}
    data = {"kind": "pipeline", "name": "t", "images": images, "matrix": {"model": ["demo:clip-p8"]}, "stages": stages}
    return PipelineSpec.model_validate(data, strict=False)


def get_saes(lake: Lake, report: RunReport) -> dict[str, bytes]:
    """Stage -> file of weights of a run that published everything."""
    assert report.failures == []
    stages = [state.digest for state in report.state.stages if state.kind == "train_sae"]
    return {stage: StoreInputs(lake.store).published(stage, "sae.safetensors") for stage in stages}


class Quiet:
    """A run that nothing happened to; `copy` gives a lake in which everything but the training is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        export(folder / "world", 64)
        self.spec = make_spec(folder)
        lake = Lake(folder / "quiet")
        self.saes = get_saes(lake, lake.run(self.spec))

    def copy(self, to: Path) -> str:
        shutil.copytree(self.folder / "quiet", to)
        for stage in self.saes:
            shutil.rmtree(to / "stages" / stage)
        for table in ("sae_metrics", "sae_summary"):
            shutil.rmtree(to / "tables" / table)
        return str(to)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    return Quiet(tmp_path_factory.mktemp("quiet"))


def resumed_from(lake: Lake) -> list[int]:
    """The steps from which trainings of the last run went on."""
    notes = [note for event in lake.events for note in event.get("notes", ())]
    return [int(found[1]) for note in notes if (found := re.search(r"goes on from step (\d+)", note))]


# -- the driver, which in one process is the trainer as well

KILLS = [
    (r"keep/00000/\d{12}$", 7, "after"),  # a whole state of the first SAE at step 8
    (r"keep/00000/\d{12}$", 6, "before"),  # its pieces are there, their list is not
    (r"keep/00000/\d{12}-small$", 9, "before"),  # half of its pieces
    (r"keep/00000/\d{12}$", 24, "after"),  # both at their end, no result written
]


@pytest.mark.parametrize(("key", "nth", "when"), KILLS)
def test_a_driver_that_dies_around_a_state_goes_on_from_the_last_whole_one(
    quiet: Quiet, tmp_path: Path, key: str, nth: int, when: str
) -> None:
    store = quiet.copy(tmp_path / "lake")
    process = victim.start(store, quiet.spec, die={"key": key, "nth": nth, "when": when, "how": "replace"})
    code, _, err = victim.finish(process)
    assert code == victim.DIED, err
    lake = Lake(store)
    assert get_saes(lake, lake.run(quiet.spec)) == quiet.saes
    whole = nth if when == "after" else nth - 1
    first, second = (whole + 1) // 2 * KEEP_EVERY, whole // 2 * KEEP_EVERY
    assert sorted(resumed_from(lake)) == sorted([first, second])
    assert not [name for name in lake.store.list("stages") if "/keep/" in name]


def test_a_driver_killed_at_random_moments_ends_with_the_same_weights(quiet: Quiet, tmp_path: Path) -> None:
    rng = random.Random(11)
    store = quiet.copy(tmp_path / "lake")
    lake = Lake(store)
    seen = -1
    for _ in range(3):
        process = victim.start(store, make_spec(quiet.folder, steps=400))
        wait_for(lambda before=seen, running=process: newest(lake) > before or running.poll() is not None)
        time.sleep(rng.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        seen = newest(lake)
    assert 0 < seen < 400
    found = get_saes(lake, lake.run(make_spec(quiet.folder, steps=400)))
    assert min(resumed_from(lake)) >= seen - KEEP_EVERY
    other = Lake(quiet.copy(tmp_path / "other"))
    assert found == get_saes(other, other.run(make_spec(quiet.folder, steps=400)))


def newest(lake: Lake) -> int:
    """The newest state of any stage, -1 if there is none."""
    stages = {key.split("/")[1] for key in lake.store.list("stages") if "/keep/" in key}
    return max((newest_step(lake.store, stage) or -1 for stage in stages), default=-1)


def wait_for(true: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.05)


# -- members of a gang on Ray


class Running:
    """A run on Ray in a thread of its own, whose processes can be killed."""

    def __init__(self, store: str, spec: PipelineSpec) -> None:
        from cluster.on_ray.executor import RayExecutor

        self.executor = RayExecutor(store)
        self.lake = Lake(store, self.executor)
        self.report: RunReport | None = None
        self._thread = threading.Thread(target=self._run, args=(spec,))
        self._thread.start()

    def _run(self, spec: PipelineSpec) -> None:
        self.report = self.lake.run(spec)

    def kill(self, rank: int) -> None:
        """SIGKILL to a member of the one gang."""
        import ray

        (team,) = [team for team in self.executor._teams.values() if team.slot.gang > 1]
        pid = ray._private.state.actors(team._actors[rank]._actor_id.hex())["Pid"]
        os.kill(pid, signal.SIGKILL)

    def finish(self) -> RunReport:
        self._thread.join(300)
        self.executor.close()
        assert self.report is not None
        return self.report


@pytest.mark.parametrize("rank", [0, 1, 2], ids=["first-trainer", "other-trainer", "feeder"])
def test_a_member_of_a_gang_that_is_killed_starts_the_gang_again_from_the_last_state(
    quiet: Quiet, tmp_path: Path, ray_address: str, rank: int
) -> None:
    """Two trainers and a feeder on a live stream; the weights equal those of one process to rounding."""
    spec = make_spec(quiet.folder, live=True, steps=300, keep_every=20, data_parallel=2, feeders=1)
    running = Running(quiet.copy(tmp_path / "lake"), spec)
    wait_for(lambda: newest(running.lake) >= 40)
    running.kill(rank)
    found = get_saes(running.lake, running.finish())
    assert running.lake.count("shard_lost") + running.lake.count("shard_failed") >= 1
    steps = resumed_from(running.lake)
    assert len(steps) == 2 and max(steps) >= 40 and min(steps) >= max(steps) - 20  # states come one after another
    again = Running(quiet.copy(tmp_path / "again"), spec)
    assert found == get_saes(again.lake, again.finish())  # bit for bit those of an undisturbed gang


def test_a_gang_trains_what_one_process_trains(quiet: Quiet, tmp_path: Path, ray_address: str) -> None:
    """Sums are cut in two, so that their last bits differ; everything else is the same."""
    running = Running(str(tmp_path / "lake"), make_spec(quiet.folder, live=True, data_parallel=2, feeders=1))
    found = get_saes(running.lake, running.finish())
    for data, one in zip(found.values(), quiet.saes.values(), strict=True):
        tensors, expected = load(data), load(one)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert (tensor - expected[name]).abs().max() <= 1e-5 * max(1.0, float(expected[name].abs().max())), name
