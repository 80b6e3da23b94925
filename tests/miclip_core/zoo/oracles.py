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


def block(root: nn.Module, seen: Seen, path: str, end: str, norms: Sequence[str], parts: Sequence[str]) -> Expected:
    """Sites of one pre-norm block outside its attention.

    parts: within the block, what returns the attention's branch, mlp_pre, mlp_act and the MLP's branch.
    """
    sites: Expected = {}
    for name, part in zip(("ln1", "ln2"), norms):
        sites |= norm(seen, name, end, root.get_submodule(f"{path}.{part}"), f"{path}.{part}")
    for name, part in zip(("attn_out", "mlp_pre", "mlp_act", "mlp_out"), parts):
        sites[f"{name}{end}"] = seen.outputs[f"{path}.{part}"]
    return sites | {
        f"resid_pre{end}": seen.inputs[path],
        f"resid_mid{end}": seen.inputs[f"{path}.{norms[1]}"],
        f"resid_post{end}": seen.outputs[path],
    }


def residual_stages(trunk: Any, seen: Seen, prefix: str) -> Expected:
    """All blocks of four stages of residual convolutions, from what their batch norms returned."""
    sites: Expected = {}
    for s in (1, 2, 3, 4):
        for b, part in enumerate(getattr(trunk, f"layer{s}")):
            path, last = f"{prefix}layer{s}.{b}", 3 if hasattr(part, "conv3") else 2
            for number in range(1, last):
                sites[f"conv.{s}.{b}.act{number}"] = seen.outputs[f"{path}.bn{number}"].relu()
            added = seen.inputs[path] if part.downsample is None else seen.outputs[f"{path}.downsample"]
            sites[f"conv.{s}.{b}.out"] = (seen.outputs[f"{path}.bn{last}"] + added).relu()
        sites[f"stage.{s}"] = seen.outputs[f"{prefix}layer{s}"]
    return sites


def one_query(q_BD: Tensor, k_BTD: Tensor, v_BTD: Tensor, heads: int) -> Expected:
    """Pattern and values of a pool in which a single query attends to tokens."""
    k, v = split_heads(k_BTD, heads), split_heads(v_BTD, heads)
    q = split_heads(q_BD[:, None], heads)
    return {"pool_v": v, "pool_pattern": torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)[:, :, 0]}


# ---------------------------------------------------------------- CLIP's own vision transformer


def clip_vit(root: Any, seen: Seen, layers: Iterable[int]) -> Expected:
    """open_clip's VisionTransformer that pools its class token; blocks `layers`."""
    sites = _clip_blocks(root, seen, layers)
    sites |= {f"pattern_row.{layer}": sites[f"pattern.{layer}"][:, :, 0] for layer in layers}
    return (
        sites
        | norm(seen, "lnf", "", root.visual.ln_post, "visual.ln_post")
        | {
            "lnf_in": seen.inputs["visual.ln_post"],
            "pooled": seen.outputs["visual.ln_post"][:, 0],
            "embedding": seen.embedding,
        }
    )


def _clip_blocks(root: Any, seen: Seen, layers: Iterable[int]) -> Expected:
    """From the tokens that enter to the blocks `layers`."""
    tower, patches_BTD = root.visual, seen.outputs["visual.conv1"].flatten(2).transpose(1, 2)
    first_B1D = tower.class_embedding.expand(len(patches_BTD), 1, -1)
    sites: Expected = {"embed": torch.cat([first_B1D, patches_BTD], 1) + tower.positional_embedding}
    for layer in layers:
        path, end, inner = f"visual.transformer.resblocks.{layer}", f".{layer}", tower.transformer.resblocks[layer].attn
        qkv = linear(seen.outputs[f"{path}.ln_1"], inner.in_proj_weight, inner.in_proj_bias).chunk(3, -1)
        sites |= attention(qkv, inner.num_heads, inner.out_proj, seen.outputs[f"{path}.attn"], end)
        sites |= block(root, seen, path, end, ("ln_1", "ln_2"), ("attn", "mlp.c_fc", "mlp.gelu", "mlp"))
    return sites


