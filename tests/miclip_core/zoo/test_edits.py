"""Edits of one tensor, against arithmetic written by hand; the input tensor is never written to."""

from __future__ import annotations

import torch

from miclip_core.zoo.edits import Edit, apply_edits
from schemas.models import SiteFacts
from schemas.refs import Site

FACTS = SiteFacts(
    path="resid_post.0",
    layout="tokens",
    shape=(4,),
    positions=5,
    prefix=1,
    grid=(2, 2),
    selectors=("all", "patch", "map", "cls"),
)
MAP = SiteFacts(path="stem", layout="map", shape=(3,), positions=4, grid=(2, 2), selectors=("map",))
X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def edited(op: str, value, tokens: str | None = None, **more) -> torch.Tensor:
    before = X.clone()
    out = apply_edits(FACTS, X, [Edit(Site(path="resid_post.0", tokens=tokens), op, value, **more)])  # type: ignore[arg-type]
    assert torch.equal(X, before)
    return out


def test_selectors_and_channels_limit_what_changes() -> None:
    out = edited("set", 7.0, "patch", channels=[1, 3], positions=[0, 2])
    expected = X.clone()
    expected[:, [1, 3]] = torch.where(torch.tensor([False, True, False, True]), 7.0, expected[:, [1, 3]])
    assert torch.equal(out, expected)


def test_add_and_scale() -> None:
    assert torch.allclose(edited("add", torch.arange(4.0), "cls")[:, 0], X[:, 0] + torch.arange(4.0))
    assert torch.equal(edited("scale", 0.5, "patch")[:, 1:], X[:, 1:] * 0.5)
    assert torch.equal(edited("scale", 0.5, "patch")[:, 0], X[:, 0])


def test_a_value_per_image() -> None:
    out = edited("set", torch.tensor([1.0, 2.0]).reshape(2, 1, 1), "cls")
    assert out[:, 0].tolist() == [[1.0] * 4, [2.0] * 4]


def test_a_mean_edit_takes_its_table_per_position() -> None:
    table = torch.randn(5, 4)
    assert torch.equal(edited("mean", table), table.expand(2, 5, 4))


def test_projection_keeps_what_lies_in_the_subspace() -> None:
    base = torch.randn(4)
    R = torch.linalg.qr(torch.randn(4, 2))[0]
    out = edited("project", R, base=base)
    assert torch.allclose(out, base + (X - base) @ R @ R.T, atol=1e-6)
    again = apply_edits(FACTS, out, [Edit(Site(path="resid_post.0"), "project", R, base=base)])
    assert torch.allclose(again, out, atol=1e-6)


def test_a_function_sees_the_selected_part() -> None:
    assert torch.equal(edited("fn", lambda part: part.flip(1), "patch")[:, 1:], X[:, 1:].flip(1))


def test_maps_are_edited_by_channel_and_position() -> None:
    x = torch.randn(2, 3, 2, 2)
    out = apply_edits(MAP, x, [Edit(Site(path="stem", tokens="map"), "set", 0.0, channels=[2], positions=[3])])
    expected = x.clone()
    expected[:, 2, 1, 1] = 0
    assert torch.equal(out, expected)
    assert torch.equal(apply_edits(MAP, x, [Edit(Site(path="stem"), "set", x)]), x)


def test_edits_are_differentiable_in_value_and_tensor() -> None:
    value = torch.zeros(4, requires_grad=True)
    x = X.clone().requires_grad_(True)
    apply_edits(
        FACTS, x, [Edit(Site(path="resid_post.0", tokens="patch"), "add", value, channels=[0, 1, 2, 3])]
    ).sum().backward()
    assert value.grad is not None and value.grad.tolist() == [8.0] * 4  # 2 images x 4 patches
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(X))
