"""CLIP-Dissect (Oikarinen and Weng 2023): units by how alike their activations are to what a CLIP makes of the same images.

Its similarities need different things of the images: sums (`cos`), sums about means (`cos_cubed`), each unit's most
exciting images (`wpmi`, `soft_wpmi`), or all activations (`rank_reorder`, whose share of the images grows with them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jobs.describe.lists import list_parts, start_lists
from jobs.describe.pooled import Pooled, PooledShard
from jobs.describe.task import Collector, Task
from jobs.describe.units import UnitRows
from jobs.protocol import Artifact, Part
from miclip_core.concepts.top import TopScores
from miclip_core.dissect.cosines import Cosines, CubedCosines, Means
from miclip_core.dissect.rank_reorder import RankReorder, rank_reorder, shuffles
from miclip_core.dissect.spread import Spread
from miclip_core.dissect.top_images import TopImages
from miclip_core.dissect.wpmi import SOFT_WPMI, WPMI, Marginal, Pmi, log_likelihoods, pmi_scores
from schemas.errors import TooFewImages

STATE, MEANS = "state", "means"
BLOCK_SCORES = 1 << 26
"""Scores of units x concepts that exist at once, of 8 bytes."""
PMI = {"wpmi": WPMI, "soft_wpmi": SOFT_WPMI}


# ---------------------------------------------------------------- what is kept of images


def collector(task: Task) -> Collector:
    """What the stage's similarity needs of the images of a shard that the CLIP embedded too."""
    if task.round_name == "means":
        return MeansShard(task)
    match task.params["similarity"]:
        case "cos":
            return CosShard(task)
        case "cos_cubed":
            return CubedShard(task)
        case "rank_reorder":
            return AllImages(task)
        case _:
            return TopShard(task)


class _Shard:
    """Leaves out images that the CLIP has no embedding of."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.images = 0

    def add(self, rows: UnitRows) -> None:
        """The next images."""
        images, t_NU = rows.image_index, rows.pooled(self.task.params["pool"])
        known = self.task.embedded.has(images)
        if not known.all():
            images, t_NU = images[known], t_NU[torch.from_numpy(known).to(t_NU.device)]
        if len(images):
            self.images += len(images)
            self.take(images, t_NU)

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """Images that have an embedding: their rows of the index [N] and pooled activations [N,U]."""
        raise NotImplementedError


class CosShard(_Shard):
    """The sums of `cos`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._sums = Cosines()

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._sums.add(t_NU, self.task.embedded.of(images))

    def results(self) -> Iterator[Artifact]:
        """The sums of the shard; nothing if it has no image."""
        sums = self._sums
        if sums.cross_UE is not None and sums.square_U is not None and sums.gram_EE is not None:
            arrays = {"cross": sums.cross_UE, "square": sums.square_U, "gram": sums.gram_EE}
            yield self.task.pack(STATE, {**arrays, **_spread_arrays(sums.spread), "images": torch.tensor(self.images)})


class MeansShard(_Shard):
    """The sums that the centring of `cos_cubed` needs."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._sums = Means()

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._sums.add(t_NU, self.task.embedded.of(images))

    def results(self) -> Iterator[Artifact]:
        """The sums of the shard; nothing if it has no image."""
        sums = self._sums
        if sums.sum_U is not None and sums.sum_E is not None:
            arrays = {"count": torch.tensor(sums.count), "units": sums.sum_U, "embeddings": sums.sum_E}
            yield self.task.pack(MEANS, {**arrays, **_spread_arrays(sums.spread)})


class CubedShard(_Shard):
    """The sums of `cos_cubed`, U x M."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._sums = CubedCosines(_means(task), task.texts_ME)

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._sums.add(t_NU, self.task.embedded.of(images))

    def results(self) -> Iterator[Artifact]:
        """The sums of the shard; nothing if it has no image."""
        sums = self._sums
        if sums.cross_UM is not None and sums.square_U is not None and sums.square_M is not None:
            arrays = {"cross": sums.cross_UM, "units": sums.square_U, "concepts": sums.square_M}
            yield self.task.pack(STATE, arrays)


class TopShard(_Shard):
    """The images that excite each unit most, for `wpmi` and `soft_wpmi`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._top = TopImages(PMI[task.params["similarity"]].top_k)

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._top.add(torch.from_numpy(images).to(t_NU.device), t_NU)

    def results(self) -> Iterator[Artifact]:
        """The lists of the shard; nothing if it has no image."""
        top = self._top
        if top.seen:
            arrays = {"values": top.values, "images": top.images, "seen": torch.tensor(top.seen)}
            yield self.task.pack(STATE, {**arrays, **_spread_arrays(top.spread)})


class AllImages(_Shard):
    """All pooled activations, for `rank_reorder`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._kept = PooledShard(task)

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._kept.add(images, t_NU)

    def results(self) -> Iterator[Artifact]:
        """What is kept of the shard."""
        yield from self._kept.results()


def _spread_arrays(spread: Spread) -> dict[str, Tensor]:
    assert spread.low_U is not None and spread.high_U is not None
    return {"low": spread.low_U, "high": spread.high_U}


def _states(task: Task, round_name: str, name: str) -> Iterator[dict[str, Tensor]]:
    for found in task.partials(round_name, name):
        yield {key: torch.from_numpy(array).to(task.device) for key, array in found.items()}


