"""Where in an image a text is true of it: by the demo world's own label maps, or by CLIPSeg (Lüddecke and Ecker 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from miclip_core.dissect.segment import MaskDecoder, check_threshold
from miclip_core.world.reading import Reading, read
from miclip_core.world.render import LABEL_BACKGROUND, LABEL_TEXT, render_scenes
from miclip_core.world.scene import BACKGROUNDS, CONCEPTS, WORDS, Scenes, World, attributes
from schemas.errors import BadSpec

_SCENES_KEPT = 512
_IMAGES_KEPT = 16  # some 5 MB each, of CLIPSeg as it is published
_TEXTS_KEPT = 4096


class TextDriven(Protocol):
    """Segments one image by one text, for many different texts."""

    def masks(self, pixels_CIJ: Tensor, image: int | None, text: str) -> Tensor:
        """bool [n,I,J], n >= 0: one mask per thing that the text names and the image shows, in the text's order.

        pixels: uint8 RGB of any size. image: its number in the demo world, None for any other. Masks are on the CPU, in
        the segmenter's own size, and cover the whole image.
        """
        ...


class WorldSegmenter:
    """The truth of the demo world: for each noun phrase the objects that have every value it names.

    A quoted word is found where it is written. A background is found if nothing else is named: "a ring on a grey
    background" is about the ring. Phrases that nothing fits give no mask.
    """

    def __init__(self, world: World):
        self._world = world
        self._shown = lru_cache(_SCENES_KEPT)(self._draw)

    def masks(self, pixels_CIJ: Tensor, image: int | None, text: str) -> Tensor:
        """As in `TextDriven`; the image is known by its number, its pixels are not looked at.

        Raises:
            BadSpec: no number.
        """
        if image is None:
            raise BadSpec(
                "segmenter truth knows images of the demo world alone, found another; give a CLIPSeg model's file:/folder"
            )
        scene, labels_IJ = self._shown(image)
        found = [mask for mask in _of_reading(read(text), scene, labels_IJ) if mask.any()]
        return torch.from_numpy(np.stack(found) if found else np.zeros((0, *labels_IJ.shape), bool))

    def _draw(self, image: int) -> tuple[Scenes, np.ndarray]:
        scene = attributes(self._world, [image])
        return scene, render_scenes(scene)[1][0]


def _of_reading(reading: Reading, scene: Scenes, labels_IJ: np.ndarray) -> list[np.ndarray]:
    """A mask per phrase, without a pixel where nothing fits."""
    masks = [np.isin(labels_IJ, [k + 1 for k in _fitting(phrase, scene)]) for phrase in reading.objects]
    if reading.word is not None:
        masks.append((labels_IJ == LABEL_TEXT) & (scene.word[0] == WORDS.index(reading.word)))
    if reading.background is not None and not masks:
        is_it = scene.background[0] == BACKGROUNDS.index(reading.background)
        masks.append((labels_IJ == LABEL_BACKGROUND) & is_it)
    return masks


def _fitting(phrase: Mapping[str, str], scene: Scenes) -> list[int]:
    """Which objects of the one scene have all values of a phrase."""
    wanted = [(getattr(scene, field)[0], CONCEPTS[field].index(value)) for field, value in phrase.items()]
    return [k for k in range(int(scene.count[0])) if all(values[k] == value for values, value in wanted)]


class ClipsegSegmenter:
    """A model that decodes one mask per text; distinct texts are embedded once, and images in a row read once.

    folder: as for `MaskDecoder`. threshold: a pixel shows the text where its probability is above.

    Raises:
        BadSpec: a threshold that is no probability. Further what `MaskDecoder` raises.
    """

    def __init__(self, folder: Path, *, threshold: float = 0.5, device: str | torch.device = "cpu"):
        check_threshold(threshold)
        self._decoder, self.threshold = MaskDecoder(folder, device), threshold
        self._embed = lru_cache(_TEXTS_KEPT)(lambda text: self._decoder.embed([text]))
        self._states = lru_cache(_IMAGES_KEPT)(self._read)

    def masks(self, pixels_CIJ: Tensor, image: int | None, text: str) -> Tensor:
        """As in `TextDriven`, with one mask, or none where no pixel shows the text or the text is empty."""
        states = self._states(pixels_CIJ.cpu().numpy().tobytes(), tuple(pixels_CIJ.shape))
        probability_1IJ = self._decoder.probabilities(states, self._embed(text))
        mask_1IJ = (probability_1IJ > self.threshold).cpu()
        return mask_1IJ if text.strip() and mask_1IJ.any() else mask_1IJ[:0]

    def _read(self, pixels: bytes, shape: tuple[int, ...]) -> list[Tensor]:
        pixels_CIJ = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(shape).copy())
        return self._decoder.states(pixels_CIJ[None])
