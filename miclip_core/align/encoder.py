"""A trained neuron encoder: how activations, neurons and SAE latents get vectors in CLIP space, and its file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import ValidationError
from torch import Tensor

from miclip_core.align.rows import check_rows, check_width
from miclip_core.sae.sae import Sae
from miclip_core.weight_file import DAMAGED, pack, unpack
from schemas.align import EncoderConfig, UnitMode
from schemas.errors import BadAlignment
from schemas.refs import site_path
from schemas.sae import SaeConfig

KEY = "miclip_neuron_encoder"
SMALLEST_STD = 1e-6
"""A channel that varies less is divided by this."""


@dataclass(frozen=True, eq=False)
class NeuronEncoder:
    """`E_n(a) = W (a - mean) / std + bias`: W [E,D], bias [E] or None, mean and std [D] or None; float32.

    Source: MICLIP, section on the neuron encoder; bias and standardisation are options beyond it.
    """

    config: EncoderConfig
    W: Tensor
    bias: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    def embed(self, a_ND: Tensor) -> Tensor:
        """The embeddings [N,E] of activations [N,D] by the whole affine map; not brought to length 1.

        Raises:
            BadAlignment: another width, NaN or infinite values.
        """
        check_rows("activations", a_ND, self.config.d)
        z_ND = standardised(a_ND.to(self.W), self.mean, self.std)
        return z_ND @ self.W.T if self.bias is None else torch.addmm(self.bias, z_ND, self.W.T)

    def embed_units(self, v_UD: Tensor | None = None) -> Tensor:
        """The embeddings [U,E] of directions [U,D] by the linear part alone; of all neurons [D,E], one-hot, if None.

        A row with NaN stays NaN and a row of zeros stays zero: such units have no cosine with anything.

        Raises:
            BadAlignment: another width.
        """
        linear_ED = self.W if self.std is None else self.W / self.std
        if v_UD is None:
            return linear_ED.T.contiguous()
        check_width("unit vectors", v_UD, self.config.d)
        return v_UD.to(self.W) @ linear_ED.T

    def embed_latents(
        self, sae: Sae, mode: UnitMode = "direction", g_U: Tensor | None = None, latents: slice = slice(None)
    ) -> Tensor:
        """The embeddings [chosen, E] of latents of an SAE by the linear part alone; `latents` bounds how many exist at once.

        direction: of `v_i`, the decoder rows (MICLIP, main text). decoded: of `g_i v_i + b_dec`, g [U] the codes of one
        input; most of them are 0, and all those latents have one embedding (MICLIP, Algorithm 2). decoded_mean: the same,
        g [U] each latent's mean activation where it is active; NaN for one that never is, which then stays NaN.

        Raises:
            BadAlignment: the SAE has another width or was trained at another model or site (the positions may differ); g
            is missing, given to `direction` or of another length; or a decoded mode with an SAE that normalises each
            token, whose b_dec is in no units of the model.
        """
        ours, its = _hook(self.config), _hook(sae.config)
        if None not in ours + its and ours != its:
            raise BadAlignment(
                f"this SAE was trained at {its}, the neuron encoder at {ours}; give those of one model and site"
            )
        v_UE = self.embed_units(sae.W_dec[latents])
        if mode == "direction":
            if g_U is not None:
                raise BadAlignment(
                    "activations g were given with mode direction, which has no use for them; leave them out"
                )
            return v_UE
        if g_U is None or g_U.shape != (sae.config.latents,):
            found = None if g_U is None else tuple(g_U.shape)
            raise BadAlignment(f"mode {mode} needs one activation per latent: g [{sae.config.latents}], got {found}")
        if sae.config.input_norm != "none":
            raise BadAlignment(
                f"mode {mode} has no meaning for an SAE with input_norm {sae.config.input_norm}; use mode direction"
            )
        return torch.addcmul(self.embed_units(sae.b_dec[None]), g_U[latents, None].to(v_UE), v_UE)  # E_n is linear here

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name; those that are not there are left out."""
        named = {"W": self.W, "bias": self.bias, "mean": self.mean, "std": self.std}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, target: str | torch.device) -> NeuronEncoder:
        """The same encoder on another device."""
        return NeuronEncoder(self.config, **{name: tensor.to(target) for name, tensor in self.tensors().items()})

    def with_config(self, **changes: object) -> NeuronEncoder:
        """The same weights with other facts about them (model, site, pool, clip ...)."""
        return replace(self, config=EncoderConfig.model_validate({**self.config.model_dump(), **changes}))

    def check(self) -> NeuronEncoder:
        """This encoder, proved to be usable.

        Raises:
            BadAlignment: a tensor is missing or not asked for, or its shape, dtype or values are wrong.
        """
        d, dim, settings = self.config.d, self.config.dim, self.config.settings
        expected: dict[str, tuple[int, ...]] = {"W": (dim, d)}
        expected |= {"bias": (dim,)} if settings.bias else {}
        expected |= {"mean": (d,), "std": (d,)} if settings.standardise else {}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        if found != expected:
            raise BadAlignment(f"a neuron encoder with tensors of shapes {found}; expected {expected}")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32:
                raise BadAlignment(f"{name} is {tensor.dtype}; expected float32")
            if not bool(torch.isfinite(tensor).all()):
                raise BadAlignment(f"{name} holds NaN or infinite values; the file is damaged or its training diverged")
        if self.std is not None and not bool((self.std > 0).all()):
            raise BadAlignment(f"std holds {float(self.std.min())}; expected values above 0, at least {SMALLEST_STD:g}")
        return self


def standardised(a_ND: Tensor, mean_D: Tensor | None, std_D: Tensor | None) -> Tensor:
    """`(a - mean) / std`, or the activations as they are where there is no mean and std."""
    return a_ND if mean_D is None or std_D is None else (a_ND - mean_D).div_(std_D)


def _hook(config: EncoderConfig | SaeConfig) -> tuple[str | None, str | None]:
    """The model and the site without its positions."""
    return config.model, None if config.site is None else site_path(config.site)


# ---------------------------------------------------------------- its file


def save_encoder(encoder: NeuronEncoder) -> bytes:
    """The safetensors file of a checked encoder, its facts as JSON in the header; the same encoder gives the same bytes.

    Raises:
        BadAlignment: see `NeuronEncoder.check`.
    """
    return pack(encoder.check().tensors(), KEY, encoder.config.model_dump_json())


def load_encoder(data: bytes) -> NeuronEncoder:
    """Read such a file.

    Raises:
        BadAlignment: these bytes are no safetensors, are not ours, or hold weights that cannot be used.
    """
    try:
        tensors, facts = unpack(data, KEY)
        encoder = NeuronEncoder(EncoderConfig.model_validate_json(facts), **tensors)
    except (*DAMAGED, TypeError, ValidationError) as error:
        raise BadAlignment(
            f"not a neuron encoder of ours ({type(error).__name__}: {error}); expected safetensors with `{KEY}` in its "
            "metadata, as save_encoder writes"
        ) from error
    return encoder.check()
