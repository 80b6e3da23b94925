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


class TextSegmenter:
    """A model that decodes one mask per text from the hidden states of an image, each read once per image.

    folder: of `save_pretrained`, with its processor. concepts: M names. template: `{}` is replaced by the name.
    threshold: a pixel shows the concept where its probability is above. decoded: pairs of image and text decoded at once.
    Masks have the size of the model's output.

    Raises:
        BadSpec: no concepts, a template without `{}` or a threshold that is no probability.
        UnsupportedBlock: the model is none of this structure. Further what `load_folder` raises.
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
        if not concepts or "{}" not in template or not 0 < threshold < 1:
            found = f"{len(concepts)} concepts, template {template!r} and threshold {threshold}"
            raise BadSpec(f"found {found}; expected some concepts, a {{}} in the template and 0 < threshold < 1")
        self._concepts, self.threshold, self.decoded = tuple(concepts), threshold, decoded
        self._model, self._processor = load_folder(folder, _segmenting, torch.float32, device)
        self._device = torch.device(device)
        texts = [template.replace("{}", concept) for concept in self._concepts]
        self._text_ME = torch.cat([self._embed(texts[i : i + decoded]) for i in range(0, len(texts), decoded)])

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the M concepts."""
        return self._concepts

    @torch.no_grad()
    def segment(self, pixels_BCIJ: Tensor, index_B: Tensor) -> Masks:
        """Masks of B > 0 images (uint8 RGB of any size), sigmoid(logit) > threshold; `index` is not looked at."""
        levels = self._hidden(pixels_BCIJ)
        concepts = len(self._concepts)
        parts: list[tuple[Tensor, Tensor]] = []
        for first in range(0, len(pixels_BCIJ) * concepts, self.decoded):
            pair = torch.arange(first, min(first + self.decoded, len(pixels_BCIJ) * concepts), device=self._device)
            states = [level[pair // concepts] for level in levels]
            logits_QIJ = self._model.decoder(states, self._text_ME[pair % concepts]).logits
            # One pair comes back without its batch dimension.
            logits_QIJ = logits_QIJ.view(len(pair), *logits_QIJ.shape[-2:])
            mask = logits_QIJ.sigmoid() > self.threshold
            some = mask.flatten(1).any(1)
            parts.append((pair[some], mask[some]))
        pairs = torch.cat([part[0] for part in parts])
        masks = torch.cat([part[1] for part in parts])
        return Masks(pairs // concepts, pairs % concepts, masks, len(pixels_BCIJ), concepts)

    def _hidden(self, pixels_BCIJ: Tensor) -> list[Tensor]:
        """The hidden states that the decoder reads, by its configured layers."""
        prepared = self._processor.image_processor(list(pixels_BCIJ), return_tensors="pt").pixel_values
        states = self._model.clip.vision_model(prepared.to(self._device), output_hidden_states=True).hidden_states
        return [states[layer + 1] for layer in self._model.extract_layers]

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        tokens = self._processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        return self._model.get_conditional_embeddings(
            len(texts), input_ids=tokens.input_ids, attention_mask=tokens.get("attention_mask")
        )


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
