"""Tokens as patches, and the best rows of buckets as the best of all."""

from __future__ import annotations

import numpy as np

from jobs.masks import find_masks
from jobs.sae_features.concepts import Rows, join_rows, keep_best, patch_entries
from miclip_core.sae.features.codes import sort_codes
from miclip_core.world.scene import CONCEPTS, HELD_OUT_INDICES, World, attributes


def test_tokens_before_the_patches_are_no_patches():
    # one feature at tokens 0 (class token), 1 and 4 of image 0 and at token 2 of image 1; patches are tokens 1 to 4
    image, token = np.array([0, 0, 0, 1]), np.array([0, 1, 4, 2])
    codes = sort_codes(np.zeros(4, int), np.array([9.0, 1.0, 2.0, 3.0]), image, token, 1)
    entries = patch_entries(codes, first_patch=1, patches=4)
    assert entries.item.tolist() == [0, 3, 5] and entries.value.tolist() == [1, 2, 3]


def candidates(seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    feature, number = (a.ravel() for a in np.meshgrid(np.arange(30), np.arange(4), indexing="ij"))
    auroc = random.integers(0, 6, 120) / 6  # many ties
    rank = np.where(random.random(120) < 0.1, 0, -1)
    level = (number >= 2).astype(np.int8)
    columns = {"feature": feature, "number": number % 2, "level": level, "auroc": auroc, "rank_in_feature": rank}
    return {name: np.asarray(column) for name, column in columns.items()}


def test_the_best_of_the_best_of_buckets_are_the_best_of_all():
    rows = candidates()
    whole = keep_best(rows, 3)
    parts = []
    for start in range(0, 30, 7):
        inside = (rows["feature"] >= start) & (rows["feature"] < start + 7)
        part = keep_best({name: column[inside] for name, column in rows.items()}, 3)
        parts.append({name: column for name, column in part.items() if name != "rank_in_concept"})
    joined = join_rows(parts)
    assert joined is not None
    again = keep_best(joined, 3)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    for level in (0, 1):
        for number in (0, 1):
            of = (rows["level"] == level) & (rows["number"] == number)
            best = sorted(zip(-rows["auroc"][of], rows["feature"][of], strict=True))[:3]
            here = (whole["level"] == level) & (whole["number"] == number) & (whole["rank_in_concept"] >= 0)
            ranked = sorted(zip(whole["rank_in_concept"][here], whole["feature"][here], strict=True))
            assert [feature for _, feature in ranked] == [feature for _, feature in best]


def test_the_world_is_known_at_grids_that_divide_it_and_other_images_are_not():
    assert find_masks("folder:/data/a.png", (8, 8)) is None and find_masks("world:seed=0,n=5#0", (7, 7)) is None
    masks = find_masks("world:seed=0,n=5#0", (2, 2))
    assert masks is not None and masks.values("shape") == CONCEPTS["shape"]
    found = masks.classes(["world:seed=0,n=5#3", "world:seed=0,n=5#1"])
    scenes = attributes(World(seed=0), HELD_OUT_INDICES.start + np.array([3, 1]))
    assert found["shape"].shape == (2, 4)
    for classes, shapes, places in zip(found["shape"], scenes.shape, scenes.position, strict=True):
        for shape, place in zip(shapes, places, strict=True):
            assert place < 0 or classes[place] == shape  # every object lies inside its quadrant
