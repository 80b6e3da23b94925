"""Table rows and patch classes against pixel-by-pixel loops."""

import numpy as np

from miclip_core.world.render import render_scenes
from miclip_core.world.scene import CONCEPTS, World, attributes
from miclip_core.world.truth import patch_classes, truth_rows

SCENES = attributes(World(seed=2, objects=(0.1, 0.2, 0.2, 0.2, 0.3), text=0.3), range(80))


def test_rows_name_what_the_arrays_number():
    for b, row in enumerate(truth_rows(SCENES)):
        assert row["objects"] == SCENES.count[b]
        assert row["label"] == (f"{row['colour']} {row['shape']}" if row["objects"] else "no object")
        for k in range(4):
            for field in ("shape", "colour", "texture", "size", "position"):
                value = row[field if k == 0 else f"{field}_{k + 1}"]
                assert value == (CONCEPTS[field][getattr(SCENES, field)[b, k]] if k < SCENES.count[b] else None)
        assert (row["word"] is None) == (SCENES.word[b] < 0)
        assert row["watermark"] == SCENES.watermark[b]


def test_patch_classes_equal_a_loop_over_pixels():
    labels = render_scenes(SCENES)[1]
    classes = patch_classes(SCENES, labels, 8)
    for b in range(0, 80, 7):
        for p in range(64):
            cut = labels[b, p // 8 * 8 : p // 8 * 8 + 8, p % 8 * 8 : p % 8 * 8 + 8].ravel().tolist()
            area = [cut.count(k) for k in (1, 2, 3, 4)]
            best = area.index(max(area))
            for field in ("shape", "colour", "texture", "size"):
                assert classes[field][b, p] == (getattr(SCENES, field)[b, best] if max(area) >= 6 else -1)
            assert classes["background"][b, p] == (SCENES.background[b] if cut.count(0) == 64 else -1)
            assert classes["word"][b, p] == (SCENES.word[b] if cut.count(8) >= 6 else -1)


def test_a_quadrant_counts_as_background_from_a_share_on():
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, :32, :32] = 8
    labels[0, :16, :16] = 0  # 256 of 1,024 pixels
    classes = patch_classes(SCENES[:1], labels, 32, background_pixels=256)
    assert (classes["background"][0] == SCENES.background[0]).all()
    assert (patch_classes(SCENES[:1], labels, 32, background_pixels=257)["background"][0] < 0).tolist() == [
        True,
        False,
        False,
        False,
    ]
