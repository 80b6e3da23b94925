"""The loss against cross entropies over full matrices, its gradients against finite differences, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.align.losses import AlignLoss, alignment_loss
from tests.miclip_core.align.runs import textbook_loss

SCALES = (1.0, 1 / 0.07, 100.0)
WEIGHTS = ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.0))


def batch(
    b: int = 24, classes: int = 7, e: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """n of any length, unit class texts, labels of which many are alike, unit images."""
    draw = torch.Generator().manual_seed(seed)
    n, c, x = (torch.randn(rows, e, generator=draw).to(dtype) for rows in (b, classes, b))
    return n, normalize(c, dim=1), torch.randint(classes, (b,), generator=draw), normalize(x, dim=1)


def rotation(e: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(torch.randn(e, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def both(loss: AlignLoss) -> tuple[float, float]:
    assert loss.loss_out is not None and loss.loss_in is not None
    return float(loss.loss_out), float(loss.loss_in)


@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("scale", SCALES)
def test_losses_and_gradients_are_those_of_cross_entropy_over_full_matrices(
    scale: float, weights: tuple[float, float], multi_positive: bool
) -> None:
    """Scale 100 takes the path with maxima, the others the one without; many rows share a class."""
    n, c, yhat, x = batch()
    found = alignment_loss(n, c, yhat, x, scale, *weights, multi_positive)
    n.requires_grad_()
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    out, in_ = textbook_loss(n, c, yhat, x, s, multi_positive)
    total = weights[0] * out + weights[1] * in_
    total.backward()
    torch.testing.assert_close(found.loss, total.detach())
    torch.testing.assert_close(found.to_n_BE, n.grad)
    torch.testing.assert_close(found.to_scale, s.grad)
    assert (found.loss_out is None) == (weights[0] == 0)
    assert (found.loss_in is None) == (weights[1] == 0)


@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_are_finite_differences(scale: float, multi_positive: bool) -> None:
    n, c, yhat, x = batch(b=9, classes=4)
    found = alignment_loss(n, c, yhat, x, scale, 0.7, 1.3, multi_positive)

    def at(n: Tensor, scale: float) -> float:
        return float(alignment_loss(n, c, yhat, x, scale, 0.7, 1.3, multi_positive).loss)

    step = 1e-6
    for row, column in [(0, 0), (3, 5), (8, 2), (5, 1)]:
        moved = [n.clone(), n.clone()]
        for sign, m in zip((1, -1), moved):
            m[row, column] += sign * step
        assert float(found.to_n_BE[row, column]) == pytest.approx(
            (at(moved[0], scale) - at(moved[1], scale)) / (2 * step), abs=1e-6
        )
    slope = (at(n, scale + step) - at(n, scale - step)) / (2 * step)
    assert float(found.to_scale) == pytest.approx(slope, abs=1e-7)


def test_float32_is_float64_to_its_last_digits_at_every_scale() -> None:
    for scale in (1.0, 35.0, 60.0, 100.0):
        exact = alignment_loss(*batch(b=200, classes=30, e=16), scale)
        found = alignment_loss(*batch(b=200, classes=30, e=16, dtype=torch.float32), scale)
        assert float(found.loss) == pytest.approx(float(exact.loss), rel=2e-6)
        assert float((found.to_n_BE - exact.to_n_BE).norm() / exact.to_n_BE.norm()) < 2e-5


def test_both_ways_to_take_exponentials_agree_where_they_meet() -> None:
    """n along the first axis and a key against it make the largest logit exactly the scale: 40 is plain, 40.1 is not."""
    n, c, yhat, x = batch()
    n[0], x[1] = torch.eye(6, dtype=torch.float64)[0], -torch.eye(6, dtype=torch.float64)[0]
    below, above = (alignment_loss(n, c, yhat, x, scale) for scale in (40 - 1e-9, 40 + 1e-9))
    torch.testing.assert_close(below.loss, above.loss)
    torch.testing.assert_close(below.to_n_BE, above.to_n_BE)


def test_cosines_of_1_and_minus_1_overflow_at_no_scale() -> None:
    """exp(89) is beyond float32, and so is its inverse."""
    n, c, yhat, x = batch()
    n, x = torch.cat((x, -x)), torch.cat((x, x))
    yhat = torch.cat((yhat, yhat))
    for scale in (39.0, 41.0, 60.0, 89.0, 100.0):
        exact = alignment_loss(n, c, yhat, x, scale)
        found = alignment_loss(n.float(), c.float(), yhat, x.float(), scale)
        assert float(found.loss) == pytest.approx(float(exact.loss), rel=1e-5)
        assert float((found.to_n_BE - exact.to_n_BE).norm() / exact.to_n_BE.norm()) < 1e-4


# ---------------------------------------------------------------- invariants


@pytest.mark.parametrize("scale", SCALES)
def test_the_order_of_the_batch_changes_nothing(scale: float) -> None:
    n, c, yhat, x = batch()
    order = torch.randperm(len(n), generator=torch.Generator().manual_seed(1))
    one, other = alignment_loss(n, c, yhat, x, scale), alignment_loss(n[order], c, yhat[order], x[order], scale)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.to_n_BE[order], other.to_n_BE)


@pytest.mark.parametrize("scale", SCALES)
def test_the_numbering_of_classes_changes_nothing(scale: float) -> None:
    n, c, yhat, x = batch()
    order = torch.randperm(len(c), generator=torch.Generator().manual_seed(1))
    one, other = alignment_loss(n, c, yhat, x, scale), alignment_loss(n, c[order], order.argsort()[yhat], x, scale)
    torch.testing.assert_close(one.loss, other.loss)


def test_equal_cosines_give_log_b_per_target() -> None:
    yhat = batch(b=24)[2]
    along = torch.eye(6, dtype=torch.float64)[0]
    found = alignment_loss(3 * along.expand(24, 6), along.expand(7, 6), yhat, along.expand(24, 6), 1.0)
    assert both(found) == pytest.approx((math.log(24), math.log(24)))
    assert float(found.loss) == pytest.approx(2 * math.log(24))


@pytest.mark.parametrize("scale", SCALES)
def test_rows_and_columns_can_swap_roles(scale: float) -> None:
    """Which the printed Algorithm 1 cannot: its rows of L_out have the denominator of S^x."""
    n, _, _, x = batch()
    n, c, labels = normalize(n, dim=1), normalize(batch(seed=9)[0], dim=1), torch.arange(len(n))
    one = both(alignment_loss(n, c, labels, x, scale))
    swapped_out = both(alignment_loss(c, n, labels, x, scale))[0]
    swapped_in = both(alignment_loss(x, c, labels, n, scale))[1]
    assert one == pytest.approx((swapped_out, swapped_in))

    def printed(u: Tensor, keys: Tensor) -> float:
        s_c, s_x = scale * u @ keys.T, scale * u @ x.T
        return float((s_x.logsumexp(1) + s_c.logsumexp(0) - 2 * s_c.diagonal()).mean() / 2)

    assert abs(printed(n, c) - printed(c, n)) > 1e-3


def test_one_image_has_nothing_to_be_told_from() -> None:
    for scale in SCALES:
        found = alignment_loss(*batch(b=1), scale)
        assert float(found.loss) == pytest.approx(0, abs=1e-12)
        assert float(found.to_n_BE.abs().max()) < 1e-12


def test_perfect_alignment_at_a_large_scale_costs_nothing() -> None:
    axes = torch.eye(6, dtype=torch.float64)
    assert float(alignment_loss(axes, axes, torch.arange(6), axes, 100.0).loss) == pytest.approx(0, abs=1e-12)
    assert float(alignment_loss(axes, axes, torch.arange(6), axes, 1.0).loss) == pytest.approx(
        2 * (math.log(math.e + 5) - 1)
    )


def test_the_length_of_n_does_not_matter_and_its_gradient_is_tangent() -> None:
    n, c, yhat, x = batch()
    one, other = alignment_loss(n, c, yhat, x, 5.0), alignment_loss(4 * n, c, yhat, x, 5.0)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.to_n_BE, 4 * other.to_n_BE)
    assert float((one.to_n_BE * n).sum(1).abs().max()) < 1e-15


def test_a_common_rotation_of_the_joint_space_changes_nothing() -> None:
    n, c, yhat, x = batch()
    R = rotation(6)
    one, other = alignment_loss(n, c, yhat, x, 5.0), alignment_loss(n @ R, c @ R, yhat, x @ R, 5.0)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.to_n_BE @ R, other.to_n_BE)


def test_a_row_without_length_gets_no_gradient_and_spoils_no_other() -> None:
    n, c, yhat, x = batch()
    n[4] = 0
    found = alignment_loss(n, c, yhat, x, 5.0)
    assert math.isfinite(float(found.loss))
    assert bool((found.to_n_BE[4] == 0).all())
    assert bool((found.to_n_BE[5] != 0).any())


def test_sharing_positives_changes_what_images_are_pulled_to_and_never_l_out() -> None:
    n, c, yhat, x = batch()
    alone, shared = (
        both(alignment_loss(n, c, yhat, x, 5.0)),
        both(alignment_loss(n, c, yhat, x, 5.0, multi_positive=True)),
    )
    assert alone[0] == pytest.approx(shared[0])
    assert alone[1] != pytest.approx(shared[1], rel=1e-3)


def test_retrieval_counts_rows_that_find_their_class_and_their_image() -> None:
    """Rows 0 and 1 find both; row 2 is at the image and class of row 3; row 3 is at image 0, which has its class."""
    axes = torch.eye(6, dtype=torch.float64)
    yhat, x, c = torch.tensor([0, 1, 2, 0]), axes[:4], torch.stack((axes[0] + axes[3], axes[1], axes[2])) / 2**0.5
    n = axes[[0, 1, 3, 0]]
    found = alignment_loss(n, c, yhat, x, 5.0)
    assert float(found.retrieval_out or 0) == 0.75
    assert float(found.retrieval_in or 0) == 0.5
    assert float(alignment_loss(n, c, yhat, x, 5.0, multi_positive=True).retrieval_in or 0) == 0.75
