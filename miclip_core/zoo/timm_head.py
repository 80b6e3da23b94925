"""What timm models share outside their blocks: the trunk inside an open_clip tower, the input size, and how the output is made."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from miclip_core.zoo.sitemap import Entry, Native
from schemas.errors import UnsupportedBlock


def trunk_of(visual: Any) -> Any:
    """The timm model: the tower itself, or `visual.trunk` where open_clip wraps it and adds `visual.head`."""
    return visual.trunk if isinstance(getattr(visual, "trunk", None), nn.Module) else visual


def is_tower(visual: Any) -> bool:
    """Whether open_clip wraps the timm model."""
    return trunk_of(visual) is not visual


def plain_output(visual: Any) -> bool:
    """Whether the output is one vector per image: false for a tower whose own head pools a feature map."""
    return not (is_tower(visual) and hasattr(visual.head, "pool"))


def input_hw(visual: Any) -> tuple[int, int]:
    """Height and width that the model takes.

    Raises:
        UnsupportedBlock: the model says nowhere which size it takes.
    """
    trunk = trunk_of(visual)
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if size is None:
        size = getattr(visual, "image_size", None)
    if size is None:
        size = (getattr(trunk, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise UnsupportedBlock(f"{type(visual).__name__} does not say which image size it takes")
    size = (size, size) if isinstance(size, int) else size
    return int(size[-2]), int(size[-1])


def output_sites(visual: Any, classifier: nn.Module) -> dict[str, Entry]:
    """`pooled`, `embedding` and, for a model with a classifier head of its own, `logits`.

    classifier: the trunk's last layer. In a tower it is the projection or nothing, and the tower's output is the
    embedding. In a plain model it makes the logits, and what it reads is the embedding.
    """
    pooled = Native(classifier, "input", "vector")
    output = Native(visual, layout="vector")
    if is_tower(visual) or isinstance(classifier, nn.Identity):
        return {"pooled": pooled, "embedding": output}
    return {"pooled": pooled, "embedding": pooled, "logits": output}


def projection(visual: Any, classifier: Any) -> tuple[Tensor | None, Tensor | None]:
    """P [D, E] and bias [E] from `pooled` to `embedding`; None where there is nothing to apply.

    Raises:
        UnsupportedBlock: an MLP makes the embedding.
    """
    if not is_tower(visual):
        return None, None
    if hasattr(visual.head, "mlp"):
        raise UnsupportedBlock("an MLP makes the embedding from the pooled vector, so it is no linear readout")
    linear = getattr(visual.head, "proj", classifier)
    if isinstance(linear, nn.Identity):
        return None, None
    return linear.weight.flatten(1).T, linear.bias
