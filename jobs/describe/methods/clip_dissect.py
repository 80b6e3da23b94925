"""CLIP-Dissect (Oikarinen and Weng 2023): units by how alike their activations are to what a CLIP makes of the same images.

Its similarities need different things of the images: sums (`cos`), each unit's most exciting images (`wpmi`, `soft_wpmi`),
or all activations (`cos_cubed`, which centres them first, and `rank_reorder`, whose share of the images grows with them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jobs.describe.lists import list_parts, start_lists
from jobs.describe.pooled import Pooled, PooledShard, unit_blocks
from jobs.describe.sizes import BLOCK_SCORES, IMAGES_AT_ONCE, WAITING_NUMBERS
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

STATE = "state"
PMI = {"wpmi": WPMI, "soft_wpmi": SOFT_WPMI}


# ---------------------------------------------------------------- what is kept of images


def collector(task: Task) -> Collector:
    """What the stage's similarity needs of the images of a shard that the CLIP embedded too."""
    match task.params["similarity"]:
        case "cos":
            return CosShard(task)
        case "cos_cubed" | "rank_reorder":
            return AllImages(task)
        case _:
            return TopShard(task)


class _Shard:
    """Gathers short batches, and leaves out images that the CLIP has no embedding of."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._waiting: list[tuple[np.ndarray, Tensor]] = []

    def add(self, rows: UnitRows) -> None:
        """The next images."""
        images, t_NU = rows.image_index, rows.pooled(self.task.params["pool"])
        known = self.task.embedded.has(images)
        if not known.all():
            images, t_NU = images[known], t_NU[torch.from_numpy(known).to(t_NU.device)]
        if len(images):
            self._waiting.append((images, t_NU))
        if sum(t.numel() for _, t in self._waiting) >= WAITING_NUMBERS:
            self._flush()

    def results(self) -> Iterator[Artifact]:
        """What is kept of the shard; nothing if it has no image."""
        self._flush()
        yield from self.kept()

    def _flush(self) -> None:
        if self._waiting:
            images, activations = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self.take(np.concatenate(images), torch.cat(activations))

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """Images that have an embedding: their rows of the index [N] and pooled activations [N,U]."""
        raise NotImplementedError

    def kept(self) -> Iterator[Artifact]:
        """What `take` made of them."""
        raise NotImplementedError


class CosShard(_Shard):
    """The sums of `cos`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._sums = Cosines()
        self._images = 0

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._sums.add(t_NU, self.task.embedded.of(images))
        self._images += len(images)

    def kept(self) -> Iterator[Artifact]:
        """As `_Shard.kept`."""
        sums = self._sums
        if sums.cross_UE is not None and sums.square_U is not None and sums.gram_EE is not None:
            arrays = {"cross": sums.cross_UE, "square": sums.square_U, "gram": sums.gram_EE}
            yield self.task.pack(STATE, {**arrays, **_ends(sums.spread), "images": torch.tensor(self._images)})


class TopShard(_Shard):
    """The images that excite each unit most, for `wpmi` and `soft_wpmi`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._top = TopImages(PMI[task.params["similarity"]].top_k)

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._top.add(torch.from_numpy(images).to(t_NU.device), t_NU)

    def kept(self) -> Iterator[Artifact]:
        """As `_Shard.kept`."""
        top = self._top
        if top.seen:
            arrays = {"values": top.values, "images": top.images, "seen": torch.tensor(top.seen)}
            yield self.task.pack(STATE, {**arrays, **_ends(top.spread)})


class AllImages(_Shard):
    """All pooled activations, for `cos_cubed` and `rank_reorder`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._kept = PooledShard(task)

    def take(self, images: np.ndarray, t_NU: Tensor) -> None:
        """As `_Shard.take`."""
        self._kept.add(images, t_NU)

    def kept(self) -> Iterator[Artifact]:
        """As `_Shard.kept`."""
        yield from self._kept.results()


def _ends(spread: Spread) -> dict[str, Tensor]:
    assert spread.low_U is not None and spread.high_U is not None
    return {"low": spread.low_U, "high": spread.high_U}


