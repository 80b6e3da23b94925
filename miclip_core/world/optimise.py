"""What all trainers of the demo zoo share: the optimiser with its learning rate, and running figures."""

from __future__ import annotations

import logging
import math
import time

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
_LOG_EVERY = 50


class Optimiser:
    """AdamW with a short warm-up, then a cosine to zero; matrices decay, vectors do not."""

    def __init__(self, parameters: list[nn.Parameter], rate: float, steps: int, warm_up: int = 30) -> None:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.02},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.rate, self.steps, self.warm_up, self.done = rate, steps, warm_up, 0

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, whose norm is cut at 1."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        for group in self.adam.param_groups:
            group["lr"] = self.rate * cosine * min(1.0, (self.done + 1) / self.warm_up)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.adam.param_groups for p in group["params"]], 1.0)
        self.adam.step()
        self.done += 1


class Running:
    """Means of the figures of the last few steps, logged as they fill up."""

    def __init__(self, stage: str) -> None:
        self.stage, self.steps = stage, 0
        self.sums: dict[str, list[float]] = {}
        self.latest: dict[str, float] = {}

    def add(self, **figures: Tensor | float) -> None:
        """Take the figures of one step; every so often their means become `latest`."""
        self.steps += 1
        for name, value in figures.items():
            self.sums.setdefault(f"{self.stage}_{name}", []).append(float(torch.as_tensor(value).detach()))
        if self.steps % _LOG_EVERY == 0:
            self.latest = {name: round(float(np.mean(values)), 4) for name, values in self.sums.items()}
            self.sums = {}
            log.info("step %d, %.0f cpu-s: %s", self.steps, time.process_time(), self.latest)
