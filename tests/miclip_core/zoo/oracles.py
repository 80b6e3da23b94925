"""Every site of a library model, from plain hooks on its modules and small formulas that share no code with the engine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear

Expected = dict[str, Tensor]
"""Site -> the whole tensor in the site's layout."""


@dataclass
class Seen:
    """What every module received and returned in one forward, copied when it happened; and what the forward returned."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))


def watch(root: nn.Module, images: Tensor, forward: Callable[[Any, Tensor], Tensor]) -> Seen:
    """One forward of an untouched model with plain hooks on all of its modules.

    A module that runs more than once (a dropout that two branches share) is left out. forward: returns the embedding.
    """
    seen, runs, handles = Seen(), Counter[str](), []
    for path, module in root.named_modules():

        def before(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            given = args[0] if args else next(iter(kwargs.values()), None)
            runs[path] += 1
            if isinstance(given, Tensor):
                seen.inputs[path] = given.clone()

        def after(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                seen.outputs[path] = first.clone()

        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
    with torch.no_grad():
        seen.embedding = forward(root, images)
    for handle in handles:
        handle.remove()
    for path in (path for path, count in runs.items() if count > 1):
        seen.inputs.pop(path, None)
        seen.outputs.pop(path, None)
    return seen


def assert_every_site(model: Any, images: Tensor, expected: Expected, blocks: Sequence[int] | None = None) -> None:
    """The sites that the model lists are those of `expected`, each equal to 1e-5 of its size (at least of 1).

    blocks: of a transformer, those to compare; None for all.
    """
    named = {path: re.fullmatch(r"\w+\.(\d+)", path) for path in (site.path for site in model.facts.sites)}
    wanted = [path for path, found in named.items() if blocks is None or found is None or int(found[1]) in blocks]
    assert not (odd := set(expected) ^ set(wanted)), f"only one side has {sorted(odd)}"
    out = model.run(images, wanted)
    for path in wanted:
        ours, theirs = out[str(model.sites([path])[0])], expected[path]
        assert ours.shape == theirs.shape, path
        difference = float((ours.double() - theirs.double()).abs().max())
        assert difference <= 1e-5 * max(1.0, float(theirs.abs().max())), f"{path} differs by {difference:.2g}"


# ---------------------------------------------------------------- parts that families share


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """[B, T, H * X] as [B, H, T, X]."""
    batch, tokens, width = x_BTD.shape
    return x_BTD.reshape(batch, tokens, heads, width // heads).permute(0, 2, 1, 3)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (eps inside the root) over the last axis, by numpy in float64."""
    numbers = x.numpy().astype(np.float64)
    return torch.from_numpy(numbers.mean(-1)), torch.from_numpy(np.sqrt(numbers.var(-1) + eps))


def norm(seen: Seen, name: str, end: str, module: Any, path: str) -> Expected:
    """Mean, standard deviation and output of one layer norm."""
    mean, std = statistics(seen.inputs[path], module.eps)
    return {f"{name}_mean{end}": mean, f"{name}_std{end}": std, f"{name}_out{end}": seen.outputs[path]}


def attention(qkv_BTD: Sequence[Tensor], heads: int, output: Any, returned_BTD: Tensor, end: str) -> Expected:
    """Sites of one attention from its three projections and its output matrix, whose columns are sliced by head.

    returned_BTD: what the library's module returned, which the heads and the bias must add up to.
    """
    q, k, v = (split_heads(x, heads) for x in qkv_BTD)
    scores = torch.einsum("bhqx,bhkx->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = torch.softmax(scores, -1)
    z_BHTX = torch.einsum("bhqk,bhkx->bhqx", weights, v)
    size = q.shape[-1]
    results = [z_BHTX[:, h] @ output.weight[:, h * size : (h + 1) * size].T for h in range(heads)]
    difference = float((sum(results) + output.bias - returned_BTD).abs().max())
    assert difference <= 1e-5 * max(1.0, float(returned_BTD.abs().max())), f"heads{end} miss by {difference:.2g}"
    return {
        f"q{end}": q,
        f"k{end}": k,
        f"v{end}": v,
        f"pattern{end}": weights,
        f"z{end}": z_BHTX.permute(0, 2, 1, 3),
        f"head_result{end}": torch.stack(results, 2),
    }


def one_query(q_BD: Tensor, k_BTD: Tensor, v_BTD: Tensor, heads: int) -> Expected:
    """Pattern and values of a pool in which a single query attends to tokens."""
    k, v = split_heads(k_BTD, heads), split_heads(v_BTD, heads)
    q = split_heads(q_BD[:, None], heads)
    return {"pool_v": v, "pool_pattern": torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)[:, :, 0]}


# ---------------------------------------------------------------- CLIP's own vision transformer


