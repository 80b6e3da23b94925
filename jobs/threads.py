"""How many CPUs the computations of a worker use."""

from __future__ import annotations

import torch

from jobs.protocol import Setting


def use_cpus(setting: Setting) -> None:
    """Compute on the CPUs that are stated: sums are cut by threads, so their last bits must not follow the machine."""
    torch.set_num_threads(max(1, int(setting.resources.cpus)))
