"""Which columns of labels hold the concepts of a stage, and refs of image sets as planning knows them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobs.activations import images_ref
from jobs.concepts import concept_columns
from jobs.protocol import ImageFacts, Known
from schemas.cells import Images

WORLD, FOLDER = "world:seed=0,n=8", "folder:/data/images"


@pytest.mark.parametrize(
    ("concepts", "images", "columns"),
    [
        ("world", FOLDER, ("shape", "colour", "texture", "size", "background")),
        ("world:word,shape", None, ("word", "shape")),  # as the ref has them
        (["red", "circle"], WORLD, ("shape", "colour")),  # and not word, which has both
        (["red", "word=red"], WORLD, ("colour", "word")),
        (["zebra"], WORLD, ()),
        ("classes", WORLD, ("shape",)),
        (["red", "circle"], FOLDER, ()),
        ("classes", None, ()),
    ],
)
def test_columns_are_known_of_the_demo_world_by_its_concepts_or_by_its_images(
    concepts: str | list[str], images: str | None, columns: tuple[str, ...]
) -> None:
    names: Sequence[str] = ["star"] if isinstance(concepts, str) else concepts
    assert concept_columns(concepts, names, images) == columns


def test_an_index_is_of_the_image_set_that_planning_knows_it_by() -> None:
    sets = {Images(ref=ref).key: ImageFacts(f"stage of {ref}", "content", 8, 8) for ref in (FOLDER, WORLD)}
    assert images_ref(Known({}, sets), f"stage of {WORLD}") == WORLD
    assert images_ref(Known({}, sets), "another") is None
