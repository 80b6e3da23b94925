"""How alike the images of a feature look to a model: clarity, its chance level, and monosemanticity, all from sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn.functional import embedding_bag

BLOCK = 1024  # images summed together; sums go by blocks of the image list, so their last bits know of no shard


def in_blocks(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows of successive arrays [n, E] as float64 unit vectors (zeros stay zeros), in blocks of exactly BLOCK (the last may be less)."""
    waiting: list[np.ndarray] = []
    have = 0
    for piece in pieces:
        while have + len(piece) >= BLOCK:
            taken = BLOCK - have
            yield _unit(np.concatenate([*waiting, piece[:taken]]))
            waiting, have, piece = [], 0, piece[taken:]
        waiting, have = [*waiting, piece], have + len(piece)
    if have:
        yield _unit(np.concatenate(waiting))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


class PairCosine:
    """Weighted mean cosine over distinct pairs of images, of many sets of images at once.

    The mean is sum_{i != j} w_i w_j <u_i, u_j> / sum_{i != j} w_i w_j = (|sum w u|^2 - sum w^2) / ((sum w)^2 - sum w^2):
    with equal weights the clarity of Dreyer et al. (2025), with activations the monosemanticity score of Pach et al.
    (2025). Costs one multiplication with u per weight.
    """

    def __init__(self, group: np.ndarray, image: np.ndarray, weight: np.ndarray, groups: int) -> None:
        """One element per weight, sorted by (group, image): which set, which image (place in the list), how much."""
        order = np.argsort((image // BLOCK).astype(np.uint16), kind="stable")  # 16 bits are sorted by counting
        self._group, self._image = group[order].astype(np.int64), image[order].astype(np.int64)
        self._weight = weight[order].astype(np.float64)
        self._groups = groups
        self._block_starts = np.searchsorted(self._image // BLOCK, np.arange(self._last_block() + 2))
        self._sum: torch.Tensor | None = None

    def _last_block(self) -> int:
        return int(self._image[-1]) // BLOCK if len(self._image) else -1

    def add(self, block: int, units_BE: np.ndarray) -> None:
        """Take in block number `block` of the images' unit vectors; zero vectors are left out."""
        if self._sum is None:
            self._sum = torch.zeros(self._groups, units_BE.shape[1], dtype=torch.float64)
        if block > self._last_block():
            return
        rows = slice(self._block_starts[block], self._block_starts[block + 1])
        groups, starts = np.unique(self._group[rows], return_index=True)
        if not len(groups):
            return
        image = self._image[rows] - block * BLOCK
        self._weight[rows] *= np.any(units_BE, axis=1)[image]
        self._sum[torch.from_numpy(groups)] += embedding_bag(
            torch.from_numpy(image),
            torch.from_numpy(units_BE),
            torch.from_numpy(starts),
            per_sample_weights=torch.from_numpy(self._weight[rows]),
            mode="sum",
        )

    def mean(self) -> np.ndarray:
        """[groups]; NaN where fewer than two images have weight."""
        if self._sum is None:
            return np.full(self._groups, np.nan)
        total = np.bincount(self._group, self._weight, self._groups)
        squares = np.bincount(self._group, self._weight**2, self._groups)
        several = np.bincount(self._group, self._weight != 0, self._groups) >= 2
        length = self._sum.pow(2).sum(1).numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(several, (length - squares) / (total**2 - squares), np.nan)


class RandomPairs:
    """Mean and standard deviation of the clarity of random sets of n images, exactly, without drawing any.

    Clarity of a set drawn without replacement is a mean over pairs; its first two moments over all sets follow from how
    often one, two pairs (with two, three or four images) are in a set, and from sums over all pairs of all images, which
    are sums of <u,u'>, <u,u'>^2 and <u,u'><u,u''>: the vector sum and the Gram matrix hold them.
    """

    def __init__(self) -> None:
        self.n = 0
        self._sum: np.ndarray | None = None
        self._gram: np.ndarray | None = None

    def add(self, units_BE: np.ndarray) -> None:
        """Take in some unit vectors; zero vectors are left out."""
        units_BE = units_BE[np.any(units_BE, axis=1)]
        total, gram = units_BE.sum(0), units_BE.T @ units_BE
        self._sum = total if self._sum is None else self._sum + total
        self._gram = gram if self._gram is None else self._gram + gram
        self.n += len(units_BE)

    def clarity(self, n: int) -> tuple[float, float]:
        """(mean, standard deviation) for sets of n; NaN if there are fewer than n images or n < 2."""
        if n < 2 or n > self.n or self._sum is None or self._gram is None:
            return np.nan, np.nan
        size = self.n
        length = float(self._sum @ self._sum)
        pairs = length - size  # sum over i != j of c_ij
        squares = float((self._gram**2).sum()) - size  # of c_ij^2
        rows = (
            float(self._sum @ self._gram @ self._sum) - 2 * length + size
        )  # sum over i of (sum over j != i of c_ij)^2
        chains = rows - squares  # of c_ij c_ik with i, j, k distinct
        apart = pairs**2 - 2 * squares - 4 * chains  # of c_ij c_kl with all four distinct
        in_set = np.cumprod([(n - k) / (size - k) if size > k else 0.0 for k in range(4)])
        mean = pairs / (size * (size - 1))
        second = (2 * squares * in_set[1] + 4 * chains * in_set[2] + apart * in_set[3]) / (n * (n - 1)) ** 2
        return mean, float(np.sqrt(max(second - mean**2, 0.0)))
