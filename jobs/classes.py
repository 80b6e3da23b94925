"""The classes of a plan as scores of a model: zero-shot from names and templates, or those of its own head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from jobs.predictions import HEAD
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.templates import OPENAI_TEMPLATES
from miclip_core.zoo.text import zero_shot_classifier

TEMPLATES = {"openai80": OPENAI_TEMPLATES, "plain": ("a photo of a {}.",)}


@dataclass(frozen=True, eq=False)
class Classifier:
    """How a tapped tensor becomes class scores.

    site: `embedding` or `logits`. columns: [E, C] of unit length, or None where the site holds scores already. scale:
    the model's logit scale, by which cosines are multiplied before a softmax.
    """

    site: str
    names: tuple[str, ...]
    columns_EC: Tensor | None = None
    scale: float = 1.0

    def scores(self, tapped_B: Tensor) -> Tensor:
        """Cosines or the head's logits, float32 [B, C]."""
        scores_B = tapped_B.float()
        return scores_B if self.columns_EC is None else normalize(scores_B, dim=-1) @ self.columns_EC

    def logits(self, tapped_B: Tensor) -> Tensor:
        """What a softmax makes probabilities of, float32 [B, C]."""
        return self.scores(tapped_B) * self.scale


def get_templates(templates: str | Sequence[str]) -> Sequence[str]:
    """The sentences that the templates of a plan stand for."""
    return TEMPLATES[templates] if isinstance(templates, str) else templates


def make_classifier(model: VisionModel, classes: str | Sequence[str], templates: str | Sequence[str]) -> Classifier:
    """The classifier of a plan: `head`, or names with templates."""
    if classes == HEAD:
        assert model.facts.classes is not None
        return Classifier("logits", model.facts.classes)
    columns_EC = zero_shot_classifier(model, classes, get_templates(templates))
    scale = getattr(model.module, "logit_scale", None)
    return Classifier(
        "embedding", tuple(classes), columns_EC, 1.0 if scale is None else float(scale.detach().float().exp())
    )
