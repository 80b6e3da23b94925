"""Whether units of kindred concepts lie together: groups, a layout in two dimensions, silhouette and purity of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from miclip_core.evaluate.cosines import directions
from miclip_core.shuffle import permute

_BLOCK = 512  # units whose cosines with all others are held at once
_CELLS = 2**22  # units x groups x permutations that are held at once


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which units stand for which group of concepts, each unit once.

    groups: names, in the order given. units int64 [U] ascending, labels int64 [U]: the place of each one's group. Left out:
    ungrouped and ambiguous, the concepts in no and in several groups; absent, concepts of a group for which nothing was
    localised; shared, ascending, the units that stand for concepts of several groups.
    """

    groups: tuple[str, ...]
    units: np.ndarray
    labels: np.ndarray
    ungrouped: tuple[str, ...]
    ambiguous: tuple[str, ...]
    absent: tuple[str, ...]
    shared: tuple[int, ...]


def group_units(localised: Mapping[str, Collection[int]], groups: Mapping[str, Collection[str]]) -> Grouping:
    """The groups of units from the units localised for each concept and the concepts of each group.

    A unit of two concepts of a group counts once: twice it would be its own nearest neighbour.
    """
    homes = {concept: [g for g, members in enumerate(groups.values()) if concept in members] for concept in localised}
    found: dict[int, set[int]] = {}
    for concept, units in localised.items():
        if len(homes[concept]) == 1:
            for unit in units:
                found.setdefault(int(unit), set()).add(homes[concept][0])
    kept = sorted(unit for unit, labels in found.items() if len(labels) == 1)
    return Grouping(
        groups=tuple(groups),
        units=np.array(kept, np.int64),
        labels=np.array([min(found[unit]) for unit in kept], np.int64),
        ungrouped=tuple(concept for concept in localised if not homes[concept]),
        ambiguous=tuple(concept for concept in localised if len(homes[concept]) > 1),
        absent=tuple(sorted({concept for members in groups.values() for concept in members} - set(localised))),
        shared=tuple(sorted(found.keys() - set(kept))),
    )


