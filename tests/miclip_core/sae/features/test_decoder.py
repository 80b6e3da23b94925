"""Neighbours and norms of decoder rows against loops."""

from itertools import pairwise

import pytest
import torch

from miclip_core.sae.features import decoder
from miclip_core.sae.features.decoder import describe_weights


def weights(m: int = 40, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w_enc, w_dec = torch.randn(2, m, d, generator=generator)
    w_dec[7], w_dec[30], w_dec[12] = w_dec[3], w_dec[3], -w_dec[3]
    return w_enc, w_dec


def test_neighbours_cosines_and_norms_equal_a_loop():
    w_enc, w_dec = weights()
    found = describe_weights(w_enc, w_dec, 0, 40)
    unit = torch.nn.functional.normalize(w_dec.double(), dim=1).float().double()
    for i in range(40):
        others = sorted((j for j in range(40) if j != i), key=lambda j: (-float(unit[i] @ unit[j]), j))
        assert found.neighbours[i].tolist() == others[:3]
        assert found.neighbour_cosines[i].tolist() == pytest.approx([float(unit[i] @ unit[j]) for j in others[:3]])
        assert float(found.norm[i]) == pytest.approx(float(w_dec[i].norm()))
        cosine = float(w_enc[i] @ w_dec[i] / w_enc[i].norm() / w_dec[i].norm())
        assert float(found.encoder_cosine[i]) == pytest.approx(cosine, abs=1e-6)
    assert found.neighbours[3].tolist()[:2] == [7, 30]


def test_any_range_of_features_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder, "BLOCK", 16)
    w_enc, w_dec = weights()
    whole = describe_weights(w_enc, w_dec, 0, 40)
    for borders in ([0, 40], [0, 5, 33, 40], [0, 16, 17, 40]):
        parts = [describe_weights(w_enc, w_dec, a, b) for a, b in pairwise(borders)]
        for name in whole._fields:
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


def test_a_dictionary_of_one_or_two_has_fewer_neighbours():
    w_enc, w_dec = torch.ones(2, 6), torch.eye(2, 6)
    assert describe_weights(w_enc, w_dec, 0, 2).neighbours.tolist() == [[1], [0]]
    assert describe_weights(w_enc[:1], w_dec[:1], 0, 1).neighbours.shape == (1, 0)
