"""One SAE on its way through the stream: its trainer, its curve so far, and the states it can be taken up from."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from jobs.protocol import Artifact, Keep, Part
from jobs.rows import make_batch
from jobs.sae_files import WEIGHTS
from jobs.train_sae.plan import settings_of, stream_of
from miclip_core.sae.parallel import Group
from miclip_core.sae.train import NO_THRESHOLD, SaeTrainer, StepMetrics
from miclip_core.sae.weights import save_sae
from schemas.plans import Plan

SMALL = 1 << 20
"""Tensors below so many bytes share one piece of a state; each larger one is a piece of its own."""
FIELDS = StepMetrics._fields


class Lane:
    """Trains one plan; takes only batches that follow what it has seen, so that siblings may be at other steps."""

    def __init__(self, plan: Plan, device: str, group: Group) -> None:
        self.plan = plan
        self.settings = settings_of(plan)
        self.step = 0
        self.position: list[int] | None = None
        """Where in the stream of its site the next batch is; None at its beginning."""
        self._device, self._group = device, group
        self._trainer: SaeTrainer | None = None
        self._curve = np.full((self.settings.steps, len(FIELDS)), np.nan, dtype=np.float32)

    @property
    def site(self) -> str:
        """Where its tokens are."""
        return str(self.plan.stage.params["site"])

    @property
    def is_done(self) -> bool:
        """Whether every step is taken."""
        return self.step >= self.settings.steps

    def begin(self, window_ND: Tensor) -> None:
        """Start from nothing, with the first window of the stream; a lane that has begun or was resumed stays as it is."""
        if self._trainer is None:
            self._trainer = self._make()
            self._trainer.begin(self._share(window_ND))

    def train(self, batch_ND: Tensor, position: list[int]) -> None:
        """Take one step; `position` is where the stream stands after this batch."""
        assert self._trainer is not None
        self._curve[self.step] = as_row(self._trainer.step(self._share(batch_ND)))
        self.step += 1
        self.position = position

    def _share(self, rows_ND: Tensor) -> Tensor:
        """This worker's part of what all workers see."""
        rank, size = self._group.rank, self._group.size
        return rows_ND[len(rows_ND) * rank // size : len(rows_ND) * (rank + 1) // size]

    def _make(self) -> SaeTrainer:
        width = int(self.plan.effort["width"])  # type: ignore[arg-type]
        return SaeTrainer(self.settings, width, self._device, self._group)

    # -------------------------------------------------------------- states

    def save(self, keep: Keep) -> None:
        """Store a state; tensors are turned into bytes one after another."""
        keep.save(self.plan.digest, self.step, self._pieces())

    def _pieces(self) -> Iterator[tuple[str, bytes]]:
        assert self._trainer is not None
        yield "position", json.dumps(self.position).encode()
        yield "curve", save({"curve": torch.from_numpy(self._curve[: self.step])})
        small: dict[str, Tensor] = {}
        for name, tensor in self._trainer.state().items():
            if tensor.nbytes < SMALL:
                small[name] = tensor.detach().cpu().contiguous()
            else:
                yield f"tensor.{name}", save({name: tensor.detach().cpu().contiguous()})
        yield "small", save(small)

    def resume(self, keep: Keep) -> bool:
        """Go on from the newest state, if there is one."""
        found = keep.latest(self.plan.digest)
        if found is None:
            return False
        self.step, pieces = found
        self.position = json.loads(pieces["position"])
        self._curve[: self.step] = load(pieces["curve"])["curve"].numpy()
        tensors = load(pieces["small"])
        for name in pieces:
            if name.startswith("tensor."):
                tensors.update(load(pieces[name]))
        self._trainer = self._make()
        self._trainer.load_state(tensors)
        return True

    # -------------------------------------------------------------- results

    def results(self) -> Iterator[Part | Artifact]:
        """The curve and the weights, in the units of the model."""
        assert self._trainer is not None
        yield Part(self.plan.digest, "sae_metrics", self._metrics())
        sae = self._trainer.finish().with_config(
            model=self.plan.stage.subject, site=self.site, activations=self.plan.stage.inputs["activations"]
        )
        self._trainer = None  # its moments and gradients are most of this worker's memory
        yield Artifact(self.plan.digest, WEIGHTS, save_sae(sae))

    def _metrics(self) -> pa.RecordBatch:
        curve = dict(zip(FIELDS, self._curve.T))
        steps = np.arange(self.step, dtype=np.int64)
        return make_batch(
            "sae_metrics",
            {
                "stage": self.plan.digest,
                "model": self.plan.stage.subject,
                "site": self.site,
                "step": steps,
                "tokens": (steps + 1) * stream_of(self.plan).batch_tokens,
                **{name: np.ascontiguousarray(curve[name]) for name in FIELDS},
                "dead": curve["dead"].astype(np.int32),
                "threshold": pa.array(curve["threshold"], from_pandas=True),  # NaN is null
            },
        )


def as_row(metrics: StepMetrics) -> tuple[float, ...]:
    """One row of the curve; a threshold that is not known yet is NaN."""
    return metrics if metrics.threshold != NO_THRESHOLD else metrics._replace(threshold=float("nan"))
