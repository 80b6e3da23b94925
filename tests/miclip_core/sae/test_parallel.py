"""Data-parallel training by real processes over gloo: the same weights as alone, whatever the slices."""

from __future__ import annotations

import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from miclip_core.sae.parallel import Alone, Group, TorchGroup
from miclip_core.sae.train import SaeTrainer
from schemas.errors import BadTokens
from tests.miclip_core.sae.runs import D, settings, tokens

ARCHS = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu")
BATCH = 33
CUTS = {1: (0, BATCH), 2: (0, 10, BATCH), 3: (0, 11, 26, BATCH)}
"""Which rows of a batch each worker gets: never equal parts."""


def weights_after_50_steps(arch: str, group: Group) -> dict[str, Tensor]:
    start, stop = list(pairwise(CUTS[group.size]))[group.rank]
    made = SaeTrainer(settings(arch, lr=1e-3), D, group=group)
    made.begin(tokens(300)[300 * start // BATCH : 300 * stop // BATCH])
    for step in range(50):
        metrics = made.step(tokens(BATCH, seed=step + 1)[start:stop])
    figures = torch.tensor([metrics.loss, metrics.fvu, metrics.l0, metrics.dead, metrics.threshold, metrics.grad_norm])
    return {**made.state(), "figures": figures}


def work(rank: int, size: int, port: int, folder: str, archs: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    group = TorchGroup()
    found: dict = {arch: weights_after_50_steps(arch, group) for arch in archs}
    found["gathered"] = group.gather(torch.arange(rank + 1.0))
    made = SaeTrainer(settings("topk"), D, group=group)
    made.begin(tokens(50))
    bad = tokens(4)
    bad[2] = torch.nan if rank == 1 else bad[2]
    with pytest.raises(BadTokens) as caught:
        made.step(bad)
    found["error"] = str(caught.value)
    local = SaeTrainer(settings("batchtopk", scope="local"), D, group=group)
    local.begin(tokens(50))
    found["local l0"] = local.step(tokens(10 * (rank + 1))).l0
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "archs"),
    [(2, ARCHS[:2]), pytest.param(2, ARCHS, marks=pytest.mark.slow), pytest.param(3, ARCHS, marks=pytest.mark.slow)],
)
def test_workers_together_train_what_one_trains_alone(size: int, archs: tuple[str, ...], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (size, port, str(tmp_path), archs), nprocs=size)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for arch in archs:
        alone = weights_after_50_steps(arch, Alone())
        for name, tensor in alone.items():
            torch.testing.assert_close(found[0][arch][name], tensor, rtol=1e-5, atol=1e-5, msg=f"{arch} {name}")
            assert all(torch.equal(other[arch][name], found[0][arch][name]) for other in found), f"{arch} {name}"
    for other in found:
        assert [part.tolist() for part in other["gathered"]] == [[0.0, 1.0, 2.0][: n + 1] for n in range(size)]
        assert other["local l0"] == 4
    assert "rows [2]" in found[1]["error"]
    assert "another data-parallel worker" in found[0]["error"]
