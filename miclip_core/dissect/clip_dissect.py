"""CLIP-Dissect's five similarity functions on activations and embeddings that are all in memory.

Oikarinen and Weng (2023), "CLIP-Dissect". Whoever has shards chains the same parts: `Cosines` over images; `Means`, then
`CubedCosines`; `TopImages` over images, then `rank_reorder`; `TopImages`, then `log_likelihoods` and `Marginal` over
units, then `pmi_scores`.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from miclip_core.dissect.cosines import Cosines, CubedCosines, Means
from miclip_core.dissect.embeddings import unit_images
from miclip_core.dissect.rank_reorder import RankReorder, rank_reorder, shuffles
from miclip_core.dissect.top_images import TopImages
from miclip_core.dissect.wpmi import SOFT_WPMI, WPMI, Marginal, log_likelihoods, pmi_scores
from schemas.concept_specs import Similarity

SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)


def clip_dissect(
    similarity: Similarity, t_NU: Tensor, x_NE: Tensor, concepts_ME: Tensor, permutations_SK: Tensor | None = None
) -> Tensor:
    """Score of every unit and concept, float32 [U,M]; NaN where it is undefined, as for dead units (see each part).

    t: one activation per image and unit [N,U]. x: CLIP embeddings of the images [N,E]. concepts: those of the concepts
    [M,E]. permutations: for `rank_reorder`, int64 [S, floor(.05 N)]; five seeded ones if None. Scores of different
    functions have nothing in common but that more is more similar; those of `wpmi` and `soft_wpmi` depend on which
    units and concepts are given.

    Raises:
        TooFewImages: `wpmi` needs 28 images, `soft_wpmi` 100, `rank_reorder` 40. NonFiniteActivation. BadAlignment.
    """
    if similarity == "cos":
        cosines = Cosines()
        cosines.add(t_NU, x_NE)
        return cosines.scores(concepts_ME)
    if similarity == "cos_cubed":
        means = Means()
        means.add(t_NU, x_NE)
        cubed = CubedCosines(means, concepts_ME)
        cubed.add(t_NU, x_NE)
        return cubed.scores()
    x_NE = unit_images(x_NE, len(t_NU), torch.float32)
    if similarity == "rank_reorder":
        settings = RankReorder()
        top = _top_images(t_NU, settings.top_k(len(t_NU)))
        permutations_SK = shuffles(top.k) if permutations_SK is None else permutations_SK
        return rank_reorder(settings, top, x_NE[top.used()], concepts_ME, permutations_SK)
    pmi = WPMI if similarity == "wpmi" else SOFT_WPMI
    top = _top_images(t_NU, pmi.top_k)
    likelihood_UM, marginal = log_likelihoods(pmi, top, x_NE[top.used()], concepts_ME), Marginal()
    marginal.add(likelihood_UM)
    return pmi_scores(pmi, likelihood_UM, marginal)


def _top_images(t_NU: Tensor, k: int) -> TopImages:
    top = TopImages(k)
    top.add(torch.arange(len(t_NU), device=t_NU.device), t_NU)
    return top.first(k)
