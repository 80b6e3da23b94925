"""A trained sparse autoencoder: its weights in one layout for all kinds, how it encodes and how it decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from miclip_core.sae.codes import Codes
from miclip_core.sae.kernels import blockwise_topk
from schemas.errors import BadSae, BadTokens, ThresholdUnset
from schemas.sae import DENSE_CELLS, SaeConfig

GATE = ("b_gate", "b_mag", "r_mag")
_ROWS = 4096
_LAYER_NORM_EPS = 1e-5
_SHORTEST_DECODER = 1e-8


@dataclass(frozen=True, eq=False)
class Sae:
    """`f = act((x - b_dec) @ W_enc^T + b_enc)`, `x_hat = f @ W_dec + b_dec`; row i of W_dec is the vector of latent i.

    W_enc, W_dec [U,d]; b_enc [U]; b_dec [d]; threshold [U] or None; all in one float dtype, in the units of the model.
    gate: `b_gate`, `b_mag`, `r_mag` [U] of a gated one, whose b_enc is zero; empty for the others.
    b_dec is taken off the input only where `config.apply_b_dec_to_input`.
    """

    config: SaeConfig
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    gate: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name."""
        weights = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec, **self.gate}
        return weights if self.threshold is None else {**weights, "threshold": self.threshold}

    @classmethod
    def from_tensors(cls, config: SaeConfig, tensors: Mapping[str, Tensor]) -> Sae:
        """The inverse of `tensors`.

        Raises:
            BadSae: names are missing or unknown; the message lists them.
        """
        needed = {"W_enc", "b_enc", "W_dec", "b_dec", *(GATE if config.arch == "gated" else ())}
        missing, unknown = needed - set(tensors), set(tensors) - needed - {"threshold"}
        if missing or unknown:
            raise BadSae(
                f"a {config.arch} SAE with tensors {sorted(tensors)}: missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        gate = {name: tensors[name] for name in GATE if name in tensors}
        own = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return cls(config, **own, threshold=tensors.get("threshold"), gate=gate)

    def to(self, target: str | torch.device | torch.dtype) -> Sae:
        """The same SAE on another device or in another float dtype."""
        moved = {name: tensor.to(target) for name, tensor in self.tensors().items()}
        return Sae.from_tensors(self.config, moved)

    def with_config(self, **changes: object) -> Sae:
        """The same weights with other facts about them (model, site, tokens ...)."""
        return replace(self, config=SaeConfig.model_validate({**self.config.model_dump(), **changes}))

    def check(self) -> Sae:
        """This SAE, proved to be usable.

        Raises:
            BadSae: a shape, dtype or value is wrong, a decoder row has no length, or k is missing.
            ThresholdUnset: it fires above a threshold that is missing or was never measured.
        """
        m, d = self.config.latents, self.config.d
        shapes = {"W_enc": (m, d), "W_dec": (m, d), "b_dec": (d,)}
        for name, tensor in self.tensors().items():
            expected = shapes.get(name, (m,))
            if tuple(tensor.shape) != expected:
                raise BadSae(
                    f"{name} has shape {tuple(tensor.shape)}; expected {expected} for {m} latents of width {d}"
                )
            if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != self.W_dec.dtype:
                raise BadSae(f"{name} is {tensor.dtype}; expected all weights in float32 or all in float64")
            if not bool(torch.isfinite(tensor).all()):
                raise BadSae(f"{name} holds NaN or infinite values; the file is damaged or its training diverged")
        short = (self.W_dec.norm(dim=1) < _SHORTEST_DECODER).nonzero().flatten().tolist()
        if short:
            raise BadSae(
                f"{len(short)} rows of W_dec have no length, the first are {short[:5]}; expected norms >= 1e-8"
            )
        if self.config.arch == "topk" and self.config.k is None:
            raise BadSae("a topk SAE without k; name how many latents fire per token")
        if self.config.groupmax and m % (self.config.k or 1):
            raise BadSae(f"groupmax: {m} latents do not divide into k={self.config.k} equal groups")
        self._check_threshold()
        return self

    def _check_threshold(self) -> None:
        if self.config.arch not in ("batchtopk", "matryoshka", "jumprelu"):
            return
        if self.threshold is None:
            raise ThresholdUnset(f"a {self.config.arch} SAE needs `threshold` [{self.config.latents}]; there is none")
        if self.config.arch != "jumprelu" and bool((self.threshold < 0).any()):
            raise ThresholdUnset(
                f"the threshold of this {self.config.arch} SAE is {float(self.threshold.min()):g}, so it was never "
                "measured; train it for more steps before it is used"
            )

    # -------------------------------------------------------------- running

    def pre_activations(self, x_ND: Tensor, latents: slice | Tensor = slice(None)) -> Tensor:
        """`(x - b_dec) @ W_enc^T + b_enc` of the chosen latents, [N, chosen]: before any activation function.

        A gated SAE adds neither of its biases here. Raises: BadTokens.
        """
        return self._pre(self._input(x_ND)[0], latents)

    def encode(self, x_ND: Tensor) -> Codes:
        """The codes of tokens [N,d] of any float dtype; never more than a bounded part of N x U in memory.

        Raises:
            BadTokens: another width than d, or NaN or infinite values. ThresholdUnset.
        """
        self._check_threshold()
        by_topk = self.config.arch == "topk" and not self.config.groupmax
        rows = _ROWS if by_topk else max(1, DENSE_CELLS // self.config.latents)
        make = self._topk if by_topk else self._dense
        c_ND = self._input(x_ND)[0]
        return Codes.concat([make(part) for part in c_ND.split(rows)])

    def decode(self, codes: Codes, x_ND: Tensor | None = None) -> Tensor:
        """The reconstruction x_hat [N,d] of the codes.

        x: the tokens that were encoded; only an SAE with a per-token `input_norm` needs them.
        """
        sums_ND = functional.embedding_bag(
            codes.latents.long(), self.W_dec, codes.offsets, mode="sum", per_sample_weights=codes.values,
            include_last_offset=True,
        )  # fmt: skip
        x_hat_ND = sums_ND + self.b_dec
        if self.config.input_norm == "none":
            return x_hat_ND
        if x_ND is None:
            raise ValueError(f"input_norm {self.config.input_norm} is undone with the tokens; give decode(codes, x)")
        _, scale_N1, shift_N1 = self._normalised(self._checked(x_ND))
        return x_hat_ND * scale_N1 + shift_N1

    def decoder_scale(self, x_ND: Tensor) -> Tensor:
        """By what `decode` multiplies the vectors of latents on each token, [N,1]: 1 unless `input_norm` is per token.

        Raises: BadTokens.
        """
        return self._normalised(self._checked(x_ND))[1]

    def reconstruct(self, x_ND: Tensor) -> tuple[Codes, Tensor]:
        """The codes of tokens [N,d] and what they decode to [N,d]."""
        codes = self.encode(x_ND)
        return codes, self.decode(codes, x_ND)

    # -------------------------------------------------------------- inside

    def _checked(self, x_ND: Tensor) -> Tensor:
        if x_ND.ndim != 2 or x_ND.shape[1] != self.config.d:
            raise BadTokens(f"expected tokens [N, d={self.config.d}], got {tuple(x_ND.shape)}; is this the right site?")
        x_ND = x_ND.to(self.W_enc)
        check_finite(x_ND)
        return x_ND

    def _input(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder's matrix sees, and the scale and shift per token that undo a per-token normalisation."""
        x_ND, scale, shift = self._normalised(self._checked(x_ND))
        return x_ND - self.b_dec if self.config.apply_b_dec_to_input else x_ND, scale, shift

    def _normalised(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = x_ND.new_ones(len(x_ND), 1)
        if self.config.input_norm == "layer_norm":  # SAELens: the standard deviation is the unbiased one
            shift, std = x_ND.mean(1, keepdim=True), x_ND.std(1, keepdim=True)
            return (x_ND - shift) / (std + _LAYER_NORM_EPS), std, shift
        if self.config.input_norm == "constant_norm":
            scale = x_ND.norm(dim=1, keepdim=True) / self.config.d**0.5
            return x_ND / scale, scale, torch.zeros_like(one)
        return x_ND, one, torch.zeros_like(one)

    def _pre(self, c_ND: Tensor, latents: slice | Tensor = slice(None)) -> Tensor:
        return torch.addmm(self.b_enc[latents], c_ND, self.W_enc[latents].T)

    def _topk(self, c_ND: Tensor) -> Codes:
        values, latents = blockwise_topk(c_ND, self.W_enc, self.b_enc, self.config.k or 1)
        if self.config.post_topk_relu:
            values = values.relu()
        return Codes.from_topk(latents, values, self.config.latents)

    def _dense(self, c_ND: Tensor) -> Codes:
        p_NU = self._pre(c_ND)
        if self.config.groupmax:
            groups = p_NU.unflatten(1, (self.config.k or 1, -1))
            values, inside = groups.max(2)
            first = torch.arange(groups.shape[1], device=p_NU.device) * groups.shape[2]
            return Codes.from_topk(inside + first, values.relu(), self.config.latents)
        return Codes.from_dense(self._activate(p_NU))

    def _activate(self, p_NU: Tensor) -> Tensor:
        if self.config.arch == "relu":
            return p_NU.relu()
        if self.config.arch == "gated":
            magnitude = (p_NU * self.gate["r_mag"].exp() + self.gate["b_mag"]).relu()
            return magnitude * (p_NU + self.gate["b_gate"] > 0)
        assert self.threshold is not None
        return p_NU.relu() * (p_NU > self.threshold)


def check_finite(x_ND: Tensor) -> None:
    """Refuse tokens with NaN or infinite values.

    Raises:
        BadTokens: names how many rows and the first of them.
    """
    if bool(torch.isfinite(x_ND.sum())):  # one pass; an overflow of the sum alone is told apart below
        return
    rows = (~torch.isfinite(x_ND).all(1)).nonzero().flatten().tolist()
    if rows:
        raise BadTokens(f"{len(rows)} of {len(x_ND)} tokens hold NaN or infinite values, the first are rows {rows[:5]}")
