"""Any other model: its output, and whatever modules are named by path (`module:layers.2`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from miclip_core.zoo.sitemap import Entry, Family, Native
from miclip_core.zoo.timm_head import input_hw, is_tower, output_sites, trunk_of


def matches(visual: nn.Module) -> bool:
    """Every model; this family is asked last."""
    return True


def describe(visual: Any) -> Family:
    """The output alone is a canonical site: the image embedding, and the logits of a classifier.

    Raises:
        UnsupportedBlock: the model says nowhere which image size it takes.
    """
    return Family(
        name="raw",
        visual=visual,
        sites=_sites(visual),
        forward=visual,
        n_blocks=0,
        width=getattr(trunk_of(visual), "num_features", 0),
        grid=(1, 1),
        input_hw=input_hw(visual),
        norm_eps=0.0,
        act_kind="none",
        pool="none",
        final_norm_position="none",
    )


def _sites(visual: Any) -> dict[str, Entry]:
    """What a last linear layer reads is the embedding; where there is no single one, the output is."""
    output = Native(visual, layout="vector")
    trunk = trunk_of(visual)
    if is_tower(visual) or getattr(trunk, "num_classes", 0) == 0:
        return {"embedding": output}
    classifier = trunk.get_classifier() if hasattr(trunk, "get_classifier") else None
    if isinstance(classifier, nn.Linear):
        return output_sites(visual, classifier)
    return {"embedding": output, "logits": output}