def _means(task: Task) -> Means:
    """Of all images. Raises: TooFewImages (there is none)."""
    total = Means()
    for s in _states(task, "means", MEANS):
        total.merge(Means(int(s["count"]), s["units"], s["embeddings"], Spread(s["low"], s["high"])))
    if not total.count:
        raise _no_images(task)
    return total


def _no_images(task: Task) -> TooFewImages:
    return TooFewImages(
        f"no image has both an activation at {task.params['site']} and an embedding of {task.params['clip']}; all were set aside"
    )


# ---------------------------------------------------------------- scores


def finish(task: Task) -> Iterator[Part]:
    """The lists of both directions.

    Raises:
        BadSpec: tau above the number of living units. TooFewImages: as `clip_dissect` of miclip_core.
    """
    match task.params["similarity"]:
        case "cos":
            yield from _finish_cos(task)
        case "cos_cubed":
            yield from _finish_cubed(task)
        case "rank_reorder":
            yield from _finish_ranks(task)
        case _:
            yield from _finish_pmi(task, PMI[task.params["similarity"]])


def _finish_cos(task: Task) -> Iterator[Part]:
    total, images = Cosines(), 0
    for s in _states(task, "map", STATE):
        total.merge(Cosines(s["cross"], s["square"], s["gram"], Spread(s["low"], s["high"])))
        images += int(s["images"])
    if not images:
        raise _no_images(task)
    dead_U = total.spread.silent
    top = start_lists(task, dead_U)
    step = max(1, BLOCK_SCORES // task.units)
    for first in range(0, len(task.concepts), step):
        top.add(0, first, total.scores(task.texts_ME[first : first + step]))
    yield from list_parts(task, top, dead_U, images)


def _finish_cubed(task: Task) -> Iterator[Part]:
    means = _means(task)
    total = CubedCosines(means, task.texts_ME)
    for s in _states(task, "map", STATE):
        total.merge(CubedCosines(means, task.texts_ME, s["cross"], s["units"], s["concepts"]))
    dead_U = means.spread.silent
    top = start_lists(task, dead_U)
    top.add(0, 0, total.scores())
    yield from list_parts(task, top, dead_U, means.count)


def _finish_ranks(task: Task) -> Iterator[Part]:
    pooled, settings = Pooled.open(task), RankReorder()
    images = torch.from_numpy(pooled.image_index).to(task.device)
    shuffled = shuffles(settings.top_k(len(images)), int(task.params["permutation_seed"]))
    vectors = task.embeddings(0, task.plan.rounds[0].rows)
    spreads, blocks = [], []
    for units, t_NU in pooled.blocks():
        top = TopImages(settings.top_k(len(images)))
        top.add(images, t_NU)
        spreads.append(top.spread.silent)
        x_RE = vectors.of(top.used().cpu().numpy())
        blocks.append((units.start, rank_reorder(settings, top, x_RE, task.texts_ME, shuffled)))
    dead_U = torch.cat(spreads)
    lists = start_lists(task, dead_U)
    for first, scores_UM in blocks:
        lists.add(first, 0, scores_UM)
    yield from list_parts(task, lists, dead_U, len(images))


def _finish_pmi(task: Task, pmi: Pmi) -> Iterator[Part]:
    total = TopImages(pmi.top_k)
    for s in _states(task, "map", STATE):
        spread = Spread(s["low"], s["high"])
        total.merge(TopImages(pmi.top_k, s["values"], s["images"], int(s["seen"]), spread))
    if not total.seen:
        raise _no_images(task)
    total = total.first(pmi.top_k)
    dead_U = total.spread.silent
    lists = start_lists(task, dead_U)
    _add_pmi(task, pmi, total, lists)
    yield from list_parts(task, lists, dead_U, total.seen)


def _add_pmi(task: Task, pmi: Pmi, top: TopImages, lists: TopScores) -> None:
    """Scores need the marginal over all units first; where these do not fit at once, likelihoods are made twice."""
    used = top.used()
    x_RE = task.embeddings(int(used.min()), int(used.max()) + 1).of(used.cpu().numpy())
    step = max(1, BLOCK_SCORES // len(task.concepts))
    blocks = [slice(first, min(first + step, task.units)) for first in range(0, task.units, step)]

    def likelihoods() -> Iterator[tuple[int, Tensor]]:
        for units in blocks:
            some = _of_units(top, units)
            rows = torch.searchsorted(used, some.used())
            yield units.start, log_likelihoods(pmi, some, x_RE[rows], task.texts_ME)

    kept = list(likelihoods()) if len(blocks) == 1 else None
    marginal = Marginal()
    for _, likelihood_UM in kept or likelihoods():
        marginal.add(likelihood_UM)
    for first, likelihood_UM in kept or likelihoods():
        lists.add(first, 0, pmi_scores(pmi, likelihood_UM, marginal))


def _of_units(top: TopImages, units: slice) -> TopImages:
    """The lists of a block of units."""
    assert top.spread.low_U is not None and top.spread.high_U is not None
    spread = Spread(top.spread.low_U[units], top.spread.high_U[units])
    return replace(top, values_UK=top.values[units], images_UK=top.images[units], spread=spread)
