"""Batches of features with those of their top images that can still be read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.explain.asked import Asked
from jobs.latents import Feature
from jobs.protocol import Inputs
from jobs.top_images import TopImage, read_top_images, read_views


@dataclass(frozen=True, eq=False)
class Batch:
    """Features that are put to the model together, all with equally many images.

    shown: of each feature its K images, K may be 0. pixels: uint8 [features, K, 3, h, w], as the model sees them. maps:
    where the feature is active in them, fp32 [features, K, gh, gw].
    """

    features: Sequence[Feature]
    shown: Sequence[Sequence[TopImage]]
    pixels_FKCIJ: Tensor
    maps_FKPQ: Tensor

    @property
    def k(self) -> int:
        """Images per feature."""
        return int(self.pixels_FKCIJ.shape[1])

    def alone(self, place: int) -> Batch:
        """The feature at a place with its images."""
        one = slice(place, place + 1)
        return Batch(self.features[one], self.shown[one], self.pixels_FKCIJ[one], self.maps_FKPQ[one])


class Images:
    """The top images of features, read as they are needed; `notes` says how many could not be."""

    def __init__(self, inputs: Inputs, asked: Asked, k: int, threads: int) -> None:
        """k: images of a feature at most; with 0 none is read."""
        self._inputs, self._forward, self._stage = inputs, asked.forward, asked.plan.stage.inputs["features"]
        self._geometry, self._k, self._threads = asked.geometry, k, threads
        self._problems: Counter[str] = Counter()

    @property
    def notes(self) -> list[str]:
        """What people should know of the images so far."""
        return [f"{count} images left out: {reason}" for reason, count in sorted(self._problems.items())]

    def batches(self, features: Sequence[Feature], size: int) -> Iterator[Batch]:
        """Features in batches of at most `size` that have equally many images; few are left over of each number.

        Raises:
            ImageChanged: see `read_views`.
        """
        numbers = sorted(feature.number for feature in features)
        top = read_top_images(self._inputs, self._stage, numbers, self._k) if self._k else {}
        waiting: dict[int, list[tuple[Feature, list[TopImage], list[Tensor]]]] = defaultdict(list)
        for start in range(0, len(features), size):
            for item in self._read(features[start : start + size], top):
                alike = waiting[len(item[1])]
                alike.append(item)
                if len(alike) == size:
                    yield self._batch(waiting.pop(len(item[1])))
        for k in sorted(waiting):
            yield self._batch(waiting[k])

    def _read(
        self, features: Sequence[Feature], top: Mapping[int, list[TopImage]]
    ) -> Iterator[tuple[Feature, list[TopImage], list[Tensor]]]:
        """Features with those of their images that can be read, and these."""
        wanted = [image.image_index for feature in features for image in top.get(feature.number, [])]
        views, problems = read_views(self._inputs, self._forward, self._geometry, wanted, self._threads)
        self._problems.update(problem.reason for problem in problems)
        for feature in features:
            shown = [image for image in top.get(feature.number, []) if image.image_index in views]
            yield feature, shown, [views[image.image_index] for image in shown]

    def _batch(self, items: Sequence[tuple[Feature, list[TopImage], list[Tensor]]]) -> Batch:
        features, shown, views = zip(*items)
        if not views[0]:
            return Batch(
                features,
                shown,
                torch.zeros(len(items), 0, 3, 1, 1, dtype=torch.uint8),
                torch.zeros(len(items), 0, 1, 1),
            )
        pixels = torch.stack([torch.stack(own) for own in views])
        maps = torch.stack([torch.stack([image.map_IJ for image in own]) for own in shown])
        return Batch(features, shown, pixels, maps)
