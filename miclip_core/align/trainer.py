"""One training run of one neuron encoder: batches of activations with their predictions and embeddings in, weights out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from miclip_core.adam import differing, keep_weights, restore_weights
from miclip_core.align.encoder import SMALLEST_STD, NeuronEncoder, standardised
from miclip_core.align.losses import AlignLoss, alignment_loss
from miclip_core.align.rows import check_rows, check_width, unit_rows
from miclip_core.zoo.reducers import Moments
from schemas.align import LEARNED_SCALE, AlignSettings, EncoderConfig
from schemas.errors import BadAlignment


class AlignMetrics(NamedTuple):
    """One batch: the losses, the share of its images that find their own key, and the logit scale, all before the update.

    acc_row_out: the predicted class is the best among those of the batch; acc_row_in: the image's own embedding is.
    None for the parts of a loss of weight 0.
    """

    loss: float
    loss_out: float | None
    loss_in: float | None
    acc_row_out: float | None
    acc_row_in: float | None
    logit_scale: float


class AlignTrainer:
    """Weights, moments and counters of one neuron encoder in training. It shares nothing: side by side is one by one.

    `begin` once, then `step` per batch, with a patience `end_epoch` per epoch, then `finish`; or `load_state` instead of
    `begin`. d: width of the activations; dim: width of the CLIP embeddings; clip_scale: the logit scale of the CLIP, for
    `logit_scale: clip`. dtype is float32, or float64 for oracles; the initial weights are the same in both.

    Raises:
        BadAlignment: `logit_scale: clip` without clip_scale.
    """

    def __init__(
        self,
        settings: AlignSettings,
        d: int,
        dim: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        clip_scale: float | None = None,
    ) -> None:
        self.settings, self.d, self.dim = settings, d, dim
        self.device, self.dtype = torch.device(device), dtype
        self.steps_done = self.best_steps = self.epochs_since_best = 0
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.begun = False
        self.zero_channels = torch.zeros(d, dtype=torch.bool, device=self.device)
        ones, zeros = (make(d, dtype=dtype, device=self.device) for make in (torch.ones, torch.zeros))
        self._norm = (zeros, ones) if settings.standardise else None
        self._scale = torch.tensor(_first_scale(settings, clip_scale), dtype=dtype, device=self.device)
        self.weights = {name: value.to(self.device, dtype) for name, value in _initial(settings, d, dim).items()}
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
        self.adam = torch.optim.Adam(self.weights.values(), lr=settings.lr, betas=settings.betas, fused=True)

    # -------------------------------------------------------------- the run

    def begin(self, moments: Moments) -> None:
        """Take in what is known of the activations of all training images, [D] per channel.

        Raises:
            BadAlignment: fewer images than a batch, another width, or NaN or infinite values.
        """
        if moments.count < self.settings.batch:
            raise BadAlignment(
                f"{moments.count} images do not fill one batch of {self.settings.batch}; lower batch or give more"
            )
        assert moments.mean is not None and moments.min is not None and moments.max is not None
        if moments.mean.shape != (self.d,):
            raise BadAlignment(f"moments of {moments.mean.shape} channels; expected those of {self.d} over all images")
        finite = np.isfinite(moments.mean) & np.isfinite(moments.variance)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            raise BadAlignment(
                f"{len(bad)} of {self.d} channels hold NaN or infinite values, the first are {bad[:5].tolist()}"
            )
        self.zero_channels.copy_(torch.from_numpy((moments.min == 0) & (moments.max == 0)))
        if self._norm is not None:
            mean_D, std_D = self._norm
            mean_D.copy_(torch.from_numpy(moments.mean))
            std_D.copy_(torch.from_numpy(np.sqrt(moments.variance)).clamp_(min=SMALLEST_STD))
        self.begun = True

    @property
    def mostly_zero(self) -> list[int]:
        """Channels that are 0 for every image, if they are more than half of all, as at a wrong or dead site; else none."""
        zero = self.zero_channels.nonzero().flatten().tolist()
        return zero if len(zero) > self.d / 2 else []

    @property
    def logit_scale(self) -> Tensor:
        """What multiplies cosines now, a scalar."""
        return _scale_of(self.weights, self._scale)

    @torch.no_grad()
    def step(
        self, a_BD: Tensor, class_embeddings_CE: Tensor | None, yhat_B: Tensor | None, x_BE: Tensor
    ) -> AlignMetrics:
        """Learn from one batch: activations, texts of the classes, predicted classes, embeddings of the images.

        Embeddings may have any length and float dtype; yhat is integer. Both that are about classes may be None where
        settings.needs_classes is false. Source: MICLIP, Algorithm 1.

        Raises:
            BadAlignment: another width or number of rows, NaN or infinite values, embeddings of length 0, yhat outside
            [0, C), or a loss that is not finite. The weights are then those before the step.
        """
        z_BD, loss = self._loss(a_BD, class_embeddings_CE, yhat_B, x_BE)
        metrics = self._metrics(loss)
        if not math.isfinite(metrics.loss):
            raise BadAlignment(f"the loss is {metrics.loss} at step {self.steps_done}; lower lr ({self.settings.lr:g})")
        self._update(z_BD, loss)
        return metrics

    @torch.no_grad()
    def evaluate(
        self, a_BD: Tensor, class_embeddings_CE: Tensor | None, yhat_B: Tensor | None, x_BE: Tensor
    ) -> AlignMetrics:
        """The metrics of a held-out batch, from which nothing is learned. Raises: BadAlignment, as `step`."""
        return self._metrics(self._loss(a_BD, class_embeddings_CE, yhat_B, x_BE)[1])

    def end_epoch(self, held_out_loss: float) -> bool:
        """Keep the weights if no epoch had a lower held-out loss; whether as many in a row as the patience did not."""
        if self.settings.patience is None:
            raise RuntimeError("without a patience nothing is held out; set patience or do not call end_epoch")
        if held_out_loss < self.best_loss:
            self.best_loss, self.best_steps, self.epochs_since_best = held_out_loss, self.steps_done, 0
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items()}
        else:
            self.epochs_since_best += 1
        return self.epochs_since_best >= self.settings.patience

    def finish(self) -> NeuronEncoder:
        """The trained encoder in float32; with a patience, of the epoch with the lowest held-out loss.

        Raises:
            BadAlignment: weights that are not finite.
        """
        if not self.steps_done:
            raise RuntimeError("nothing was trained; call begin(moments) and step(...) first")
        weights = self.best or self.weights
        config = EncoderConfig(
            settings=self.settings, d=self.d, dim=self.dim, logit_scale=float(_scale_of(weights, self._scale)),
            steps=self.best_steps if self.best else self.steps_done,
        )  # fmt: skip
        named = {"W": weights["W"], "bias": weights.get("b")}
        named |= dict(zip(("mean", "std"), self._norm or (None, None)))
        tensors = {name: t.detach().to(torch.float32, copy=True) for name, t in named.items() if t is not None}
        return NeuronEncoder(config, **tensors).check()

    # -------------------------------------------------------------- state

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on; the tensors are the trainer's own, so write them before the next step."""
        if not self.begun:
            raise RuntimeError("nothing to keep before begin(moments)")
        return self._named()

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a trainer with the same settings and widths; on CPU with the same bits.

        Raises:
            BadAlignment: names or shapes are not those of this run.
        """
        if wrong := differing(self._named(), state):
            raise BadAlignment(f"this state is of another training run; names that differ: {', '.join(wrong)}")
        self.steps_done, self.best_steps = int(state["steps"]), int(state["best.steps"])
        self.epochs_since_best, self.best_loss = int(state["best.epochs_since"]), float(state["best.loss"])
        self.zero_channels.copy_(state["zero_channels"])
        if self._norm is not None:
            for own, kept in zip(self._norm, (state["norm.mean"], state["norm.std"]), strict=True):
                own.copy_(kept)
        self.best = {}
        if self.best_loss < math.inf:
            self.best = {
                name: state[f"best.weight.{name}"].to(weight, copy=True) for name, weight in self.weights.items()
            }
        restore_weights(self.weights, self.adam, state, self.steps_done)
        self.begun = True

    # -------------------------------------------------------------- inside

    def _named(self) -> dict[str, Tensor]:
        found = keep_weights(self.weights, self.adam) | {"zero_channels": self.zero_channels}
        counters = {
            "steps": self.steps_done,
            "best.steps": self.best_steps,
            "best.epochs_since": self.epochs_since_best,
        }
        found |= {name: torch.tensor(value, dtype=torch.int64) for name, value in counters.items()}
        found["best.loss"] = torch.tensor(self.best_loss, dtype=torch.float64)
        if self._norm is not None:
            found |= dict(zip(("norm.mean", "norm.std"), self._norm, strict=True))
        if self.settings.patience is not None:
            found |= {f"best.weight.{name}": value for name, value in (self.best or self.weights).items()}
        return found

    def _loss(self, a_BD: Tensor, c_CE: Tensor | None, yhat_B: Tensor | None, x_BE: Tensor) -> tuple[Tensor, AlignLoss]:
        """The standardised activations and the loss on them."""
        if not self.begun:
            raise RuntimeError("call begin(moments) or load_state(state) before the first step")
        if c_CE is None or yhat_B is None:
            if self.settings.needs_classes:
                raise BadAlignment(
                    "the loss is towards predicted classes, but none are given; give them, or w_out 0 without multi_positive"
                )
            # one class for all, which counts for nothing
            c_CE, yhat_B = torch.ones(1, self.dim), torch.zeros(len(x_BE), dtype=torch.int64)
        if not len(a_BD) == len(yhat_B) == len(x_BE) or not len(a_BD):
            raise BadAlignment(
                f"{len(a_BD)} activations, {len(yhat_B)} predictions, {len(x_BE)} images; expected as many of each"
            )
        check_rows("activations", a_BD, self.d)
        check_width("image embeddings", x_BE, self.dim)
        check_width("class embeddings", c_CE, self.dim)
        classes_K, own_B = yhat_B.to(self.device).unique(return_inverse=True)
        if int(classes_K[0]) < 0 or int(classes_K[-1]) >= len(c_CE):
            raise BadAlignment(
                f"predicted classes from {int(classes_K[0])} to {int(classes_K[-1])}; expected 0 to {len(c_CE) - 1}, as "
                f"there are {len(c_CE)} class embeddings"
            )
        a_BD, x_BE = a_BD.to(self.device, self.dtype), x_BE.to(self.device, self.dtype)
        c_KE = c_CE.to(self.device)[classes_K].to(self.dtype)
        z_BD = standardised(a_BD, *(self._norm or (None, None)))
        n_BE = z_BD @ self.weights["W"].T
        if "b" in self.weights:
            n_BE += self.weights["b"]
        c_KE, x_BE = unit_rows("class embeddings", c_KE, classes_K), unit_rows("image embeddings of the batch", x_BE)
        s = self.settings
        return z_BD, alignment_loss(n_BE, c_KE, own_B, x_BE, self.logit_scale, s.w_out, s.w_in, s.multi_positive)

    def _update(self, z_BD: Tensor, loss: AlignLoss) -> None:
        torch.mm(loss.to_n_BE.T, z_BD, out=self.weights["W"].grad)
        if "b" in self.weights:
            torch.sum(loss.to_n_BE, 0, out=self.weights["b"].grad)
        if "log_scale" in self.weights:
            torch.mul(loss.to_scale, self.logit_scale, out=self.weights["log_scale"].grad)
        self.adam.step()
        if "log_scale" in self.weights:
            self.weights["log_scale"].clamp_(max=math.log(LEARNED_SCALE[1]))
        self.steps_done += 1

    def _metrics(self, loss: AlignLoss) -> AlignMetrics:
        parts = (loss.loss_out, loss.loss_in, loss.retrieval_out, loss.retrieval_in)
        known = torch.stack([loss.loss, self.logit_scale.double(), *(part for part in parts if part is not None)])
        total, scale, *rest = known.tolist()  # one wait for the device
        numbers = iter(rest)
        out, in_, found_out, found_in = (None if part is None else next(numbers) for part in parts)
        return AlignMetrics(total, out, in_, found_out, found_in, scale)


def _initial(settings: AlignSettings, d: int, dim: int) -> dict[str, Tensor]:
    """W [E,D] and b [E] uniform within 1 / sqrt(d), as torch's linear layers begin: a function of the seed alone."""
    generator = torch.Generator().manual_seed(settings.seed)
    weights = {"W": torch.nn.init.kaiming_uniform_(torch.empty(dim, d), a=math.sqrt(5), generator=generator)}
    if settings.bias:
        weights["b"] = (torch.rand(dim, generator=generator) * 2 - 1) / math.sqrt(d)
    if settings.logit_scale == "learned":
        weights["log_scale"] = torch.tensor(math.log(LEARNED_SCALE[0]))
    return weights


def _first_scale(settings: AlignSettings, clip_scale: float | None) -> float:
    if settings.logit_scale == "learned":
        return LEARNED_SCALE[0]
    if settings.logit_scale != "clip":
        return settings.logit_scale
    if clip_scale is None:
        raise BadAlignment("logit_scale is clip, but the logit scale of the CLIP was not given; give it or a number")
    return clip_scale


def _scale_of(weights: Mapping[str, Tensor], fixed: Tensor) -> Tensor:
    return weights["log_scale"].exp() if "log_scale" in weights else fixed
