"""Where in images which concept is: the value that every segmenter gives, and the truth of the demo world in this form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from miclip_core.world.render import LABEL_TEXT, LABEL_WATERMARK, render_scenes
from miclip_core.world.scene import CONCEPTS, MAX_OBJECTS, OBJECT_FIELDS, Scenes, World, attributes


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of M concepts in B images as Q pairs (image, concept), sorted by image; other pairs have no pixel.

    image, concept: int64 [Q], a pair at most once. mask: bool [Q,I,J].
    """

    image: Tensor
    concept: Tensor
    mask: Tensor
    n_images: int
    n_concepts: int

    @classmethod
    def from_dense(cls, mask_BMIJ: Tensor) -> Masks:
        """From one bool mask per image and concept."""
        some_BM = mask_BMIJ.flatten(2).any(2)
        image, concept = some_BM.nonzero(as_tuple=True)
        return cls(image, concept, mask_BMIJ[image, concept], len(some_BM), some_BM.shape[1])

    def of_concepts(self, number_M: Tensor, n_concepts: int) -> Masks:
        """The masks of some concepts under other numbers: concept m becomes number_M[m] (int64), or is left out at -1."""
        concept = number_M[self.concept]
        order = torch.argsort(self.image * (n_concepts + 1) + concept)
        order = order[concept[order] >= 0]
        return Masks(self.image[order], concept[order], self.mask[order], self.n_images, n_concepts)

    def pack(self) -> PackedMasks:
        """The same in an eighth of the memory."""
        flat = self.mask.flatten(1).cpu().numpy()
        return PackedMasks(replace(self, mask=self.mask[:0]), np.packbits(flat, axis=1))

    def to(self, device: str | torch.device) -> Masks:
        """The same masks on another device."""
        moved = self.image.to(device), self.concept.to(device), self.mask.to(device)
        return Masks(*moved, self.n_images, self.n_concepts)


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks whose pixels are bits. about: everything else of them. bits: uint8 [Q, bytes]."""

    about: Masks
    bits: np.ndarray

    def cut(self, start: int, stop: int) -> Masks:
        """The masks of images [start, stop), which are numbered from 0 in them."""
        about = self.about
        first, last = np.searchsorted(about.image.cpu().numpy(), [start, stop]).tolist()
        size = about.mask.shape[1:]
        flat = np.unpackbits(self.bits[first:last], axis=1, count=size.numel()).astype(bool)
        mask = torch.from_numpy(flat).view(-1, *size).to(about.image.device)
        image, concept = about.image[first:last] - start, about.concept[first:last]
        return Masks(image, concept, mask, stop - start, about.n_concepts)


class TruthSegmenter:
    """The label maps of the demo world: every value of the chosen categories, at the pixels that show it.

    An object's pixels carry its shape, colour, texture, size and position; what no object, word or mark covers is the
    background.

    world, and categories of CONCEPTS. The images are expected in their own size, so that masks and pixels agree.
    """

    def __init__(self, world: World, categories: tuple[str, ...] = tuple(CONCEPTS)):
        self.world, self.categories = world, categories

    @property
    def concepts(self) -> tuple[str, ...]:
        """`category=value`."""
        return tuple(f"{category}={value}" for category in self.categories for value in CONCEPTS[category])

    def segment(self, pixels_BCIJ: Tensor, index_B: Tensor) -> Masks:
        """Masks of images by their indices in the world; the pixels say the device alone."""
        scenes = attributes(self.world, index_B.cpu().numpy())
        return truth_masks(scenes, render_scenes(scenes)[1], self.categories).to(pixels_BCIJ.device)


def truth_masks(scenes: Scenes, labels_BIJ: np.ndarray, categories: tuple[str, ...] = tuple(CONCEPTS)) -> Masks:
    """Masks of every value of `categories` (in the order of CONCEPTS) from the label maps that `render_scenes` gives."""
    pairs: list[tuple[int, int, np.ndarray]] = []
    first = dict(zip(categories, np.cumsum([0] + [len(CONCEPTS[c]) for c in categories]).tolist(), strict=False))
    n_concepts = sum(len(CONCEPTS[category]) for category in categories)
    for b, labels_IJ in enumerate(labels_BIJ):
        found: dict[int, np.ndarray] = {}
        for category in categories:
            for value, mask_IJ in _shown(scenes, b, category, labels_IJ):
                concept = first[category] + value
                found[concept] = found[concept] | mask_IJ if concept in found else mask_IJ
        pairs += [(b, concept, found[concept]) for concept in sorted(found) if found[concept].any()]
    mask = np.stack([pair[2] for pair in pairs]) if pairs else np.zeros((0, *labels_BIJ.shape[1:]), bool)
    image, concept_Q = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    return Masks(image, concept_Q, torch.from_numpy(mask), len(labels_BIJ), n_concepts)


def _shown(scenes: Scenes, b: int, category: str, labels_IJ: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(value, pixels) of one category in one image; several objects may share a value."""
    if category in OBJECT_FIELDS:
        numbers = getattr(scenes, category)[b]
        return [(int(numbers[k]), labels_IJ == k + 1) for k in range(MAX_OBJECTS) if numbers[k] >= 0]
    if category == "word":
        return [(int(scenes.word[b]), labels_IJ == LABEL_TEXT)] if scenes.word[b] >= 0 else []
    if category == "watermark":
        return [(0, labels_IJ == LABEL_WATERMARK)]
    return [(int(scenes.background[b]), labels_IJ == 0)]
