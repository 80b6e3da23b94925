"""What one sparse autoencoder is and how it is trained: frozen settings that travel in specs, digests and weight files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Frozen
from schemas.errors import BadSae
from schemas.refs import Sample, Site

Arch = Literal["relu", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"]
ARCHS: tuple[Arch, ...] = ("relu", "gated", "topk", "batchtopk", "matryoshka", "jumprelu")
Normalisation = Literal["unit_ms", "sqrt_d", "none"]
LEVELS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32)
LARGEST_LR_WIDTH = 2**14
DENSE_CELLS = 2**23
"""Tokens x latents that are ever held as one dense matrix."""
_FLOAT = 4


class SaeSettings(Frozen):
    """Everything that decides the weights of one SAE beside the tokens it sees; None means the usual formula."""

    arch: Arch
    latents: int = Field(ge=1)
    k: int | None = Field(default=None, ge=1)
    """Active latents per token (topk, batchtopk, matryoshka), or the L0 that jumprelu is driven to; None otherwise."""
    l1: float | None = Field(default=None, ge=0)
    """Weight of the sparsity penalty of relu and gated; None otherwise."""
    lr: float = Field(gt=0)
    seed: int = 0
    steps: int = Field(ge=1)
    normalise: Normalisation = "unit_ms"
    centre: Literal["mean", "geometric_median", "none"] = "geometric_median"
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(default=1000, ge=0)
    decay_from: float = Field(default=0.8, gt=0, le=1)
    """Share of the steps after which the rate falls linearly to zero."""
    grad_clip: float = Field(default=1.0, gt=0)
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    """Weight of the loss that revives dead latents; 0 leaves it out."""
    aux_k: int | None = Field(default=None, ge=1)
    """Dead latents that explain the residual of a token; half the width if None."""
    dead_tokens: int = Field(ge=1)
    """A latent that has not fired for so many tokens counts as dead."""
    group_sizes: tuple[int, ...] = ()
    """Matryoshka: latents per level, from the innermost."""
    level_weights: tuple[float, ...] = ()
    """Matryoshka: weight of the reconstruction by each prefix."""
    scope: Literal["global", "local"] = "global"
    """Whether the batch of batchtopk is the whole batch or each data-parallel worker's own."""
    bandwidth: float = Field(default=1e-3, gt=0)
    """JumpReLU: width of the kernel through which thresholds get gradients."""
    initial_threshold: float = Field(default=1e-3, gt=0)
    sparsity_coefficient: float = Field(default=1.0, ge=0)
    """JumpReLU: weight of (L0 / k - 1)^2."""
    sparsity_warmup_steps: int = Field(default=2000, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's matrix product; weights, residuals and losses are fp32 whatever it is."""

    @model_validator(mode="after")
    def _fields_fit_the_arch(self) -> SaeSettings:
        wants_k = self.arch in ("topk", "batchtopk", "matryoshka", "jumprelu")
        if wants_k and self.k is None:
            raise ValueError(f"{self.arch} needs k, the number of active latents per token")
        if self.k is not None and self.k > self.latents:
            raise ValueError(f"k is {self.k}, but there are only {self.latents} latents; expected k <= latents")
        if self.arch == "matryoshka":
            if sum(self.group_sizes) != self.latents or min(self.group_sizes, default=0) < 1:
                raise ValueError(
                    f"group_sizes {list(self.group_sizes)} sum to {sum(self.group_sizes)}; expected positive sizes "
                    f"that sum to the {self.latents} latents"
                )
            if len(self.level_weights) != len(self.group_sizes):
                raise ValueError(f"{len(self.level_weights)} level_weights for {len(self.group_sizes)} group_sizes")
        return self


class SaeConfig(Frozen):
    """What must travel with the weights of a trained SAE, wherever it came from; its norm is already folded in."""

    arch: Arch
    d: int = Field(ge=1)
    latents: int = Field(ge=1)
    k: int | None = Field(default=None, ge=1)
    apply_b_dec_to_input: bool = True
    post_topk_relu: bool = True
    """False: the kept k may be negative, as in the weight-normed TopK of the Attributing-CLIP code."""
    groupmax: bool = False
    """TopK over k equal groups of latents, one from each (a choice of sparsify)."""
    group_sizes: tuple[int, ...] = ()
    input_norm: Literal["none", "layer_norm", "constant_norm"] = "none"
    """A normalisation per token that cannot be folded and so happens when the SAE runs (some SAELens files)."""
    norm_scale: float = 1.0
    """The length in the model's units that was 1 in training: activations here are this times those of the run."""
    model: str | None = None
    site: str | None = None
    activations: str | None = None
    """Digest of the stage of activations that it was trained on: weights and preprocessing of the model, site, images."""
    source: str = "miclip"
    """Which format it was read from."""
    tokens: int | None = None
    """Tokens it was trained on."""
    seed: int | None = None
    precision: str | None = None

    def check(self, site: str | Site, width: int) -> None:
        """Whether it can be of the tokens of a canonical site of this width; a sample of positions is the same kind of token.

        What other libraries call a site is not ours to read, so of their SAEs only the width counts.

        Raises:
            BadSae: it has another width, or is one of ours that was trained at another site or kind of token.
        """
        if self.d != width:
            raise BadSae(
                f"this SAE encodes {self.d} channels, but {site} has {width}; give one that was trained at this site"
            )
        if self.source != "miclip" or self.site is None:
            return
        own, wanted = Site.parse(self.site), Site.parse(str(site))
        if _kind(own) != _kind(wanted):
            raise BadSae(f"this SAE was trained at {own}, not at {wanted}; give that site, or an SAE of this one")


def _kind(site: Site) -> Site:
    """The tokens of a site, all of them."""
    return site.model_copy(update={"reduce": None}) if isinstance(site.reduce, Sample) else site


class StreamSettings(Frozen):
    """The order in which tokens are seen: a pure function of these and the number of images, of no worker or source."""

    batch_tokens: int = Field(ge=1)
    buffer_batches: int = Field(ge=1)
    """Batches in a window, inside which tokens are shuffled; windows are made of blocks in random order."""
    block_images: int = Field(ge=1)
    """Neighbours in the index that are read together."""
    holdout: float = Field(gt=0, lt=1)
    """Share of the blocks that training never sees; evaluation sees nothing else."""
    seed: int = 0


def default_lr(latents: int) -> float:
    """2e-4 / sqrt(latents / 2^14), the scaling of Gao et al. 2024 (appendix) as common trainers use it."""
    return 2e-4 / (latents / LARGEST_LR_WIDTH) ** 0.5


def default_dead_tokens(latents: int, k: int | None) -> int:
    """200 expected firings under uniform use, at least 1e5 and at most 1e7 tokens."""
    return int(min(max(200 * latents / (k or 32), 1e5), 1e7))


def make_group_sizes(latents: int, fractions: tuple[float, ...] = LEVELS) -> tuple[int, ...]:
    """Latents per Matryoshka level: the floor of each fraction, what is left goes to the last."""
    sizes = [int(fraction * latents) for fraction in fractions]
    return (*sizes[:-1], latents - sum(sizes[:-1]))


def training_bytes(settings: SaeSettings, d: int, batch_tokens: int = 8192) -> int:
    """Memory that training one SAE takes at most beside the window of tokens, in bytes.

    Four copies of both weight matrices (weights, gradients, Adam's two moments) and what one batch of B tokens needs: ten
    copies of its tokens (and two more per level of a Matryoshka), 64 bytes for each of its B x k kept values or of the
    B x k_aux that revive the dead, the gradients of the rows that those touch, and a few slices of pre-activations.
    """
    selecting = settings.arch in ("topk", "batchtopk", "matryoshka")
    revived = (settings.aux_k or d // 2) if settings.aux_coefficient else 0
    entries = batch_tokens * max(2 * (settings.k or 0), revived) if selecting else 0
    matrices = 4 * 2 * settings.latents * d * _FLOAT
    matrices += settings.latents * d * _FLOAT // 2 if settings.precision == "bf16" else 0
    tokens = batch_tokens * (10 + 2 * len(settings.group_sizes)) * d * _FLOAT
    touched = min(settings.latents, entries) * d * _FLOAT
    slices = (
        {"gated": 8, "jumprelu": 6}.get(settings.arch, 4) * min(DENSE_CELLS, batch_tokens * settings.latents) * _FLOAT
    )
    return matrices + tokens + entries * 64 + touched + slices