def coca_vit(root: Any, seen: Seen, layers: Iterable[int]) -> Expected:
    """open_clip's CoCa, in which learned queries pool the tokens and the first of them is the image; blocks `layers`."""
    pool, path = root.visual.attn_pool, "visual.attn_pool"
    inner, tokens_BTD = pool.attn, seen.outputs[f"{path}.ln_k"]
    b_Q, b_K, b_V = inner.in_proj_bias.chunk(3)
    q_1D = linear(pool.ln_q(pool.query)[:1], inner.q_proj_weight, b_Q)
    k, v = linear(tokens_BTD, inner.k_proj_weight, b_K), linear(tokens_BTD, inner.v_proj_weight, b_V)
    return (
        _clip_blocks(root, seen, layers)
        | norm(seen, "lnf", "", pool.ln_k, f"{path}.ln_k")
        | one_query(q_1D.expand(len(tokens_BTD), -1), k, v, inner.num_heads)
        | {
            "lnf_in": seen.inputs[f"{path}.ln_k"],
            "pool_out": seen.outputs[f"{path}.attn"][:, 0],
            "pooled": seen.outputs["visual.ln_post"][:, 0],
            "embedding": seen.embedding,
        }
    )


# ---------------------------------------------------------------- CLIP's ModifiedResNet


def modified_resnet(root: Any, seen: Seen) -> Expected:
    """open_clip's ModifiedResNet: all blocks, and its attention pool by formula."""
    sites = {"stem": avg_pool2d(seen.outputs["visual.bn3"].relu(), 2)} | residual_stages(root.visual, seen, "visual.")
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
    final: str | None = "layernorm"
    scales: tuple[str, str] | None = None  # parameters of the block that its branches are multiplied by


CLIP = Names("vision_model.", "encoder.layers", ("layer_norm1", "layer_norm2"), "self_attn", "out_proj",
             first_norm="pre_layrnorm", final="post_layernorm")  # fmt: skip
SIGLIP = Names(
    "vision_model.", "encoder.layers", ("layer_norm1", "layer_norm2"), "self_attn", "out_proj", final="post_layernorm"
)
VIT = Names("", "layers", ("layernorm_before", "layernorm_after"), "attention", "o_proj")
DINOV2 = Names(
    "", "encoder.layer", ("norm1", "norm2"), "attention", "o_proj", branches=("layer_scale1", "layer_scale2")
)

INTERNVL = Names(
    "", "encoder.layer", ("layernorm_before", "layernorm_after"), "attention", "projection_layer",
    final=None, scales=("lambda_1", "lambda_2"),
)  # fmt: skip


def hf_vit(root: Any, seen: Seen, names: Names, heads: int, layers: Iterable[int]) -> Expected:
    """CLIP, SigLIP, ViT, MAE, DINOv2 or InternVL's of the transformers library; blocks `layers`."""
    final, probed = f"{names.tower}{names.final}", f"{names.tower}head.attention" in seen.outputs
    sites: Expected = {"embed": seen.outputs[f"{names.tower}embeddings"]}
    for layer in layers:
        sites |= _hf_block(root, seen, names, heads, layer)
        if not probed and names.final is not None:
            sites[f"pattern_row.{layer}"] = sites[f"pattern.{layer}"][:, :, 0]
    if names.final is None:
        return sites
    sites |= norm(seen, "lnf", "", root.get_submodule(final), final)
    sites |= {"lnf_in": seen.inputs[final], "embedding": seen.embedding}
    if probed:
        return sites | _probed(root.get_submodule(f"{names.tower}head"), seen, f"{names.tower}head", sites["lnf_out"])
    normed = sites["lnf_out"]
    return sites | {"pooled": normed if normed.ndim == 2 else normed[:, 0]}


