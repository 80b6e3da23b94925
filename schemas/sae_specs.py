"""What a person writes about sparse autoencoders: training a sweep of them, importing foreign ones, describing their features."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, Classes, ForwardCell, as_value_error
from schemas.refs import SaeRef
from schemas.sae import (
    LEVELS,
    Arch,
    Normalisation,
    SaeSettings,
    StreamSettings,
    default_dead_tokens,
    default_lr,
    make_group_sizes,
)

SPARSE_BY_K: tuple[Arch, ...] = ("topk", "batchtopk", "matryoshka", "jumprelu")


class TokensCell(ForwardCell):
    """A stage over the tokens of a site: those of a stored `activations` stage that it reads, or computed as they are needed."""

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """Tokens that no stage holds are computed from images."""
        return "extract" not in kinds_read


class MeasuredCell(TokensCell):
    """A stage whose SAEs are measured on blocks of images that training does not see."""

    block_images: Annotated[int, Field(ge=1), RESULT] = 64
    """Neighbours in the index that are read together; blocks come in random order."""
    holdout: Annotated[float, Field(gt=0, lt=1), RESULT] = 0.05
    """Share of the blocks that no training sees, for evaluation."""
    order_seed: Annotated[int, RESULT] = 0
    evaluate_images: Annotated[int, Field(ge=1), RESULT] = 1024
    """At most so many held-out images are measured, some of every held-out block."""
    classes: Annotated[Classes | None, RESULT] = None
    """Zero-shot classes for the loss recovered when reconstructions are put into the model; a head has its own."""
    labels_from: Annotated[str, RESULT] = "label"
    """What names the class of an image: its label, or one of its attributes (a column of the labels file)."""

    @model_validator(mode="after")
    def _tokens_come_from_one_place(self) -> MeasuredCell:
        if self.reads and self.images is not None:
            raise ValueError("images are those of the extract stage that it reads; leave images out, or reads")
        if not self.reads and not self.sites:
            raise ValueError("no sites; give sites: [resid_post.-2@patch], or reads: an extract stage with activations")
        return self


class TrainSaeSpec(MeasuredCell):
    """A sweep of sparse autoencoders: every combination of arch, latents, k or l1, lr and seed, per model and site.

    With `reads` the tokens are stored activations, and `sites` may choose among them; without, they come from a live
    forward pass over `images`. Both give the same weights and have the same digest.
    """

    kind: Annotated[Literal["train_sae"], RESULT] = "train_sae"
    arch: Annotated[tuple[Arch, ...], LISTED, Field(min_length=1), RESULT] = ("topk",)
    latents: Annotated[tuple[Annotated[int, Field(ge=1)], ...], LISTED, Field(min_length=1), RESULT] = (8192,)
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], LISTED, Field(min_length=1), RESULT] = (32,)
    """Active latents per token; for jumprelu the L0 to reach; relu and gated do not use it."""
    l1: Annotated[tuple[Annotated[float, Field(ge=0)], ...], LISTED, Field(min_length=1), RESULT] = (0.05,)
    """Sparsity penalty of relu and gated, in units of normalised activations."""
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], LISTED, RESULT] = ()
    """Learning rates; if none is given 2e-4 / sqrt(latents / 2^14)."""
    seed: Annotated[tuple[int, ...], LISTED, Field(min_length=1), RESULT] = (0,)
    steps: Annotated[int, Field(ge=1), RESULT] = 5000
    batch_tokens: Annotated[int, Field(ge=2), RESULT] = 4096
    buffer_batches: Annotated[int, Field(ge=1), RESULT] = 64
    """Batches in a window, inside which tokens are shuffled."""
    normalise: Annotated[Normalisation, RESULT] = "unit_ms"
    centre: Annotated[Literal["mean", "geometric_median", "none"], RESULT] = "geometric_median"
    betas: Annotated[tuple[float, float], LISTED, RESULT] = (0.9, 0.999)
    warmup_steps: Annotated[int | None, Field(ge=0), RESULT] = None
    """Steps of linear warm-up; a tenth of all, at most 1000, if not given."""
    decay_from: Annotated[float, Field(gt=0, le=1), RESULT] = 0.8
    grad_clip: Annotated[float, Field(gt=0), RESULT] = 1.0
    aux_coefficient: Annotated[float, Field(ge=0), RESULT] = 1 / 32
    """Weight of the loss that revives dead latents of topk, batchtopk and matryoshka; 0 leaves it out."""
    aux_k: Annotated[int | None, Field(ge=1), RESULT] = None
    dead_tokens: Annotated[int | None, Field(ge=1), RESULT] = None
    """Tokens without firing after which a latent counts as dead; 200 latents / k within 1e5 .. 1e7 if not given."""
    levels: Annotated[tuple[float, ...], LISTED, RESULT] = LEVELS
    """Matryoshka: share of the latents in each level, from the innermost; together 1."""
    level_weights: Annotated[Literal["mean", "sum"], RESULT] = "mean"
    """Matryoshka: each prefix counts 1 / levels, or 1."""
    scope: Annotated[Literal["global", "local"], RESULT] = "global"
    bandwidth: Annotated[float, Field(gt=0), RESULT] = 1e-3
    initial_threshold: Annotated[float, Field(gt=0), RESULT] = 1e-3
    sparsity_coefficient: Annotated[float, Field(ge=0), RESULT] = 1.0
    sparsity_warmup_steps: Annotated[int | None, Field(ge=0), RESULT] = None
    """JumpReLU: a fifth of all steps, at most 2000, if not given."""
    precision: Annotated[Literal["fp32", "bf16"], RESULT] = "fp32"
    """Of the encoder's matrix product in training."""
    data_parallel: Annotated[int, Field(ge=1, le=64), RESULT] = 1
    """Workers that train each SAE together, each on its share of every batch."""
    feeders: Annotated[int, Field(ge=0, le=64), EFFORT] = 0
    """Workers beside them that only make tokens."""
    keep_every: Annotated[int, Field(ge=1), EFFORT] = 500
    """Steps between resumable states."""

    @field_validator("betas")
    @classmethod
    def _betas_are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"found {list(value)}, expected two numbers from 0 to below 1, as Adam's (0.9, 0.999)")
        return value

    @field_validator("levels")
    @classmethod
    def _levels_are_shares_of_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(share > 0 for share in value) or abs(sum(value) - 1) > 1e-6:
            raise ValueError(
                f"found {list(value)}, which sum to {sum(value):g}; expected shares above 0 that sum to 1, the latents that "
                "each level adds: prefixes of a quarter and of all are [0.25, 0.75]"
            )
        return value

    @model_validator(mode="after")
    def _every_sae_is_possible(self) -> TrainSaeSpec:
        if self.batch_tokens < self.data_parallel:
            raise ValueError(f"batch_tokens {self.batch_tokens} cannot be shared by data_parallel {self.data_parallel}")
        self.saes()
        return self

    def saes(self) -> tuple[SaeSettings, ...]:
        """Every SAE of the sweep, without repeats: fields that an arch does not use do not tell its SAEs apart.

        Raises:
            ValueError: an impossible combination.
        """
        grid = product(self.arch, self.latents, self.k, self.l1, self.lr or (None,), self.seed)
        return tuple(dict.fromkeys(self._sae(*point) for point in grid))

    def _sae(self, arch: Arch, latents: int, k: int, l1: float, lr: float | None, seed: int) -> SaeSettings:
        by_k = arch in SPARSE_BY_K
        chosen: dict[str, object] = {"k": k} if by_k else {"l1": l1}
        if arch == "matryoshka":
            sizes = make_group_sizes(latents, self.levels)
            if min(sizes) < 1:
                raise ValueError(
                    f"{latents} latents in levels {list(self.levels)} make groups of {list(sizes)}; expected at least one "
                    "in each; give more latents or fewer levels"
                )
            weight = 1.0 if self.level_weights == "sum" else 1 / len(sizes)
            chosen |= {"group_sizes": sizes, "level_weights": (weight,) * len(sizes)}
        if arch in ("batchtopk", "matryoshka"):
            chosen["scope"] = self.scope
        if arch in ("topk", "batchtopk", "matryoshka"):
            chosen |= {"aux_coefficient": self.aux_coefficient, "aux_k": self.aux_k}
        if arch == "jumprelu":
            warm = self.sparsity_warmup_steps
            chosen |= {
                "bandwidth": self.bandwidth,
                "initial_threshold": self.initial_threshold,
                "sparsity_coefficient": self.sparsity_coefficient,
                "sparsity_warmup_steps": min(2000, self.steps // 5) if warm is None else warm,
            }
        return SaeSettings(
            arch=arch,
            latents=latents,
            lr=default_lr(latents) if lr is None else lr,
            seed=seed,
            steps=self.steps,
            normalise=self.normalise,
            centre=self.centre,
            betas=self.betas,
            warmup_steps=min(1000, self.steps // 10) if self.warmup_steps is None else self.warmup_steps,
            decay_from=self.decay_from,
            grad_clip=self.grad_clip,
            dead_tokens=self.dead_tokens or default_dead_tokens(latents, k if by_k else None),
            precision=self.precision,
            **chosen,  # type: ignore[arg-type]
        )

    @property
    def stream(self) -> StreamSettings:
        """The order in which every SAE of the sweep sees the tokens."""
        return StreamSettings(
            batch_tokens=self.batch_tokens,
            buffer_batches=self.buffer_batches,
            block_images=self.block_images,
            holdout=self.holdout,
            seed=self.order_seed,
        )


class ImportSaeSpec(MeasuredCell):
    """SAEs of other formats (`saelens:/dir`, `sparsify:/dir`, ...) at one site, checked, converted and measured."""

    kind: Annotated[Literal["import_sae"], RESULT] = "import_sae"
    saes: Annotated[tuple[str, ...], LISTED, Field(min_length=1), RESULT]
    """Refs `format:location`; see SaeRef."""

    @field_validator("saes")
    @classmethod
    def _saes_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            as_value_error(SaeRef.parse, text)
            if text.startswith("sae:"):
                raise ValueError(f"{text} is in the store already; read it where it is needed")
        return value

    @model_validator(mode="after")
    def _one_site(self) -> ImportSaeSpec:
        if len(self.sites) != 1 or "*" in self.sites[0]:
            raise ValueError(f"sites {list(self.sites)}: give the one site that these SAEs were trained on")
        return self


class SaeFeaturesSpec(TokensCell):
    """What the latents of SAEs respond to: codes, statistics, top images with maps, and selectivity for labels.

    SAEs are those of the train_sae and import_sae stages that it reads, and `saes`. Tokens are those of an extract
    stage that it reads as well, else of a live forward pass at the site of each SAE.
    """

    kind: Annotated[Literal["sae_features"], RESULT] = "sae_features"
    saes: Annotated[tuple[str, ...], LISTED, RESULT] = ()
    """SAEs of earlier runs: `sae:<stage>`, its digest or the first digits of it."""
    tables: Annotated[
        tuple[Literal["codes", "features", "top_images", "selectivity"], ...], LISTED, Field(min_length=1), RESULT
    ] = ("codes", "features", "top_images", "selectivity")
    top_k: Annotated[int, Field(ge=1, le=1000), RESULT] = 20
    """Top images per feature."""
    rank_by: Annotated[Literal["max", "mean"], RESULT] = "max"
    """Which images are a feature's top ones: those with its largest code, or with the largest mean over all positions."""
    concepts_per_feature: Annotated[int, Field(ge=1), RESULT] = 5
    features_per_concept: Annotated[int, Field(ge=1), RESULT] = 10
    max_values: Annotated[int, Field(ge=2), RESULT] = 200
    """Columns of labels with more distinct values than this are not concepts."""
    min_positives: Annotated[int, Field(ge=1), RESULT] = 10
    """A concept that fewer images or patches have, or lack, is not scored."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 1024

    @field_validator("saes")
    @classmethod
    def _saes_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            as_value_error(SaeRef.parse, text)
            if not text.startswith("sae:"):
                raise ValueError(f"{text} is not in the store; import it with a stage of kind import_sae and read that")
        return value

    @model_validator(mode="after")
    def _saes_say_the_site(self) -> SaeFeaturesSpec:
        if not self.saes and not self.reads:
            raise ValueError("no SAEs; give reads: a train_sae or import_sae stage, or saes: [sae:<stage>]")
        if self.sites:
            raise ValueError("sites are those of the SAEs; leave sites out")
        return self
