"""Where a class token looks when only chosen features are left in the patches: attention maps of a set of features."""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.align.attending import attending_block
from miclip_core.intervene.edits import check_units
from miclip_core.sae.codes import Codes
from miclip_core.sae.evaluate import check_site
from miclip_core.sae.sae import Sae
from miclip_core.zoo.edits import Edit, rows_of
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import one_site
from schemas.errors import UnsupportedBlock
from schemas.intervene import MapActivation
from schemas.refs import Site


@torch.no_grad()
def attention_maps(
    model: VisionModel,
    site: str | Site,
    sae: Sae,
    images_BCIJ: Tensor,
    units_BK: Tensor,
    activation: MapActivation = "linear",
) -> Tensor:
    """Saliency of the patches [B, h, w], float32, each map summing to 1 (MICLIP, feature-conditioned attention maps).

    site: the output of a block, `resid_post.l@patch` (or all tokens). Its patches become decode(z masked to the units),
    without the SAE's error; its class token and registers stay. In the next block the class token attends over the
    patches alone, softmax_p(q . k_p / sqrt(X)) per head, and the heads are averaged.
    units: int64 [B, K], the features of each image, -1 for none. activation: `linear` takes z = W_enc (a - b_dec) + b_enc,
    which can be negative; `sae` the SAE's own codes.

    Raises:
        UnsupportedBlock: no class token, or attention whose queries and keys are not known exactly.
        UnknownSite: not the output of a block that another one follows. BadUnits, BadSite, BadSae, BadTokens.
    """
    known = check_site(model, site, sae)
    block = _next_block(model, known)
    check_units(units_BK, sae.config.latents)
    facts = model.facts.site(known.path)
    units_BK = units_BK.to(model.device)

    def only_units(patches: Tensor) -> Tensor:
        rows_BPD, back = rows_of(facts, patches)
        return back(_of_units(sae, rows_BPD, units_BK, activation))

    edit = Edit(Site(path=known.path, tokens="patch"), "fn", only_units)
    return _attention(model, block, images_BCIJ, [edit])


@torch.no_grad()
def model_attention(model: VisionModel, site: str | Site, images_BCIJ: Tensor) -> Tensor:
    """The same of the model as it is, [B, h, w]: its own attention after the site, restricted to the patches.

    Raises:
        UnsupportedBlock, UnknownSite, BadSite: as `attention_maps`.
    """
    return _attention(model, _next_block(model, one_site(model.facts, site)), images_BCIJ, [])


def _attention(model: VisionModel, block: int, images_BCIJ: Tensor, edits: list[Edit]) -> Tensor:
    q, k = f"q.{block}@cls", f"k.{block}@patch"
    out = model.run(images_BCIJ, [q, k], edits)
    math = model.family.blocks[block].math
    assert math is not None and model.facts.grid is not None
    pattern_BHP = math.pattern(out[q][:, :, None], out[k])[:, :, 0]
    return pattern_BHP.mean(1).float().unflatten(1, model.facts.grid)


def entropy(saliency_BIJ: Tensor) -> Tensor:
    """Entropy of maps in nats [B]: log of the patches where all are alike, 0 where one has everything."""
    return torch.special.entr(saliency_BIJ).sum((1, 2))


def mass_inside(saliency_BIJ: Tensor, masks_BIJ: Tensor) -> Tensor:
    """Share of each map that lies in a mask [B], bool [B, H, W] over the image: a patch counts by its covered area."""
    rows, columns = saliency_BIJ.shape[1:]
    covered_BIJ = torch.nn.functional.adaptive_avg_pool2d(masks_BIJ.to(saliency_BIJ), (rows, columns))
    return (saliency_BIJ * covered_BIJ).sum((1, 2))


def points_inside(saliency_BIJ: Tensor, masks_BIJ: Tensor) -> Tensor:
    """Whether the centre of the strongest patch lies in the mask, bool [B] (Zhang et al. 2016, the pointing game)."""
    (rows, columns), (height, width) = saliency_BIJ.shape[1:], masks_BIJ.shape[1:]
    best_B = saliency_BIJ.flatten(1).argmax(1)
    y_B = ((best_B // columns) * 2 + 1) * height // (2 * rows)
    x_B = ((best_B % columns) * 2 + 1) * width // (2 * columns)
    return masks_BIJ[torch.arange(len(best_B), device=best_B.device), y_B, x_B].bool()


def _next_block(model: VisionModel, site: Site) -> int:
    block = attending_block(model.facts, site)
    if not model.family.blocks or model.family.blocks[block].math is None:
        raise UnsupportedBlock(f"block {block} of {model.facts.model} has no exact rule for its queries and keys")
    return block


def _of_units(sae: Sae, x_BPD: Tensor, units_BK: Tensor, activation: MapActivation) -> Tensor:
    """What the chosen features alone decode to, image by image; without any, b_dec."""
    decoded = []
    for x_PD, units_K in zip(x_BPD, units_BK, strict=True):
        units_K = units_K[units_K >= 0]
        chosen_PK = units_K.expand(len(x_PD), -1)
        z_PK = sae.pre_activations(x_PD, units_K) if activation == "linear" else sae.encode(x_PD).at(chosen_PK)
        decoded.append(sae.decode(Codes.from_topk(chosen_PK, z_PK, sae.config.latents), x_PD))
    return torch.stack(decoded)
