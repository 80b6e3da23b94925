"""Masks of the demo world against a loop over pixels, and masks in pairs against dense ones."""

import numpy as np
import torch

from miclip_core.dissect.masks import Masks, TruthSegmenter, truth_masks
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import CONCEPTS, World, attributes

WORLD = World(seed=2, objects=(0.1, 0.2, 0.2, 0.2, 0.3), text=0.4, watermark=0.4)


def dense(masks: Masks) -> torch.Tensor:
    out = torch.zeros(masks.n_images, masks.n_concepts, *masks.mask.shape[1:], dtype=torch.bool)
    out[masks.image, masks.concept] = masks.mask
    return out


def test_a_pixel_carries_every_value_of_what_covers_it() -> None:
    scenes = attributes(WORLD, range(40))
    labels = render_scenes(scenes)[1]
    segmenter = TruthSegmenter(WORLD)
    found = dense(segmenter.segment(torch.zeros(40, 3, 64, 64, dtype=torch.uint8), torch.arange(40)))
    names = segmenter.concepts
    assert len(names) == found.shape[1] == sum(map(len, CONCEPTS.values()))
    rng = np.random.default_rng(0)
    seen = set()
    for b, y, x in zip(rng.integers(0, 40, 3000), rng.integers(0, 64, 3000), rng.integers(0, 64, 3000), strict=True):
        label = labels[b, y, x]
        if label == 0:
            expected = {f"background={CONCEPTS['background'][scenes.background[b]]}"}
        elif label <= 4:
            fields = ("shape", "colour", "texture", "size", "position")
            expected = {f"{field}={CONCEPTS[field][getattr(scenes, field)[b, label - 1]]}" for field in fields}
        else:
            expected = {f"word={CONCEPTS['word'][scenes.word[b]]}" if label == 8 else "watermark=watermark"}
        assert {names[c] for c in found[b, :, y, x].nonzero()[:, 0].tolist()} == expected
        seen.add(int(label))
    assert seen == {0, 1, 2, 3, 4, 8, 9}


def test_two_objects_of_one_value_make_one_mask_and_no_mask_is_empty() -> None:
    scenes = attributes(WORLD, range(60))
    labels = render_scenes(scenes)[1]
    masks = truth_masks(scenes, labels, ("size",))
    both = [b for b in range(60) if scenes.count[b] == 2 and scenes.size[b, 0] == scenes.size[b, 1]]
    assert both and len({*zip(masks.image.tolist(), masks.concept.tolist(), strict=True)}) == len(masks.image)
    for b in both:
        assert np.array_equal(masks.mask[masks.image == b].numpy(), ((labels[b] > 0) & (labels[b] < 5))[None])
    assert masks.mask.flatten(1).any(1).all() and (masks.image.diff() >= 0).all()
    empty = attributes(World(objects=(1.0,)), range(2))
    assert truth_masks(empty, render_scenes(empty)[1], ("shape",)).mask.shape == (0, 64, 64)


def test_pairs_hold_what_a_dense_array_holds() -> None:
    mask = torch.rand(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.1
    assert torch.equal(dense(Masks.from_dense(mask)), mask)


def some_masks() -> tuple[Masks, torch.Tensor]:
    """Of seven images and five concepts, in 3 x 7 pixels; the fourth image shows nothing."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(7, 5, 3, 7, generator=generator) < 0.2
    mask[3] = False
    masks = Masks.from_dense(mask)
    return masks, dense(masks)


def test_some_concepts_under_other_numbers_are_those_columns() -> None:
    masks, whole = some_masks()
    few = masks.of_concepts(torch.tensor([2, -1, 0, -1, 1]), 3)
    assert torch.equal(dense(few), whole[:, [2, 4, 0]])
    pairs = few.image * 3 + few.concept
    assert torch.equal(pairs, pairs.sort().values) and len(pairs.unique()) == len(pairs)


def test_packed_masks_are_cut_to_those_of_a_run_of_images() -> None:
    masks, whole = some_masks()
    packed = masks.pack()
    assert packed.bits.shape == (len(masks.image), 3)
    for start, stop in ((0, 7), (2, 5), (3, 4), (6, 7)):
        cut = packed.cut(start, stop)
        assert torch.equal(dense(cut), whole[start:stop]) and cut.n_images == stop - start
