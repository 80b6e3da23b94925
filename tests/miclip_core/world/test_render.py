"""Pixels are a pure function of (world, index), and the label map says what they show."""

import hashlib

import numpy as np
import pytest

from miclip_core.world import atlas
from miclip_core.world.render import normalise, render, render_scenes
from miclip_core.world.scene import COLOURS, JITTER, POSITIONS, TEXTURES, World, attributes

PINNED = {
    0: "36e8fc5ce74af2a8c7b1d2293631ec8262fb53577c266fc467e664ed8aa186b3",
    1: "8d27213332a12494e29690d0f7f7b3431a286ffda82b8100be915107bdc38343",
    1_000_003: "cd2928f5ef5acc88d059d1192d7fc770c5b3cb4b108e2452fe0bb332e5900cce",
}


def test_thirty_seven_shuffled_shards_are_byte_identical_to_one_pass():
    world, order = World(seed=3), np.random.default_rng(0).permutation(1000)
    images, labels = render_scenes(attributes(world, range(1000)))
    for shard in np.array_split(order, 37):
        shard_images, shard_labels = render_scenes(attributes(world, shard))
        assert shard_images.tobytes() == images[shard].tobytes() and shard_labels.tobytes() == labels[shard].tobytes()


@pytest.mark.parametrize("index", PINNED)
def test_images_of_seed_zero_never_change(index):
    image, labels = render(World(), index)
    assert hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest() == PINNED[index]


def test_the_shipped_masks_are_what_the_code_rasterises():
    # Another processor's cos may round a sub-pixel the other way; one of 64 sub-pixels is 4 levels.
    assert np.abs(atlas.build().astype(int) - atlas.load()).max() <= 8


def test_masks_of_another_hash_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "atlas.npz", atlas=np.zeros(3, np.uint8))
    monkeypatch.setattr(atlas, "PATH", tmp_path / "atlas.npz")
    with pytest.raises(ValueError, match="reinstall"):
        atlas.load.__wrapped__()


def test_pixels_labelled_as_a_solid_object_have_its_colour():
    scenes = attributes(World(objects=(0, 0, 0, 0, 1), text=0, watermark=0), range(60))
    images, labels = render_scenes(scenes)
    checked = 0
    for b in range(60):
        for k in range(4):
            if scenes.texture[b, k] != TEXTURES.index("solid"):
                continue
            shown = images[b][_interior(labels[b] == k + 1)].astype(int)
            colour = np.asarray(list(COLOURS.values()))[scenes.colour[b, k]]
            assert len(shown) and (np.abs(shown - np.clip(colour, 0, 255)) <= JITTER).all()
            checked += 1
    assert checked > 30


def _interior(mask: np.ndarray) -> np.ndarray:
    """Pixels whose eight neighbours are also in the mask (clear of the blended edge)."""
    inner = mask.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inner &= np.roll(mask, (dy, dx), (0, 1))
    return inner


def test_an_object_lies_in_the_quadrant_that_its_position_names():
    scenes = attributes(World(objects=(0, 1), text=0, watermark=0), range(80))
    labels = render_scenes(scenes)[1]
    for b in range(80):
        rows, columns = np.nonzero(labels[b] == 1)
        vertical, horizontal = POSITIONS[scenes.position[b, 0]].split()
        assert (rows < 32).all() if vertical == "top" else (rows >= 32).all()
        assert (columns < 32).all() if horizontal == "left" else (columns >= 32).all()


def test_a_dark_texture_part_is_39_percent_of_the_light_part():
    scenes = attributes(World(objects=(0, 1), text=0, watermark=0), range(200))
    images, labels = render_scenes(scenes)
    for b in range(200):
        shown = images[b][_interior(labels[b] == 1)].astype(int)
        colours = np.unique(shown, axis=0)
        if scenes.texture[b, 0] == TEXTURES.index("solid") or len(colours) < 2:
            continue
        assert len(colours) == 2 and np.array_equal(colours.min(0), colours.max(0) * 39 // 100)


def test_removing_text_mark_and_objects_changes_exactly_the_labelled_pixels():
    scenes = attributes(World(objects=(0, 0, 1), text=1, watermark=1), range(40))
    images, labels = render_scenes(scenes)
    empty = attributes(World(objects=(1,), text=0, watermark=0), range(40))
    background = render_scenes(empty)[0]
    assert {0, 1, 2, 8, 9} <= set(np.unique(labels))
    changed = (images != background).any(-1)
    assert changed[(labels >= 8)].mean() > 0.9  # a plate on a white background differs a little everywhere
    edge = changed & (labels == 0)  # less than half covered: blended, yet background by its label
    assert edge.sum() < 0.25 * (labels > 0).sum()


def test_the_mark_is_the_same_25_magenta_pixels_everywhere():
    images, labels = render_scenes(attributes(World(watermark=1), range(20)))
    assert ((labels == 9).sum((1, 2)) == 25).all() and (images[labels == 9] == (255, 0, 255)).all()
    assert (labels[:, 58:63, 58:63] == 9).all()


def test_normalised_pixels_are_what_the_usual_formula_gives():
    image, _ = render(World(), 0)
    got = normalise(image[None], 0.45, 0.27)
    assert got.shape == (1, 3, 64, 64) and got.dtype == np.float32
    assert got[0, 2, 10, 20] == pytest.approx((image[10, 20, 2] / 255 - 0.45) / 0.27, abs=1e-6)