# ---------------------------------------------------------------- scores


def finish(task: Task) -> Iterator[Part]:
    """The lists of both directions.

    Raises:
        BadSpec: tau above the number of living units. TooFewImages: as `clip_dissect` of miclip_core.
    """
    match task.params["similarity"]:
        case "cos":
            yield from _finish_cos(task)
        case "cos_cubed" | "rank_reorder":
            yield from _finish_blocks(task)
        case _:
            yield from _finish_pmi(task, PMI[task.params["similarity"]])


def _states(task: Task) -> Iterator[dict[str, Tensor]]:
    for found in task.partials("map", STATE):
        yield {key: torch.from_numpy(array).to(task.device) for key, array in found.items()}


def _no_images(task: Task) -> TooFewImages:
    return TooFewImages(
        f"no image has both an activation at {task.params['site']} and an embedding of {task.params['clip']}; all were set aside"
    )


def _finish_cos(task: Task) -> Iterator[Part]:
    total, images = Cosines(), 0
    for s in _states(task):
        total.merge(Cosines(s["cross"], s["square"], s["gram"], Spread(s["low"], s["high"])))
        images += int(s["images"])
    if not images:
        raise _no_images(task)
    dead_U = total.spread.silent
    lists = start_lists(task, dead_U)
    step = max(1, BLOCK_SCORES // task.units)
    for first in range(0, len(task.concepts), step):
        lists.add(0, first, total.scores(task.texts_ME[first : first + step]))
    yield from list_parts(task, lists, dead_U, images)


def _finish_blocks(task: Task) -> Iterator[Part]:
    """Similarities that need all images of a unit: one block of units after another."""
    pooled = Pooled.open(task)
    if not len(pooled.image_index):
        raise _no_images(task)
    dead_U = pooled.spread.silent
    lists = start_lists(task, dead_U)
    scores = _Cubed(task, pooled) if task.params["similarity"] == "cos_cubed" else _Ranks(task, pooled)
    for stored, t_NU in pooled.blocks():
        for units in unit_blocks(t_NU.shape[1], len(task.concepts), BLOCK_SCORES):
            lists.add(stored.start + units.start, 0, scores.of(t_NU[:, units]))
    yield from list_parts(task, lists, dead_U, len(pooled.image_index))


class _Cubed:
    """`cos_cubed` of some units over all images."""

    def __init__(self, task: Task, pooled: Pooled) -> None:
        self._texts_ME = task.texts_ME
        self._x_NE = task.embeddings(0, task.plan.rounds[0].rows).of(pooled.image_index)

    def of(self, t_NU: Tensor) -> Tensor:
        """float32 [U,M]."""
        means = Means()
        parts = list(zip(t_NU.split(IMAGES_AT_ONCE), self._x_NE.split(IMAGES_AT_ONCE), strict=True))
        for t, x in parts:
            means.add(t, x)
        cubed = CubedCosines(means, self._texts_ME)
        for t, x in parts:
            cubed.add(t, x)
        return cubed.scores()


class _Ranks:
    """`rank_reorder` of some units over all images."""

    def __init__(self, task: Task, pooled: Pooled) -> None:
        """Raises: TooFewImages."""
        self._texts_ME, self._settings = task.texts_ME, RankReorder()
        self._k = self._settings.top_k(len(pooled.image_index))
        self._shuffles = shuffles(self._k, int(task.params["permutation_seed"]))
        self._x_NE = task.embeddings(0, task.plan.rounds[0].rows).of(pooled.image_index)

    def of(self, t_NU: Tensor) -> Tensor:
        """float32 [U,M]."""
        top = TopImages(self._k)
        top.add(torch.arange(len(t_NU), device=t_NU.device), t_NU)
        return rank_reorder(self._settings, top, self._x_NE[top.used()], self._texts_ME, self._shuffles)


def _finish_pmi(task: Task, pmi: Pmi) -> Iterator[Part]:
    total = TopImages(pmi.top_k)
    for s in _states(task):
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
    blocks = unit_blocks(task.units, len(task.concepts), BLOCK_SCORES)

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
