"""Workers compute on the CPUs that are stated, whatever the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import jobs
from jobs.protocol import Setting
from jobs.threads import use_cpus
from schemas.plans import Resources

NO_SUMS = {"import_sae", "index_images", "inspect", "selftest"}
"""Kinds that compute nothing whose last bits follow how it was cut."""


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cpus", "expected"), [(3.0, 3), (2.5, 2), (0.5, 1)])
@pytest.mark.usefixtures("threads")
def test_as_many_threads_as_whole_cpus_and_at_least_one(cpus: float, expected: int) -> None:
    torch.set_num_threads(5)
    use_cpus(Setting((), Resources(cpus=cpus)))
    assert torch.get_num_threads() == expected


def test_every_worker_that_sums_says_so() -> None:
    folder = Path(jobs.__path__[0])
    workers = {path.parent.name: path.read_text() for path in folder.glob("*/work.py")}
    assert {kind for kind, code in workers.items() if "use_cpus(setting)" not in code} == NO_SUMS
    assert not any("set_num_threads" in code for code in workers.values())
