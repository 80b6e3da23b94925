"""The align worker: what one site gives is read once, and every encoder of it is trained on that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save

from jobs.activations import Forward
from jobs.align.data import Examples, read_examples
from jobs.encoders import WEIGHTS, settings_of
from jobs.models import open_model
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.rows import make_batch
from jobs.threads import use_cpus
from miclip_core.align.encoder import save_encoder
from miclip_core.align.order import batch_order, split_rows
from miclip_core.align.trainer import AlignMetrics, AlignTrainer
from miclip_core.zoo.reducers import Moments
from schemas.base import canonical_json
from schemas.errors import BadAlignment
from schemas.plans import Plan, Shard, load_json

FIELDS = AlignMetrics._fields


class AlignWorker:
    """Serves the encoders of one site; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """The weights, curves and summaries of every encoder that asks, one after another."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        examples = read_examples(plans[0], inputs)
        scale = self._clip_scale(plans, inputs)
        for plan in plans:
            run = Run(plan, examples, self._setting.device, scale)
            try:
                if run.resume(keep):
                    self.notes.append(f"{plan.stage.detail}: goes on from step {run.step}")
                run.train(keep)
                yield from run.results()
            except BadAlignment as error:
                error.stages = (plan.digest,)
                raise
            if zero := run.trainer.mostly_zero:
                self.notes.append(
                    f"{plan.stage.detail}: {len(zero)} of {run.trainer.d} channels are 0 on every image, the first are "
                    f"{', '.join(map(str, zero[:5]))}; is {plan.stage.params['site']} the site that is meant?"
                )

    def _clip_scale(self, plans: Sequence[Plan], inputs: Inputs) -> float | None:
        """The logit scale of the CLIP, if an encoder asks for it."""
        if all(settings_of(plan).logit_scale != "clip" for plan in plans):
            return None
        forward = load_json(Forward, canonical_json(plans[0].effort["clip"]))
        module = open_model(forward, inputs, "cpu", []).module
        return float(module.logit_scale.detach().float().exp())  # type: ignore[operator]


class Run:
    """One encoder in training, and the states it can be taken up from."""

    def __init__(self, plan: Plan, examples: Examples, device: str, clip_scale: float | None) -> None:
        self.plan, self.settings = plan, settings_of(plan)
        self._examples, self._device = examples, device
        width, dim = (int(str(plan.effort[name])) for name in ("width", "dim"))
        self.trainer = AlignTrainer(self.settings, width, dim, device, clip_scale=clip_scale)
        self._train, self._held = split_rows(len(examples.a_ND), self.settings)
        self._curve: list[tuple[float, ...]] = []
        self._stopped = False

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.trainer.steps_done

    # -------------------------------------------------------------- training

    def train(self, keep: Keep) -> None:
        """All epochs that are left, or until the held-out loss no longer falls."""
        if not self.trainer.begun:
            self._begin()
        batches = len(batch_order(len(self._train), self.settings, 0))
        keep_every = int(str(self.plan.effort["keep_every"]))
        for epoch in range(self.step // batches, self.settings.epochs):
            if self._stopped:
                break
            for batch in batch_order(len(self._train), self.settings, epoch)[self.step - epoch * batches :]:
                self._curve.append(_row(self.trainer.step(*self._batch(self._train[batch]))))
                ends_epoch = self.step == (epoch + 1) * batches
                if ends_epoch and len(self._held):
                    self._stopped = self.trainer.end_epoch(self._held_out_loss())
                if self.step % keep_every == 0 or (ends_epoch and (self._stopped or epoch + 1 == self.settings.epochs)):
                    keep.save(self.plan.digest, self.step, self._pieces())

    def _begin(self) -> None:
        moments = Moments()
        for rows in torch.from_numpy(self._train).split(8192):
            moments.add(self._examples.a_ND[rows][:, None], np.zeros(1, np.int32), [""] * len(rows))
        self.trainer.begin(moments)

    def _batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        chosen, seen = torch.from_numpy(rows), self._examples
        yhat_B = None if seen.yhat_N is None else seen.yhat_N[chosen]
        return seen.a_ND[chosen], seen.texts_CE, yhat_B, seen.x_NE[chosen]

    def _held_out_loss(self) -> float:
        """Mean over held-out batches of the training's size, for the loss depends on it; what fills none counts little."""
        parts = [self._held[i : i + self.settings.batch] for i in range(0, len(self._held), self.settings.batch)]
        losses = [self.trainer.evaluate(*self._batch(rows)).loss * len(rows) for rows in parts]
        return sum(losses) / len(self._held)

    # -------------------------------------------------------------- states

    def _pieces(self) -> Iterator[tuple[str, bytes]]:
        yield "state", save({name: t.detach().cpu().clone() for name, t in self.trainer.state().items()})
        yield "curve", save({"curve": torch.tensor(self._curve), "stopped": torch.tensor(self._stopped)})

    def resume(self, keep: Keep) -> bool:
        """Go on from the newest state, if there is one."""
        found = keep.latest(self.plan.digest)
        if found is None:
            return False
        _, pieces = found
        self.trainer.load_state(load(pieces["state"]))
        curve = load(pieces["curve"])
        self._curve = [tuple(row) for row in curve["curve"].tolist()]
        self._stopped = bool(curve["stopped"])
        return True

    # -------------------------------------------------------------- results

    def results(self) -> Iterator[Part | Artifact]:
        """The curve, the summary and the weights."""
        params, stage = self.plan.stage.params, self.plan.digest
        about = {"stage": stage, "model": self.plan.stage.subject, "site": str(params["site"])}
        curve = np.array(self._curve, dtype=np.float32)
        columns = {name: pa.array(curve[:, i], from_pandas=True) for i, name in enumerate(FIELDS)}  # NaN is null
        yield Part(
            stage, "align_metrics", make_batch("align_metrics", {**about, "step": np.arange(len(curve)), **columns})
        )
        encoder = self.trainer.finish().with_config(
            model=self.plan.stage.subject,
            site=str(params["site"]),
            pool=str(params["pool"]),
            clip=str(params["clip"]),
            template=canonical_json(params["templates"]),
        )
        last = curve[-max(1, len(curve) // 10) :].mean(0, dtype=np.float64)
        final = dict(zip(FIELDS, (None if np.isnan(value) else float(value) for value in last), strict=True))
        config, settings = encoder.config, self.settings
        summary = {
            "encoder": f"align:{stage}",
            "clip": config.clip,
            "pool": config.pool,
            "templates": config.template,
            "d": config.d,
            "dim": config.dim,
            "classes": 0 if self._examples.texts_CE is None else len(self._examples.texts_CE),
            "images": len(self._examples.a_ND),
            "images_held_out": len(self._held),
            "logit_scale": config.logit_scale,
            **{
                name: getattr(settings, name)
                for name in ("w_out", "w_in", "bias", "standardise", "lr", "batch", "seed")
            },
            "steps": config.steps,
            "final_loss": final["loss"],
            "final_out": final["loss_out"],
            "final_in": final["loss_in"],
            "zero_channels": self.trainer.mostly_zero,
        }
        rows = {**about, **{name: [value] for name, value in summary.items()}}
        yield Part(stage, "alignments", make_batch("alignments", rows))
        yield Artifact(stage, WEIGHTS, save_encoder(encoder))


def _row(metrics: AlignMetrics) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else float(value) for value in metrics)


def open_worker(setting: Setting, inputs: Inputs) -> AlignWorker:
    """Nothing is loaded before there is work."""
    return AlignWorker(setting, inputs)
