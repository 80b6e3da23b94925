"""Embeddings of texts as points of a plane, to look at."""

from __future__ import annotations

from typing import Literal

import numpy as np

from miclip_core.extras import UMAP

Layout = Literal["pca", "umap"]
LEAST_UMAP = 5
"""Fewer points have no neighbourhoods to speak of, and are laid out by their principal components."""


def lay_out(
    embedding_NE: np.ndarray, layout: Layout = "pca", neighbours: int = 15, min_dist: float = 0.1, seed: int = 42
) -> np.ndarray:
    """Places in the plane, float32 [N, 2].

    `pca`: the two principal components with the largest variance, whose largest coefficient is positive; the same
    everywhere but for rounding, unless variances are equal. `umap`: with so many neighbours, or all there are, and
    Euclidean distances (McInnes, Healy and Melville 2018), the same with the same versions of its libraries only; the last
    three arguments are its own.

    Raises:
        ValueError: embeddings that are not [N, E] or not finite.
        MissingPackage: umap-learn is not installed.
    """
    rows = np.asarray(embedding_NE, np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"found embeddings {rows.shape}; expected rows [N, E] of finite numbers")
    if layout == "umap":
        UMAP.require()
    if layout == "pca" or len(rows) < LEAST_UMAP:
        return _pca(rows)
    import umap

    near = min(neighbours, len(rows) - 1)
    model = umap.UMAP(n_neighbors=near, min_dist=min_dist, metric="euclidean", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(rows.astype(np.float32)), np.float32)


def _pca(rows: np.ndarray) -> np.ndarray:
    places = np.zeros((len(rows), 2), np.float32)
    if not rows.size:
        return places
    centred = rows - rows.mean(0)
    _, axes_EE = np.linalg.eigh(centred.T @ centred)
    axes = axes_EE[:, ::-1][:, :2]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)
    places[:, : axes.shape[1]] = centred @ (axes * np.where(largest < 0, -1, 1))
    return places
