"""What a family declares: where each canonical site lives in the modules, and how the others are computed from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from schemas.models import ActKind, Layout, Pool, SiteFacts


@dataclass(frozen=True, eq=False)
class Native:
    """A tensor that a module receives or returns.

    io: the module's input or its output.
    pick: which argument (index or keyword) or which element of a returned tuple or object; None for the first
        argument, or for an output that is the tensor itself.
    call, calls: which call of the module within one forward this is, of how many (a shared ReLU runs three times).
    clone: copy when read, because a later module overwrites the tensor in place.
    read: raw tensor -> canonical form, where they differ. write: (raw, edited canonical) -> new raw; without it a site
        that has `read` cannot be edited.
    """

    module: nn.Module
    io: Literal["input", "output"] = "output"
    layout: Layout = "tokens"
    pick: int | str | None = None
    call: int = 0
    calls: int = 1
    clone: bool = False
    read: Callable[[Tensor], Tensor] | None = None
    write: Callable[[Tensor, Tensor], Tensor] | None = None
    grid: tuple[int, int] | None = None
    prefix: int | None = None

    @property
    def editable(self) -> bool:
        """Whether a new value can be put in its place."""
        return self.read is None or self.write is not None


@dataclass(frozen=True, eq=False)
class Derived:
    """A tensor that is computed after the forward from other sites, in fp32 or better.

    compute: (*tensors of `needs`, rows) -> tensor; rows is None or the positions wanted, and is only given where
        `by_rows` says that the positions of the result can be computed alone.
    """

    needs: tuple[str, ...]
    compute: Callable[..., Tensor]
    layout: Layout = "tokens"
    by_rows: bool = False
    grid: tuple[int, int] | None = None
    prefix: int | None = None


Entry = Native | Derived


def argument_key(native: Native, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
    """Where among the arguments of a call the tensor is: an index, or a keyword."""
    return native.pick if native.pick is not None else (0 if args else next(iter(kwargs)))


def argument(native: Native, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input of a call that a site names."""
    key = argument_key(native, args, kwargs)
    return args[key] if isinstance(key, int) else kwargs[key]


def element(native: Native, output: Any) -> Any:
    """The output of a call that a site names: itself, an element of a tuple, or a field of an object."""
    if native.pick is None:
        return output
    return output[native.pick] if isinstance(native.pick, int) else getattr(output, native.pick)


class AttentionMath(Protocol):
    """The exact arithmetic of one block's attention, from the attention's input to its output before LayerScale."""

    def qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, T, X]: after bias, norm and rotary, before the scale."""
        ...

    def pattern(self, q_BHTX: Tensor, k_BHTX: Tensor) -> Tensor:
        """Softmax weights [B, H, T, T]."""
        ...

    def mix(self, pattern_BHTT: Tensor, v_BHTX: Tensor) -> Tensor:
        """z [B, T, H, X]."""
        ...

    def head_result(self, z_BTHX: Tensor) -> Tensor:
        """z times the output weights per head, no bias [B, T, H, D]; UnsupportedBlock where heads do not add up."""
        ...

    def output(self, z_BTHX: Tensor) -> Tensor:
        """What the attention module returns [B, T, D]."""
        ...

    def add_heads(self, head_result_BTHD: Tensor) -> Tensor:
        """Sum over heads plus the output bias [B, T, D]."""
        ...


@dataclass(frozen=True, eq=False)
class Block:
    """The parts of one transformer block that edits and partial forwards need.

    output: what the block returns. attention: what its attention module returns, before LayerScale.
    attention_input: the site that the attention reads. math: None where no exact rule is known.
    """

    output: Native
    attention: Native
    attention_input: str
    math: AttentionMath | None = None


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm as numbers: gamma [D], beta [D], eps; `subtract_mean` is False for RMS norms."""

    gamma: Tensor
    beta: Tensor
    eps: float
    subtract_mean: bool = True


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """Weights of one block: W_Q, W_K, W_V [H, X, D], b_* [H, X], W_O [H, D, X], W_out [D, N], scales ls1, ls2 [D]."""

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor
    W_out: Tensor
    b_out: Tensor
    ls1: Tensor
    ls2: Tensor
    ln1: Norm
    ln2: Norm


@dataclass(frozen=True, eq=False)
class Readout:
    """From the last residual to the embedding: the final norm, the pooling row rho [T], and P [D, E] (None: no matrix).

    rho is None where pooling is not a fixed linear row (attention pooling).
    """

    norm: Norm | None
    rho: Tensor | None
    position: Literal["before_pool", "after_pool", "none"]
    projection: Tensor | None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """Everything the engine knows of one model.

    sites: canonical path -> entry, in the order in which a forward produces them; a path that starts with `_` is a step
        that derived sites share, and nobody's site.
    forward: images [B, 3, h, w] -> whatever; only its hooks are read. Of a generator: latents -> images in 0..1.
    latent: length of the latent that a generator draws from; None for a model that reads images.
    steps: of a convolutional model, the modules from the images on, each called on what the one before returned, and the
        site that its output is, None where it has none. What follows a site reads nothing from before it, so that a
        forward can start there.
    sums: site -> (what comes in, what is added): an edit of the sum is made to the second term, because the residual
        stream itself is no module's output there.
    """

    name: str
    visual: nn.Module
    sites: dict[str, Entry]
    forward: Callable[[Tensor], Any]
    n_blocks: int
    width: int
    grid: tuple[int, int]
    input_hw: tuple[int, int]
    norm_eps: float
    act_kind: ActKind
    pool: Pool
    final_norm_position: Literal["before_pool", "after_pool", "none"]
    n_prefix: int = 0
    has_cls: bool = False
    n_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    patch: int | None = None
    has_ln_pre: bool = False
    has_layerscale: bool = False
    has_inner_attn_norm: bool = False
    blocks: tuple[Block, ...] = ()
    steps: tuple[tuple[nn.Module, str | None], ...] = ()
    sums: dict[str, tuple[str, str]] = field(default_factory=dict)
    latent: int | None = None
    weights: Callable[[int], BlockWeights] | None = None
    readout: Callable[[], Readout] | None = None


def module_entry(module: nn.Module, facts: SiteFacts | None = None) -> Native:
    """The output of any module as a site; copied, because nothing is known of who overwrites it.

    facts: its inspected facts; a map that the module returns with channels last is then turned channels-first.
    """
    if facts is None or facts.layout != "map":
        return Native(module, clone=True)
    first = (*facts.shape, *(facts.grid or ()))

    def read(x: Tensor) -> Tensor:
        return x if tuple(x.shape[1:]) == first else x.movedim(-1, 1)

    def write(old: Tensor, new: Tensor) -> Tensor:
        return new if tuple(old.shape[1:]) == first else new.movedim(1, -1)

    return Native(module, layout="map", clone=True, read=read, write=write)


def promote(tensor: Tensor) -> Tensor:
    """At least fp32: what derived sites are computed in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