def clip_vit(root: Any, seen: Seen, layers: Iterable[int]) -> Expected:
    """open_clip's VisionTransformer that pools its class token; blocks `layers`."""
    tower, width = root.visual, root.visual.class_embedding.shape[0]
    patches_BTD = seen.outputs["visual.conv1"].flatten(2).transpose(1, 2)
    first_B1D = tower.class_embedding.expand(len(patches_BTD), 1, width)
    sites: Expected = {"embed": torch.cat([first_B1D, patches_BTD], 1) + tower.positional_embedding}
    for layer in layers:
        sites |= _clip_block(tower.transformer.resblocks[layer], seen, f"visual.transformer.resblocks.{layer}", layer)
    sites |= norm(seen, "lnf", "", tower.ln_post, "visual.ln_post")
    return sites | {
        "lnf_in": seen.inputs["visual.ln_post"],
        "pooled": seen.outputs["visual.ln_post"][:, 0],
        "embedding": seen.embedding,
    }


def _clip_block(block: Any, seen: Seen, path: str, layer: int) -> Expected:
    end, module = f".{layer}", block.attn
    x_BTD = seen.outputs[f"{path}.ln_1"]
    qkv = linear(x_BTD, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    sites = attention(qkv, module.num_heads, module.out_proj, seen.outputs[f"{path}.attn"], end)
    sites |= norm(seen, "ln1", end, block.ln_1, f"{path}.ln_1") | norm(seen, "ln2", end, block.ln_2, f"{path}.ln_2")
    return sites | {
        f"resid_pre{end}": seen.inputs[path],
        f"attn_out{end}": seen.outputs[f"{path}.attn"],
        f"resid_mid{end}": seen.inputs[f"{path}.ln_2"],
        f"mlp_pre{end}": seen.outputs[f"{path}.mlp.c_fc"],
        f"mlp_act{end}": seen.outputs[f"{path}.mlp.gelu"],
        f"mlp_out{end}": seen.outputs[f"{path}.mlp"],
        f"resid_post{end}": seen.outputs[path],
        f"pattern_row{end}": sites[f"pattern{end}"][:, :, 0],
    }


# ---------------------------------------------------------------- CLIP's ModifiedResNet


def modified_resnet(root: Any, seen: Seen) -> Expected:
    """open_clip's ModifiedResNet: all blocks, and its attention pool by formula."""
    sites: Expected = {"stem": avg_pool2d(seen.outputs["visual.bn3"].relu(), 2)}
    for s in (1, 2, 3, 4):
        for b, block in enumerate(getattr(root.visual, f"layer{s}")):
            path, name = f"visual.layer{s}.{b}", f"conv.{s}.{b}"
            added = seen.inputs[path] if block.downsample is None else seen.outputs[f"{path}.downsample"]
            sites |= {
                f"{name}.act1": seen.outputs[f"{path}.bn1"].relu(),
                f"{name}.act2": seen.outputs[f"{path}.bn2"].relu(),
                f"{name}.out": (seen.outputs[f"{path}.bn3"] + added).relu(),
            }
        sites[f"stage.{s}"] = seen.outputs[f"visual.layer{s}"]
    pool = root.visual.attnpool
    tokens_BTC = seen.inputs["visual.attnpool"].flatten(2).transpose(1, 2)
    tokens_BTC = torch.cat([tokens_BTC.mean(1, keepdim=True), tokens_BTC], 1) + pool.positional_embedding
    q, k, v = (linear(tokens_BTC, part.weight, part.bias) for part in (pool.q_proj, pool.k_proj, pool.v_proj))
    return (
        sites
        | one_query(q[:, 0], k, v, pool.num_heads)
        | {
            "pool_in": seen.outputs["visual.layer4"],
            "pool_out": seen.outputs["visual.attnpool"],
            "embedding": seen.embedding,
        }
    )


# ---------------------------------------------------------------- vision transformers of the transformers library


@dataclass(frozen=True)
class Names:
    """Module paths of one class, written down from the library's source: tower, last block, and parts within it."""

    tower: str
    block: str
    norms: tuple[str, str]
    attention: str
    output: str
    mlp: tuple[str, str] = ("fc1", "fc2")
    branches: tuple[str, str] | None = None
    first_norm: str | None = None
    final: str = "layernorm"


CLIP = Names("vision_model.", "encoder.layers", ("layer_norm1", "layer_norm2"), "self_attn", "out_proj",
             first_norm="pre_layrnorm", final="post_layernorm")  # fmt: skip
SIGLIP = Names(
    "vision_model.", "encoder.layers", ("layer_norm1", "layer_norm2"), "self_attn", "out_proj", final="post_layernorm"
)
VIT = Names("", "layers", ("layernorm_before", "layernorm_after"), "attention", "o_proj")
DINOV2 = Names(
    "", "encoder.layer", ("norm1", "norm2"), "attention", "o_proj", branches=("layer_scale1", "layer_scale2")
)


def hf_vit(root: Any, seen: Seen, names: Names, heads: int, layers: Iterable[int]) -> Expected:
    """CLIP, SigLIP, ViT, MAE or DINOv2 of the transformers library; blocks `layers`."""
    final, probed = f"{names.tower}{names.final}", f"{names.tower}head.attention" in seen.outputs
    sites: Expected = {"embed": seen.outputs[f"{names.tower}embeddings"]}
    for layer in layers:
        sites |= _hf_block(root, seen, names, heads, layer)
        if not probed:
            sites[f"pattern_row.{layer}"] = sites[f"pattern.{layer}"][:, :, 0]
    sites |= norm(seen, "lnf", "", root.get_submodule(final), final)
    sites |= {"lnf_in": seen.inputs[final], "embedding": seen.embedding}
    if probed:
        return sites | _probed(root.get_submodule(f"{names.tower}head"), seen, f"{names.tower}head", sites["lnf_out"])
    normed = sites["lnf_out"]
    return sites | {"pooled": normed if normed.ndim == 2 else normed[:, 0]}


def _hf_block(root: Any, seen: Seen, names: Names, heads: int, layer: int) -> Expected:
    end, path = f".{layer}", f"{names.tower}{names.block}.{layer}"
    inner, (first, second) = f"{path}.{names.attention}", names.norms
    qkv = [seen.outputs[f"{inner}.{name}_proj"] for name in "qkv"]
    sites = attention(qkv, heads, root.get_submodule(f"{inner}.{names.output}"), seen.outputs[inner], end)
    for name, part in (("ln1", first), ("ln2", second)):
        sites |= norm(seen, name, end, root.get_submodule(f"{path}.{part}"), f"{path}.{part}")
    branches = names.branches or (names.attention, "mlp")
    return sites | {
        f"resid_pre{end}": seen.inputs[path],
        f"attn_out{end}": seen.outputs[f"{path}.{branches[0]}"],
        f"resid_mid{end}": seen.inputs[f"{path}.{second}"],
        f"mlp_pre{end}": seen.outputs[f"{path}.mlp.{names.mlp[0]}"],
        f"mlp_act{end}": seen.outputs[f"{path}.mlp.activation_fn"],
        f"mlp_out{end}": seen.outputs[f"{path}.{branches[1]}"],
        f"resid_post{end}": seen.outputs[path],
    }


def _probed(head: Any, seen: Seen, path: str, tokens_BTD: Tensor) -> Expected:
    """SigLIP's pooling head: a learned probe attends to the normed tokens."""
    inner, parts = head.attention, head.attention.in_proj_weight.chunk(3)
    q, k, v = (
        linear(x, weight, bias)
        for x, weight, bias in zip((head.probe[:, 0], tokens_BTD, tokens_BTD), parts, inner.in_proj_bias.chunk(3))
    )
    return one_query(q.expand(len(tokens_BTD), -1), k, v, inner.num_heads) | {
        "pool_out": seen.outputs[f"{path}.attention"][:, 0],
        "map_mlp": seen.outputs[f"{path}.mlp"][:, 0],
        "pooled": seen.outputs[path],
    }


# ---------------------------------------------------------------- ResNet of the transformers library


def hf_resnet(root: Any, seen: Seen) -> Expected:
    """ResNetModel or ResNetForImageClassification: all blocks; stages of the sites count from 1."""
    base, tower = root.base_model, "" if root.base_model is root else f"{root.base_model_prefix}."
    sites: Expected = {"stem": seen.outputs[f"{tower}embedder.pooler"]}
    for s, stage in enumerate(base.encoder.stages):
        for b, block in enumerate(stage.layers):
            path, name = f"{tower}encoder.stages.{s}.layers.{b}", f"conv.{s + 1}.{b}"
            for act in range(len(block.layer) - 1):
                sites[f"{name}.act{act + 1}"] = seen.outputs[f"{path}.layer.{act}.normalization"].relu()
            sites[f"{name}.out"] = (seen.outputs[f"{path}.layer"] + seen.outputs[f"{path}.shortcut"]).relu()
        sites[f"stage.{s + 1}"] = seen.outputs[f"{tower}encoder.stages.{s}"]
    sites |= {"pooled": sites[f"stage.{len(base.encoder.stages)}"].mean((2, 3)), "embedding": seen.embedding}
    if hasattr(root, "classifier"):
        sites["logits"] = linear(seen.embedding, root.classifier[-1].weight, root.classifier[-1].bias)
    return sites
