"""One training run of one SAE: batches of tokens in, metrics out, weights in the model's units at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from miclip_core.adam import differing, keep_weights, restore_weights
from miclip_core.sae.batch import Batch, Outcome, sums_over
from miclip_core.sae.dead import DeadCount
from miclip_core.sae.normalise import Norm, fold, measure_norm
from miclip_core.sae.objectives import objective
from miclip_core.sae.parallel import Alone, Group
from miclip_core.sae.sae import Sae
from miclip_core.sae.schedule import measures_threshold, next_threshold, rate
from schemas.errors import BadSae, BadTokens, SaeCollapsed, SaeDiverged, ThresholdUnset
from schemas.sae import SaeConfig, SaeSettings

NO_THRESHOLD = -1.0
_ROWS = 2048


class StepMetrics(NamedTuple):
    """One step, in training units, over the tokens of all workers.

    loss is per token: mse (of the full width), and the penalty or auxiliary loss of the kind; aux before its coefficient;
    fvu of this batch; l0 values above 0 per token; dead latents before the step; threshold: the running one, the mean
    of jumprelu's, or -1 where there is none (yet); grad_norm before clipping.
    """

    loss: float
    mse: float
    aux: float
    fvu: float
    l0: float
    dead: int
    threshold: float
    lr: float
    grad_norm: float


class SaeTrainer:
    """Weights, moments and counters of one SAE in training. It shares nothing with others: side by side is one by one.

    `begin` once, then `step` per batch, then `finish`; or `load_state` instead of `begin`. With a group every worker
    calls the same methods with its own slice of the tokens, and all end with the same weights.
    dtype is float32, or float64 for oracles; the initial weights are the same in both.
    """

    def __init__(
        self,
        settings: SaeSettings,
        d: int,
        device: str | torch.device = "cpu",
        group: Group | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.d, self.dtype = settings, d, dtype
        self.device, self.group = torch.device(device), group or Alone()
        self.steps_done = self.tokens_seen = self.threshold_updates = 0
        self.threshold = NO_THRESHOLD
        self.norm: Norm | None = None
        self.dead_count = DeadCount(settings.latents, settings.dead_tokens, self.device)
        self.weights = {name: value.to(self.device, dtype) for name, value in _initial(settings, d).items()}
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
        self.adam = torch.optim.Adam(self.weights.values(), lr=settings.lr, betas=settings.betas, fused=True)

    # -------------------------------------------------------------- the run

    def begin(self, rows_ND: Tensor) -> None:
        """Measure the normalisation on the first window of tokens [N,d].

        Raises:
            BadTokens: another width, NaN or infinite values, or no variance.
        """
        self._check_width(rows_ND)
        self.norm = measure_norm(rows_ND.to(self.device), self.settings, self.group)

    @torch.no_grad()
    def step(self, x_BD: Tensor) -> StepMetrics:
        """Learn from one batch [B,d] in the model's units.

        Order: gradients, decoder gradients made tangent, clipping, Adam at the scheduled rate, decoder rows back to length 1.

        Raises:
            BadTokens: another width, NaN or infinite values. SaeDiverged: the loss is not finite. The weights are then
            those before the step.
        """
        self._check_width(x_BD)
        if self.norm is None:
            raise RuntimeError("call begin(rows) or load_state(state) before the first step")
        tokens = int(sums_over(self.group, n=torch.tensor(len(x_BD), device=self.device))["n"])
        if tokens == 0:
            raise BadTokens("a batch of no tokens; expected at least one")
        dead = self.dead_count.dead()
        grads = {name: weight.grad.zero_() for name, weight in self.weights.items() if weight.grad is not None}
        batch = Batch(self.norm.apply(x_BD, self.dtype), tokens, self.steps_done, dead, self.group)
        outcome = objective(self.settings, self.weights, grads, batch)
        if not math.isfinite(outcome.loss):
            raise SaeDiverged(f"the loss is {outcome.loss} at step {self.steps_done}; lower lr ({self.settings.lr:g})")
        for grad in grads.values():
            self.group.all_sum(grad)
        lr = rate(self.settings, self.steps_done)
        grad_norm = self._update(grads, lr)
        self._count(outcome, tokens)
        return StepMetrics(
            outcome.loss, outcome.mse, outcome.aux, outcome.fvu, outcome.l0, len(dead), self._reported_threshold(), lr, grad_norm
        )  # fmt: skip

    def finish(self) -> Sae:
        """The trained SAE in the model's units with decoder rows of length 1.

        Raises:
            SaeCollapsed: not one latent fired on the last batch. ThresholdUnset: batchtopk or matryoshka ended before
            its threshold was ever measured. BadSae: weights that are not finite.
        """
        if self.norm is None or not self.steps_done:
            raise RuntimeError("nothing was trained; call begin(rows) and step(x) first")
        settings, m = self.settings, self.settings.latents
        if self.dead_count.all_silent:
            raise SaeCollapsed(
                f"none of the {m} latents of this {settings.arch} SAE fired on the last batch, after {self.steps_done} "
                f"steps; {_cure(settings)}"
            )
        if settings.arch in ("batchtopk", "matryoshka") and self.threshold < 0:
            raise ThresholdUnset(
                f"the threshold of this {settings.arch} SAE was not measured in {self.steps_done} of {settings.steps} "
                "steps; let it train to the end"
            )
        tensors = {name: weight.clone() for name, weight in self.weights.items() if name != "theta"}
        tensors.setdefault("b_enc", torch.zeros(m, dtype=self.dtype, device=self.device))
        if settings.arch == "jumprelu":
            tensors["threshold"] = self.weights["theta"].clone()
        elif self.threshold >= 0:
            tensors["threshold"] = torch.full((m,), self.threshold, dtype=self.dtype, device=self.device)
        return fold(Sae.from_tensors(self._config(), tensors), self.norm).check()

    # -------------------------------------------------------------- state

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on; the tensors are the trainer's own, so write them before the next step."""
        if self.norm is None:
            raise RuntimeError("nothing to keep before begin(rows)")
        found = keep_weights(self.weights, self.adam)
        counters = {"steps": self.steps_done, "tokens": self.tokens_seen, "threshold_updates": self.threshold_updates}
        found |= {name: torch.tensor(value, dtype=torch.int64) for name, value in counters.items()}
        numbers = {"threshold": self.threshold, "norm.scale": self.norm.scale}
        found |= {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return found | {"since": self.dead_count.since, "norm.mu": self.norm.mu_D}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a trainer with the same settings and width; on CPU with the same bits.

        Raises:
            BadSae: names or shapes are not those of this run.
        """
        self.norm = self.norm or Norm(torch.zeros(self.d, dtype=torch.float64, device=self.device), 1.0)
        if wrong := differing(self.state(), state):
            raise BadSae(f"this state is of another training run; names that differ: {', '.join(wrong)}")
        self.norm = Norm(state["norm.mu"].to(self.device, copy=True), float(state["norm.scale"]))
        self.dead_count.since.copy_(state["since"])
        self.steps_done, self.tokens_seen = int(state["steps"]), int(state["tokens"])
        self.threshold, self.threshold_updates = float(state["threshold"]), int(state["threshold_updates"])
        restore_weights(self.weights, self.adam, state, self.steps_done)

    # -------------------------------------------------------------- inside

    def _update(self, grads: Mapping[str, Tensor], lr: float) -> float:
        W_dec_UD = self.weights["W_dec"]
        for v, g in zip(W_dec_UD.split(_ROWS), grads["W_dec"].split(_ROWS)):
            along = (g * v).sum(1, keepdim=True) / (v * v).sum(1, keepdim=True)
            g.addcmul_(v, along, value=-1)
        norm = float(torch.stack([torch.linalg.vector_norm(grad).double() for grad in grads.values()]).norm())
        if not math.isfinite(norm):
            raise SaeDiverged(f"a gradient is not finite at step {self.steps_done}; lower lr ({self.settings.lr:g})")
        if norm > self.settings.grad_clip:
            for grad in grads.values():
                grad.mul_(self.settings.grad_clip / (norm + 1e-6))
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        for v in W_dec_UD.split(_ROWS):
            v.div_(v.norm(dim=1, keepdim=True).add_(torch.finfo(self.dtype).eps))
        if self.settings.arch == "jumprelu":
            self.weights["theta"].clamp_(min=0)  # below 0 a latent would fire with negative values
        return norm

    def _count(self, outcome: Outcome, tokens: int) -> None:
        if outcome.smallest is not None and measures_threshold(self.settings, self.steps_done):
            self.threshold = next_threshold(self.threshold, self.threshold_updates, outcome.smallest)
            self.threshold_updates += 1
        self.dead_count.update(outcome.fired_U, tokens)
        self.steps_done += 1
        self.tokens_seen += tokens

    def _reported_threshold(self) -> float:
        return float(self.weights["theta"].mean()) if self.settings.arch == "jumprelu" else self.threshold

    def _check_width(self, x_ND: Tensor) -> None:
        if x_ND.ndim != 2 or x_ND.shape[1] != self.d:
            raise BadTokens(f"expected tokens [N, d={self.d}], got {tuple(x_ND.shape)}; is this the right site?")

    def _config(self) -> SaeConfig:
        s = self.settings
        return SaeConfig(
            arch=s.arch, d=self.d, latents=s.latents, k=s.k, group_sizes=s.group_sizes, tokens=self.tokens_seen, seed=s.seed,
            precision=s.precision,
        )  # fmt: skip


def _initial(settings: SaeSettings, d: int) -> dict[str, Tensor]:
    """Decoder rows of random directions and length 1, encoder rows equal to them, biases 0: a function of the seed alone."""
    generator = torch.Generator().manual_seed(settings.seed)
    W_dec_UD = torch.randn(settings.latents, d, generator=generator)
    W_dec_UD /= W_dec_UD.norm(dim=1, keepdim=True)
    zeros_U = torch.zeros(settings.latents)
    per_kind = {
        "gated": {"b_gate": zeros_U, "b_mag": zeros_U, "r_mag": zeros_U},
        "jumprelu": {"b_enc": zeros_U, "theta": torch.full_like(zeros_U, settings.initial_threshold)},
    }
    biases = per_kind.get(settings.arch, {"b_enc": zeros_U})
    weights = {"W_enc": W_dec_UD, "W_dec": W_dec_UD, "b_dec": torch.zeros(d), **biases}
    return {name: value.clone() for name, value in weights.items()}


def _cure(settings: SaeSettings) -> str:
    match settings.arch:
        case "relu" | "gated":
            return f"lower l1 ({settings.l1}) or lr ({settings.lr:g})"
        case "jumprelu":
            return f"lower sparsity_coefficient ({settings.sparsity_coefficient:g}) or lr ({settings.lr:g})"
        case _:
            return f"lower lr ({settings.lr:g})"
