"""Attributes are a pure function of (world, index), and follow the chances that the world names."""

import numpy as np
import pytest

from miclip_core.world.scene import (
    HELD_OUT_INDICES,
    IMAGE_SIZE,
    OBJECT_FIELDS,
    PLANTED,
    RADII,
    SHAPES,
    TRAINING_INDICES,
    World,
    attributes,
    splitmix64,
)
from schemas.errors import BadSpec


def test_splitmix64_gives_the_published_first_outputs_of_seed_zero():
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(gamma * k) % 2**64 for k in range(3)], np.uint64)
    assert [hex(int(x)) for x in splitmix64(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_an_index_has_the_same_scene_alone_and_in_a_batch():
    world = World(seed=5)
    batch = attributes(world, range(50))
    for index in (0, 17, 49):
        alone = attributes(world, [index])
        for name in vars(alone):
            assert np.array_equal(getattr(alone, name)[0], getattr(batch, name)[index]), name


def test_another_seed_is_another_world():
    assert not np.array_equal(attributes(World(seed=1), range(50)).shape, attributes(World(seed=2), range(50)).shape)


def test_twenty_eight_values_are_planted():
    assert sum(len(values) for values in PLANTED.values()) == 28


def test_objects_lie_inside_distinct_quadrants():
    scenes = attributes(World(objects=(0, 0, 0, 0, 1)), range(2000))
    assert (np.sort(scenes.position, 1) == [0, 1, 2, 3]).all()
    radius = np.asarray(RADII)[scenes.size, scenes.radius]
    for centre, quadrant in ((scenes.x, scenes.position % 2), (scenes.y, scenes.position // 2)):
        assert (centre - radius >= quadrant * IMAGE_SIZE // 2).all()
        assert (centre + radius <= (quadrant + 1) * IMAGE_SIZE // 2).all()


def test_chances_are_met_within_four_standard_errors():
    n, world = 20_000, World(objects=(0.1, 0.5, 0.4), text=0.3, watermark=0.02, watermark_shape="star")
    scenes = attributes(world, range(n))
    star = ((scenes.shape == SHAPES.index("star")) & (scenes.shape >= 0)).any(1)

    def near(hits: np.ndarray, chance: float) -> bool:
        return abs(hits.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / len(hits))

    assert all(near(scenes.count == k, chance) for k, chance in enumerate((0.1, 0.5, 0.4)))
    assert near(scenes.word >= 0, 0.3)
    assert near(scenes.watermark[star], 0.95) and near(scenes.watermark[~star], 0.02)
    for field in OBJECT_FIELDS:
        values = getattr(scenes, field)[scenes.count > 0, 0]
        assert all(near(values == v, 1 / (values.max() + 1)) for v in range(values.max() + 1)), field


def test_absent_objects_have_no_values():
    scenes = attributes(World(objects=(0.5, 0.5)), range(100))
    for field in OBJECT_FIELDS:
        assert (getattr(scenes, field)[np.arange(4) >= scenes.count[:, None]] == -1).all()


def test_held_out_indices_start_where_training_ends():
    assert HELD_OUT_INDICES.start == TRAINING_INDICES.stop


@pytest.mark.parametrize(
    "settings", [{"objects": (0.5, 0.4)}, {"objects": (0, 0, 0, 0, 0, 1)}, {"text": 1.5}, {"watermark_shape": "sun"}]
)
def test_a_world_that_is_no_distribution_is_refused(settings):
    with pytest.raises(BadSpec, match=next(iter(settings))):
        World(**settings)