def lay_out(rows_UE: Tensor, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """Places in the plane, float32 [U, 2], by t-SNE (van der Maaten and Hinton 2008) of cosine distances.

    NaN for rows without a direction. The perplexity is at most a third of the other units. For looking at, not for
    measuring: the same library on the same machine gives the same places, another one may not.

    Raises:
        ValueError: fewer than four rows have a direction.
    """
    from sklearn.manifold import TSNE

    unit_UE = directions(rows_UE)
    known = ~unit_UE.isnan().any(1).cpu().numpy()
    if known.sum() < 4:
        raise ValueError(f"{int(known.sum())} of {len(known)} units have a direction; a layout needs at least 4")
    vectors = unit_UE.cpu().numpy()[known]
    spread = vectors.shape[1] > 1 and bool(np.ptp(vectors, axis=0).any())
    tsne = TSNE(
        perplexity=min(perplexity, (len(vectors) - 1) / 3),
        metric="cosine",
        init="pca" if spread else "random",  # rows that are all alike have no components
        random_state=seed,
    )
    places = np.full((len(known), 2), np.nan, np.float32)
    places[known] = tsne.fit_transform(vectors)
    return places


@dataclass(frozen=True)
class Geometry:
    """How well groups of units are told apart by direction alone.

    units: those with a direction, of which all this is. silhouette: mean of Rousseeuw (1987) under cosine distance, in
    [-1, 1]. purity: mean share of a unit's `neighbours` nearest that are of its group; chance: its mean over all ways of
    handing out the labels. The p values are the share of labels handed out at random that do as well, the true ones
    among them. All None with fewer than two groups or no group of two.
    """

    units: int
    neighbours: int
    silhouette: float | None = None
    silhouette_p: float | None = None
    purity: float | None = None
    purity_p: float | None = None
    chance: float | None = None


def measure_geometry(
    rows_UE: Tensor, labels_U: np.ndarray, neighbours: int = 10, permutations: int = 1000, seed: int = 0
) -> Geometry:
    """Silhouette and purity of labelled units [U, E] in all dimensions, with p values from permuted labels.

    Exact; costs U^2 E for the neighbours, of which a block of units is held at a time. Rows without a direction are left
    out. Permutations are a pure function of the seed.

    Raises:
        ValueError: not one label per row, or no neighbour asked for.
    """
    if len(rows_UE) != len(labels_U) or neighbours < 1:
        raise ValueError(
            f"{len(labels_U)} labels for {len(rows_UE)} units and {neighbours} neighbours; expected one each and at least one"
        )
    unit_UE = directions(rows_UE)
    known = ~unit_UE.isnan().any(1)
    unit_UE = unit_UE[known]
    _, labels = np.unique(np.asarray(labels_U)[known.cpu().numpy()], return_inverse=True)
    n, sizes = len(labels), np.bincount(labels)
    k = max(0, min(neighbours, n - 1))
    if len(sizes) < 2 or sizes.max() < 2:
        return Geometry(n, k)
    nearest_UK = nearest(unit_UE, k)
    labels_SU = np.stack([labels, *(labels[permute(n, seed, "geometry", r)] for r in range(permutations))])
    silhouettes = _in_parts(lambda some: _silhouettes(unit_UE, some, sizes), labels_SU, n * len(sizes))
    purities = _in_parts(lambda some: _same(nearest_UK, some), labels_SU, n * k)
    return Geometry(
        units=n,
        neighbours=k,
        silhouette=float(silhouettes[0]),
        silhouette_p=_share_as_good(silhouettes),
        purity=float(purities[0] / (n * k)),
        purity_p=_share_as_good(purities),
        chance=float((sizes * (sizes - 1)).sum() / (n * (n - 1))),
    )


def nearest(unit_UE: Tensor, k: int) -> Tensor:
    """The k units of largest cosine with each, itself aside, as ascending numbers, int64 [U, k]; of equal cosines the lower.

    unit: rows of length 1, k below their number.
    """
    found = []
    for first in range(0, len(unit_UE), _BLOCK):
        cosines = unit_UE[first : first + _BLOCK] @ unit_UE.T
        own = torch.arange(first, first + len(cosines), device=cosines.device)
        cosines[own - first, own] = -torch.inf
        last = cosines.topk(k, dim=1).values[:, -1:]
        above, at_last = cosines > last, cosines == last
        kept = above | (at_last & (at_last.cumsum(1) <= k - above.sum(1, keepdim=True)))
        found.append(kept.nonzero()[:, 1].view(-1, k))
    return torch.cat(found)


def _share_as_good(values_S: np.ndarray) -> float:
    """Share of all labellings, of which the first is the true one, that do at least as well as it, up to rounding."""
    return float((values_S >= values_S[0] - 1e-9).mean())


def _in_parts(statistic: Callable[[Tensor], Tensor], labels_SU: np.ndarray, cells: int) -> np.ndarray:
    step = max(1, _CELLS // cells)
    parts = [statistic(torch.from_numpy(labels_SU[r : r + step])) for r in range(0, len(labels_SU), step)]
    return torch.cat(parts).cpu().numpy()


def _same(nearest_UK: Tensor, labels_SU: Tensor) -> Tensor:
    """Neighbours of the same label under each labelling, int64 [S]."""
    labels_SU = labels_SU.to(nearest_UK.device)
    return (labels_SU[:, nearest_UK] == labels_SU[:, :, None]).sum((1, 2))


def _silhouettes(unit_UE: Tensor, labels_SU: Tensor, sizes: np.ndarray) -> Tensor:
    """Mean silhouette under each labelling with groups of these sizes, float64 [S].

    The mean cosine distance of a unit u to a group is 1 - u.S / n with S the sum of its n vectors, so no pair is visited.
    """
    unit_UE, labels_US = normalize(unit_UE.double()), labels_SU.T.to(unit_UE.device)
    size_G = torch.from_numpy(sizes).to(unit_UE.device).double()
    own_USG = one_hot(labels_US, len(sizes)).bool()
    sums_ESG = (unit_UE.T @ own_USG.double().flatten(1)).unflatten(1, own_USG.shape[1:])
    total_USG = size_G - (unit_UE @ sums_ESG.flatten(1)).unflatten(1, own_USG.shape[1:])
    inner_US = total_USG[own_USG].view(labels_US.shape) / (size_G[labels_US] - 1)
    outer_US = (total_USG / size_G).masked_fill(own_USG, torch.inf).amin(2)
    larger_US = torch.maximum(inner_US, outer_US)
    # A unit alone in its group has 0 by definition, and so have units whose distances are all rounding.
    told_apart_US = (size_G[labels_US] > 1) & (larger_US > 1e-9)
    return torch.where(told_apart_US, (outer_US - inner_US) / larger_US, 0).mean(0)
