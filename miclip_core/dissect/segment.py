"""Masks of concepts that are only named: a segmenter that is driven by text (Lüddecke and Ecker 2022, CLIPSeg)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miclip_core.dissect.library import load_folder, transformers
from miclip_core.dissect.masks import Masks
from schemas.errors import BadSpec, UnsupportedBlock


class MaskDecoder:
    """A model that decodes a mask from the hidden states of an image and the embedding of a text.

    folder: of `save_pretrained`, with its processor.

    Raises:
        UnsupportedBlock: the model is none of this structure. Further what `load_folder` raises.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        self._model, self._processor = load_folder(folder, _segmenting, torch.float32, device)
        self.device = torch.device(device)

    @torch.no_grad()
    def states(self, pixels_BCIJ: Tensor) -> list[Tensor]:
        """The hidden states [B,T,D] of B images (uint8 RGB of any size) that the decoder reads, by its configured layers."""
        prepared = self._processor.image_processor(list(pixels_BCIJ), return_tensors="pt").pixel_values
        states = self._model.clip.vision_model(prepared.to(self.device), output_hidden_states=True).hidden_states
        return [states[layer + 1] for layer in self._model.extract_layers]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [M,E] of texts; one that is longer than the model reads is cut."""
        tokens = self._processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.device)
        return self._model.get_conditional_embeddings(
            len(texts), input_ids=tokens.input_ids, attention_mask=tokens.get("attention_mask")
        )

    @torch.no_grad()
    def probabilities(self, states: Sequence[Tensor], text_QE: Tensor) -> Tensor:
        """[Q,I,J] in the model's own size: how likely every pixel shows the text, of Q pairs of an image and a text."""
        logits = self._model.decoder(list(states), text_QE).logits
        # One pair comes back without its batch dimension.
        return logits.view(len(text_QE), *logits.shape[-2:]).sigmoid()


def check_threshold(threshold: float) -> None:
    """Raises BadSpec unless 0 < threshold < 1."""
    if not 0 < threshold < 1:
        raise BadSpec(f"found threshold {threshold}; expected 0 < threshold < 1")


class TextSegmenter:
    """Masks of the same texts in many images; each text is embedded once and each image read once.

    folder: of a `MaskDecoder`. concepts: M names. template: `{}` is replaced by the name. threshold: a pixel shows the
    concept where its probability is above. decoded: pairs of image and text decoded at once. Masks have the size of the
    model's output.

    Raises:
        BadSpec: no concepts, a template without `{}` or a threshold that is no probability.
        Further what `MaskDecoder` raises.
    """

    def __init__(
        self,
        folder: Path,
        concepts: Sequence[str],
        *,
        template: str = "{}",
        threshold: float = 0.5,
        device: str | torch.device = "cpu",
        decoded: int = 64,
    ):
        check_threshold(threshold)
        if not concepts or "{}" not in template:
            found = f"{len(concepts)} concepts and template {template!r}"
            raise BadSpec(f"found {found}; expected some concepts and a {{}} in the template")
        self._concepts, self.threshold, self.decoded = tuple(concepts), threshold, decoded
        self._decoder = MaskDecoder(folder, device)
        texts = [template.replace("{}", concept) for concept in self._concepts]
        parts = [self._decoder.embed(texts[i : i + decoded]) for i in range(0, len(texts), decoded)]
        self._text_ME = torch.cat(parts)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the M concepts."""
        return self._concepts

    @torch.no_grad()
    def segment(self, pixels_BCIJ: Tensor, index_B: Tensor) -> Masks:
        """Masks of B > 0 images (uint8 RGB of any size), probability > threshold; `index` is not looked at."""
        levels = self._decoder.states(pixels_BCIJ)
        concepts = len(self._concepts)
        parts: list[tuple[Tensor, Tensor]] = []
        for first in range(0, len(pixels_BCIJ) * concepts, self.decoded):
            last = min(first + self.decoded, len(pixels_BCIJ) * concepts)
            pair = torch.arange(first, last, device=self._decoder.device)
            states = [level[pair // concepts] for level in levels]
            mask = self._decoder.probabilities(states, self._text_ME[pair % concepts]) > self.threshold
            some = mask.flatten(1).any(1)
            parts.append((pair[some], mask[some]))
        pairs = torch.cat([part[0] for part in parts])
        masks = torch.cat([part[1] for part in parts])
        return Masks(pairs // concepts, pairs % concepts, masks, len(pixels_BCIJ), concepts)


def _segmenting(config: Any) -> Any:
    """The class that the checkpoint was saved from, if it conditions a decoder on texts."""
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if not hasattr(kind, "get_conditional_embeddings"):
        raise UnsupportedBlock(
            f"config.json names the class {name or 'none'}, which takes no embedding of a text to decode a mask; "
            "use a checkpoint of CLIPSegForImageSegmentation"
        )
    return kind
