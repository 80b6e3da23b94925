"""Texts that lie together: k-means of their embeddings, the words that tell a cluster from the others, and some of its members."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from miclip_core.shuffle import permute

UNTOLD = frozenset({"element", "elements", "feature", "features", "highlighted", "image", "images", "visual"})
"""Words of the questions, which answers repeat; with the most frequent English words no topic of a cluster."""


def cluster_texts(embedding_NE: np.ndarray, k: int = 30, restarts: int = 10, seed: int = 42) -> np.ndarray:
    """The cluster of each embedding, int64 [N], numbered from 0 by size (of equal sizes the one that comes first).

    k-means with the least sum of squares of so many restarts (k-means++, Arthur and Vassilvitskii 2007). With fewer
    different embeddings than k every one is a cluster of its own.

    Raises:
        ValueError: no embeddings, or one that is not finite.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    rows = np.asarray(embedding_NE, np.float64)
    if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"found embeddings {rows.shape}; expected some rows [N, E] of finite numbers")
    different, which = np.unique(rows, axis=0, return_inverse=True)
    if len(different) <= k:
        return _by_size(which.reshape(-1))
    model = KMeans(k, n_init=restarts, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():  # sums in one order: the same clusters on any number of CPUs
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _by_size(model.fit_predict(rows))


def _by_size(labels_N: np.ndarray) -> np.ndarray:
    _, first, which, size = np.unique(labels_N, return_index=True, return_inverse=True, return_counts=True)
    number = np.empty(len(size), np.int64)
    number[np.lexsort((first, -size))] = np.arange(len(size))
    return number[which]


def name_topics(texts: Sequence[str], labels_N: np.ndarray, words: int = 3) -> list[str]:
    """What each cluster is about, in its most distinctive words, the most distinctive first.

    A word t of cluster c has the weight n_tc log(1 + A / n_t): n_tc its count in c, n_t in all clusters, A the mean number
    of words of a cluster (class-based tf-idf: Grootendorst 2022, BERTopic, section 3.3). Very frequent English words and
    UNTOLD are left out; a cluster without any other is called by its most frequent text. labels: as by `cluster_texts`.
    """
    clusters = int(labels_N.max()) + 1 if len(texts) else 0
    members = [[texts[place] for place in np.flatnonzero(labels_N == cluster).tolist()] for cluster in range(clusters)]
    counts = [Counter(word for text in some for word in content_words(text)) for some in members]
    total = sum(counts, Counter[str]())
    mean_size = total.total() / max(1, clusters)
    topics = []
    for count, some in zip(counts, members, strict=True):
        weight = {word: n * np.log1p(mean_size / total[word]) for word, n in count.items()}
        best = sorted(weight, key=lambda word: (-round(float(weight[word]), 9), word))[:words]
        topics.append(", ".join(best) or _most_frequent(some))
    return topics


def content_words(text: str) -> list[str]:
    """The words of a text in lower case without very frequent English ones, UNTOLD, numbers and single letters."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    found = re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", text.lower())
    return [word for word in found if len(word) > 1 and word not in ENGLISH_STOP_WORDS and word not in UNTOLD]


def _most_frequent(texts: Sequence[str]) -> str:
    count = Counter(texts)
    return min(count, key=lambda text: (-count[text], text))


def sample_members(labels_N: np.ndarray, cluster: int, most: int = 20, seed: int = 42) -> np.ndarray:
    """At most so many members of a cluster, drawn at random without replacement: their places, ascending, int64."""
    members = np.flatnonzero(labels_N == cluster)
    return np.sort(members[permute(len(members), "cluster", cluster, seed)[:most]])
