"""The losses against sums written out by hand."""

import math

import numpy as np
import pytest
import torch

from miclip_core.world.losses import PatchHeads, clip_loss, siglip_loss
from miclip_core.world.scene import PLANTED


def test_clip_loss_spreads_each_row_over_its_true_captions():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    truth = torch.tensor([[1.0, 1.0], [0.0, 1.0]])

    def log_softmax(values, k):
        return values[k] - math.log(sum(math.exp(v) for v in values))

    rows = [-(log_softmax([2, 1], 0) + log_softmax([2, 1], 1)) / 2, -log_softmax([0, 3], 1)]
    columns = [-log_softmax([2, 0], 0), -(log_softmax([1, 3], 0) + log_softmax([1, 3], 1)) / 2]
    assert float(clip_loss(logits, truth)) == pytest.approx(sum(rows + columns) / 4, abs=1e-6)


def test_clip_loss_with_one_true_caption_each_is_the_usual_cross_entropy():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    usual = [torch.nn.functional.cross_entropy(m, torch.arange(6)) for m in (logits, logits.T)]
    torch.testing.assert_close(clip_loss(logits, torch.eye(6)), sum(usual) / 2)


def test_siglip_loss_asks_every_pair_alone():
    logits, truth = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    signed = [2.0, 1.0, 0.5, 3.0]  # towards the truth
    expected = sum(math.log(1 + math.exp(-v)) for v in signed) / 2
    assert float(siglip_loss(logits, truth)) == pytest.approx(expected, abs=1e-6)


def test_patches_that_show_nothing_teach_nothing():
    heads = PatchHeads(4, reads_words=False)
    features = torch.randn(2, 3, 4, requires_grad=True)
    classes = {category: np.full((2, 3), -1) for category in PLANTED}
    classes["colour"][1, 2] = 5
    loss, accuracy = heads(features, classes)
    loss.backward()
    assert list(accuracy) == ["colour"]
    shown = heads.heads["colour"](features[1, 2])
    torch.testing.assert_close(loss, -shown.log_softmax(0)[5])
    assert features.grad.abs().sum(-1).nonzero().tolist() == [[1, 2]]


def test_shape_counts_twice():
    heads = PatchHeads(4, reads_words=False)
    features = torch.randn(1, 1, 4)
    alone = {}
    for category in ("shape", "texture"):
        classes = {c: np.full((1, 1), -1) for c in PLANTED}
        classes[category][:] = 1
        cross_entropy = float(-heads.heads[category](features[0, 0]).log_softmax(0)[1].detach())
        alone[category] = float(heads(features, classes)[0].detach()) / cross_entropy
    assert alone == pytest.approx({"shape": 2, "texture": 1}, abs=1e-5)
