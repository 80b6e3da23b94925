"""Small vision-language models that say different things about different images, loaded once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from miclip_core.explain.vlm import Vlm
from tests.miclip_core.explain import vlms

Speaker = Callable[[vlms.Kind], Vlm]


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """Kind -> a model whose output matrix is not its embedding, else the likeliest token is the one before; never change it."""

    @cache
    def load(kind: vlms.Kind) -> Vlm:
        vlm = vlms.tiny_vlm(kind, tmp_path_factory.mktemp(kind))
        stir(vlm)
        return vlm

    return load


def stir(vlm: Vlm) -> None:
    """Give the model an output matrix of its own, and let what it sees and attends to matter more than the words."""
    stream = torch.Generator().manual_seed(5)
    head = vlm.module.lm_head
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=stream), requires_grad=False)
    with torch.no_grad():
        head.weight[vlm.module.config.image_token_id] = 0  # a pass over an answer would take it for a place to fill
        for layer in vlm.module.model.language_model.layers:
            layer.self_attn.v_proj.weight.mul_(8)
