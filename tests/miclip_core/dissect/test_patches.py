"""Top patches against sorting everything, and boxes against arithmetic by hand."""

import pytest
import torch
from torch import Tensor

from miclip_core.dissect.patches import TopPatches, crop, patch_box
from miclip_core.sae.codes import Codes
from schemas.errors import NonFiniteActivation


def activations(images: int = 23, patches: int = 6, units: int = 5) -> Tensor:
    """Whole numbers, so that there are many ties; unit 3 is below zero everywhere, unit 4 dead."""
    a = torch.randint(0, 7, (images, patches, units), generator=torch.Generator().manual_seed(0)).float()
    a[:, :, 3] -= 10
    a[:, :, 4] = 0
    return a


def by_sorting(a_BPU: Tensor, unit: int, k: int) -> list[tuple[float, int, int]]:
    best = []
    for image, a_PU in enumerate(a_BPU.tolist()):
        column = [row[unit] for row in a_PU]
        if max(column) != 0:
            best.append((-max(column), image, column.index(max(column))))
    return [(-value, image, position) for value, image, position in sorted(best)[:k]]


def listed(top: TopPatches, unit: int) -> list[tuple[float, int, int]]:
    rows = zip(top.value_UK[unit].tolist(), top.image_UK[unit].tolist(), top.position_UK[unit].tolist(), strict=True)
    return [row for row in rows if row[1] >= 0]


def test_the_highest_patch_of_the_highest_images_by_sorting() -> None:
    a_BPU = activations()
    top = TopPatches(5, 4)
    top.add(torch.arange(23), a_BPU)
    for unit in range(5):
        assert listed(top, unit) == by_sorting(a_BPU, unit, 4)
    assert len(listed(top, 3)) == 4 and listed(top, 4) == []
    assert top.value_UK[4].isnan().all() and (top.position_UK[4] == -1).all()


def test_shards_in_any_order_and_codes_give_the_same_lists() -> None:
    a_BPU = activations().relu()
    whole, merged, sparse = TopPatches(5, 4), TopPatches(5, 4), TopPatches(5, 4)
    whole.add(torch.arange(23), a_BPU)
    for rows in torch.randperm(23, generator=torch.Generator().manual_seed(1)).split(5):
        part = TopPatches(5, 4)
        part.add(rows, a_BPU[rows])
        merged.merge(part)
        sparse.add(rows, Codes.from_dense(a_BPU[rows].flatten(0, 1)))
    for other in (merged, sparse):
        assert all(listed(other, unit) == listed(whole, unit) for unit in range(5))


def test_what_one_list_holds_can_be_taken_in_by_another_of_some_units() -> None:
    a_BPU = activations()
    whole, part, few = TopPatches(5, 4), TopPatches(5, 4), TopPatches(2, 4)
    whole.add(torch.arange(23), a_BPU)
    part.add(torch.arange(10), a_BPU[:10])
    few.add(torch.arange(10, 23), a_BPU[10:, :, 1:3])
    few.add_state(*(held[1:3] for held in part.state()))
    assert [listed(few, unit) for unit in range(2)] == [listed(whole, unit) for unit in (1, 2)]
    with pytest.raises(ValueError, match="5 units, expected 2"):
        few.add_state(*part.state())


def test_fewer_images_than_places_leave_places_empty() -> None:
    top = TopPatches(1, 3)
    top.add(torch.tensor([2**31 - 1]), torch.tensor([[[1.0], [5.0]]]))
    top.add(torch.tensor([], dtype=torch.int64), torch.zeros(0, 2, 1))
    assert top.image_UK.tolist() == [[2**31 - 1, -1, -1]] and top.position_UK.tolist() == [[1, -1, -1]]


def test_every_patch_is_listed_once_and_units_say_where() -> None:
    top = TopPatches(5, 4)
    top.add(torch.arange(23), activations())
    patches = top.distinct()
    pairs = list(zip(patches.image.tolist(), patches.position.tolist(), strict=True))
    assert pairs == sorted(set(pairs)) and len(pairs) < 16
    for unit in range(5):
        found = [pairs[place] for place in patches.place[unit].tolist() if place >= 0]
        assert found == [row[1:] for row in listed(top, unit)]
    assert (TopPatches(2, 3).distinct().place == -1).all()


def test_a_box_is_the_patch_and_its_surroundings_inside_the_image() -> None:
    assert patch_box(0, (14, 14), (224, 224)) == (0, 0, 16, 16)
    assert patch_box(15, (14, 14), (224, 224)) == (16, 16, 32, 32)
    assert patch_box(15, (14, 14), (224, 224), context=3) == (0, 0, 48, 48)
    assert patch_box(0, (14, 14), (224, 224), context=3) == (0, 0, 48, 48)  # moved, not cut
    assert patch_box(195, (14, 14), (224, 224), context=3) == (176, 176, 224, 224)
    assert patch_box(5, (2, 4), (32, 80)) == (20, 16, 40, 32)
    assert patch_box(3, (2, 2), (10, 10), context=9) == (0, 0, 10, 10)
    assert patch_box(4, (3, 3), (10, 10)) == (3, 3, 7, 7)  # 3.33 to 6.67
    assert patch_box(0, (1, 1), (7, 5)) == (0, 0, 5, 7)
    for position, context in ((4, 1.0), (-1, 1.0), (0, 0.5), (0, float("nan"))):
        with pytest.raises(ValueError):
            patch_box(position, (2, 2), (8, 8), context)


def test_boxes_without_context_tile_the_image() -> None:
    covered = torch.zeros(24, 40)
    for position in range(15):
        left, top, right, bottom = patch_box(position, (3, 5), (24, 40))
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_a_crop_has_the_pixels_of_its_box() -> None:
    pixels = torch.arange(3 * 6 * 5, dtype=torch.uint8).view(3, 6, 5)
    picture = crop(pixels, (1, 2, 4, 6))
    assert picture.mode == "RGB" and picture.size == (3, 4)
    assert picture.getpixel((2, 0)) == tuple(pixels[:, 2, 3].tolist())


def test_what_is_no_patch_activation_is_refused() -> None:
    top = TopPatches(2, 1)
    with pytest.raises(NonFiniteActivation):
        top.add(torch.tensor([0]), torch.full((1, 3, 2), torch.nan))
    for rows in (torch.zeros(1, 3, 4), torch.zeros(2, 3, 2), Codes.from_dense(torch.zeros(3, 4))):
        with pytest.raises(ValueError, match="units"):
            top.add(torch.tensor([0]), rows)
    with pytest.raises(ValueError, match="k=0"):
        TopPatches(2, 0)
