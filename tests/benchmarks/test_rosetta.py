"""How fast correlations of interpolated maps are accumulated beside bare products, and in which memory; run with `make bench`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.rosetta.accumulate import Products
from miclip_core.rosetta.crossing import Crossing
from miclip_core.rosetta.grids import Grid
from tests.benchmarks.measures import run_child, seconds

CASES: list[tuple[Grid, Grid, int, int, int]] = [
    ((14, 14), (14, 14), 512, 768, 32),
    ((14, 14), (28, 28), 512, 768, 32),
    ((14, 14), (28, 28), 4096, 768, 16),
    ((7, 7), (14, 14), 2048, 3072, 32),
    ((14, 14), (14, 14), 3072, 3072, 16),
]
"""Grids of two sides, their units, images of a chunk."""


def maps_of(rows_BPU: Tensor, grid: Grid) -> Tensor:
    """[B, U, h, w] as a convolution gives them."""
    return rows_BPU.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()


def upsampled_einsum(total_AB: Tensor, a_BUIJ: Tensor, b_BUIJ: Tensor) -> None:
    """The plain way: the smaller maps are interpolated and written out."""
    up = interpolate(a_BUIJ, size=b_BUIJ.shape[2:], mode="bilinear", align_corners=False)
    total_AB += torch.einsum("bihw,bjhw->ij", up, b_BUIJ)


def upsampled_moments(a_BUIJ: Tensor, b_BUIJ: Tensor) -> None:
    """What Pearson's correlation takes beside: sums and sums of squares of both, as far as they are not had already."""
    up = interpolate(a_BUIJ, size=b_BUIJ.shape[2:], mode="bilinear", align_corners=False)
    for maps in (up, b_BUIJ):
        maps.sum((0, 2, 3)), maps.square().sum((0, 2, 3))


def assert_equal(x_BPU: Tensor, y_BPU: Tensor, a: Grid, b: Grid, crossing: Crossing) -> None:
    """Both ways give the same correlations: of some units, as the plain way takes all of n x units numbers."""
    target = max(a[0], b[0]), max(a[1], b[1])
    some_x, some_y = x_BPU[..., :64].contiguous(), y_BPU[..., :64].contiguous()
    products = Products(crossing, 64, 64)
    products.add(some_x, some_y)
    up_a, up_b = (
        interpolate(maps_of(some, grid), size=target, mode="bilinear", align_corners=False).transpose(0, 1).flatten(1)
        for some, grid in ((some_x, a), (some_y, b))
    )
    expected = torch.corrcoef(torch.cat([up_a, up_b]).double())[:64, 64:]
    torch.testing.assert_close(products.correlations().double(), expected, rtol=0, atol=1e-5)


@pytest.mark.bench
@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("a, b, units_a, units_b, images", CASES)
def test_a_chunk_against_the_bare_product_and_against_upsampling(
    a: Grid, b: Grid, units_a: int, units_b: int, images: int, threads: int
) -> None:
    """Goals: 0.7 of the rate of the bare product at the same shapes; 8 times as fast as upsampling at 14x14 and 28x28.

    The second is said both ways: against the products of upsampled maps alone, and with the moments that r takes as well.
    """
    torch.set_num_threads(threads)
    x, y = torch.randn(images, a[0] * a[1], units_a), torch.randn(images, b[0] * b[1], units_b)
    crossing = Crossing(a, b, (max(a[0], b[0]), max(a[1], b[1])))
    n = images * crossing.at[0] * crossing.at[1]
    bare_a, bare_b, total = torch.randn(n, units_a), torch.randn(n, units_b), torch.zeros(units_a, units_b)
    products, maps_a, maps_b = Products(crossing, units_a, units_b), maps_of(x, a), maps_of(y, b)
    steps = {
        "bare product": lambda: total.addmm_(bare_a.T, bare_b),
        "products": lambda: products.add(x, y),
        "upsampled": lambda: upsampled_einsum(total, maps_a, maps_b),
        "moments upsampled": lambda: upsampled_moments(maps_a, maps_b),
    }
    if a == b:
        del steps["upsampled"], steps["moments upsampled"]
    assert_equal(x, y, a, b, crossing)
    taken = seconds(5, steps)
    print(f"\n{a[0]}x{a[1]} with {b[0]}x{b[1]}, {units_a} x {units_b} units, {images} images, {threads} threads: bare "
          f"product {taken['bare product'] * 1e3:.0f} ms, {2 * n * units_a * units_b / taken['bare product'] / 1e9:.0f} GFLOP/s; "
          f"products {taken['products'] * 1e3:.0f} ms, {taken['bare product'] / taken['products']:.2f} of its rate")  # fmt: skip
    if a != b:
        plain, moments = taken["upsampled"], taken["moments upsampled"]
        print(f"  upsampled, then einsum {plain * 1e3:.0f} ms, {plain / taken['products']:.1f} times as long; with the "
              f"moments that products take as well {(plain + moments) / taken['products']:.1f} times")  # fmt: skip


CHILD = """
import json, sys, torch
from tests.benchmarks.measures import peak
from tests.mined_by_tiles import MadeUp, mine
torch.set_num_threads(1)
units, images, block = map(int, sys.argv[1:])
mine(MadeUp(64, 20), 64)  # libraries are loaded
before = peak()
maps = MadeUp(units, images)
found = mine(maps, block)
right = float((maps.twins.numpy() == found.of_b.ids[:, 0]).mean())
print(json.dumps({"before": before, "taken": peak() - before, "right": right, "exact": float(found.of_a.exact.mean()),
                  "seconds": found.seconds}))
"""


@pytest.mark.bench
@pytest.mark.parametrize("units, images, block", [(30_000, 100, 10_000), (30_000, 100, 5_000)])
def test_thirty_thousand_units_against_as_many(units: int, images: int, block: int) -> None:
    """All pairs at once would take 3.6 GB for their products alone."""
    found = run_child(CHILD, units, images, block, timeout=1800)
    print(f"\n{units} x {units} units, {images} images, tiles of {block} x {block} ({4 * block**2 / 1e6:.0f} MB): peak "
          f"{found['taken'] / 1e6:.0f} MB above {found['before'] / 1e6:.0f} MB, seconds "
          f"{ {name: round(s, 1) for name, s in found['seconds'].items()} }, exact {found['exact']:.4f}")  # fmt: skip
    assert found["right"] == 1