def _hf_block(root: Any, seen: Seen, names: Names, heads: int, layer: int) -> Expected:
    end, path = f".{layer}", f"{names.tower}{names.block}.{layer}"
    inner = f"{path}.{names.attention}"
    qkv = [seen.outputs[f"{inner}.{name}_proj"] for name in "qkv"]
    sites = attention(qkv, heads, root.get_submodule(f"{inner}.{names.output}"), seen.outputs[inner], end)
    branches = names.branches or (names.attention, "mlp")
    parts = (branches[0], f"mlp.{names.mlp[0]}", "mlp.activation_fn", branches[1])
    sites |= block(root, seen, path, end, names.norms, parts)
    for name, scale in zip(("attn_out", "mlp_out"), names.scales or ()):
        sites[f"{name}{end}"] = getattr(root.get_submodule(path), scale) * sites[f"{name}{end}"]
    return sites


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


# ---------------------------------------------------------------- timm


def timm_vit(root: Any, seen: Seen, layers: Iterable[int]) -> Expected:
    """timm's VisionTransformer with one matrix for queries, keys and values, its class token pooled; blocks `layers`."""
    patches_BTD = seen.outputs["patch_embed"]
    first_B1D = root.cls_token.expand(len(patches_BTD), -1, -1)
    sites: Expected = {"embed": torch.cat([first_B1D, patches_BTD], 1) + root.pos_embed}
    for layer in layers:
        path, end, inner = f"blocks.{layer}", f".{layer}", root.blocks[layer].attn
        qkv = linear(seen.outputs[f"{path}.norm1"], inner.qkv.weight, inner.qkv.bias).chunk(3, -1)
        sites |= attention(qkv, inner.num_heads, inner.proj, seen.outputs[f"{path}.attn"], end)
        sites |= block(root, seen, path, end, ("norm1", "norm2"), ("attn", "mlp.fc1", "mlp.act", "mlp"))
        sites[f"pattern_row{end}"] = sites[f"pattern{end}"][:, :, 0]
    sites |= norm(seen, "lnf", "", root.norm, "norm") | {"lnf_in": seen.inputs["norm"]}
    return sites | {"pooled": sites["lnf_out"][:, 0]} | _classified(root.head, seen)


def timm_resnet(root: Any, seen: Seen) -> Expected:
    """timm's ResNet: all blocks."""
    sites = {"stem": seen.inputs["layer1"]} | residual_stages(root, seen, "")
    return sites | {"pooled": sites["stage.4"].mean((2, 3))} | _classified(root.fc, seen)


def timm_convnext(root: Any, seen: Seen) -> Expected:
    """timm's ConvNeXt: all blocks; neurons are channels last where the MLP is."""
    sites: Expected = {"stem": seen.outputs["stem"]}
    for s, stage in enumerate(root.stages):
        for b, part in enumerate(stage.blocks):
            path, name = f"stages.{s}.blocks.{b}", f"conv.{s + 1}.{b}"
            neurons = seen.outputs[f"{path}.mlp.{'grn' if hasattr(part.mlp, 'grn') else 'act'}"]
            branch = seen.outputs[f"{path}.drop_path"]
            sites |= {
                f"{name}.dw": seen.outputs[f"{path}.conv_dw"],
                f"{name}.act1": neurons if part.use_conv_mlp else neurons.permute(0, 3, 1, 2),
                f"{name}.branch": branch,
                f"{name}.out": seen.inputs[path] + branch,
            }
        sites[f"stage.{s + 1}"] = seen.outputs[f"stages.{s}"]
    mean_BC = sites["stage.4"].mean((2, 3))
    mean, std = statistics(mean_BC, root.head.norm.eps)
    normed = (mean_BC - mean[:, None]) / std[:, None] * root.head.norm.weight + root.head.norm.bias
    last = {"lnf_in": mean_BC, "lnf_mean": mean, "lnf_std": std, "lnf_out": normed, "pooled": normed}
    return sites | last | _classified(root.head.fc, seen)


def _classified(classifier: Any, seen: Seen) -> Expected:
    return {"embedding": seen.embedding, "logits": linear(seen.embedding, classifier.weight, classifier.bias)}
