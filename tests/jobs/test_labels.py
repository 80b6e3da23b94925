"""Classes of images, from the labels file of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.labels import read_classes
from schemas.errors import BadLabels
from tests.indexing import Indexed, index
from tests.pictures import fill_folder, jpeg

LABELS = "file,label,texture\na.jpg,cat,dots\nb.jpg, dog ,\nc.jpg,,stripes\nd.jpg,cow,dots\n"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    root = fill_folder(tmp_path_factory.mktemp("images"), {f"{name}.jpg": jpeg(i) for i, name in enumerate("abcd")})
    labels = root.parent / f"{root.name}-labels.csv"
    labels.write_text(LABELS)
    return index(tmp_path_factory.mktemp("store"), f"folder:{root}", labels=f"file:{labels}")


def read(images: Indexed, names: list[str], column: str = "label", **more: bool) -> dict[str, int]:
    found = read_classes(images.inputs, images.plan.digest, names, column, [(0, 10)], **more)
    name = {row["image_index"]: Path(row["uri"]).stem for row in images.rows()}
    return {name[row]: of for row, of in found.items()}


def test_a_label_or_an_attribute_names_the_class_whatever_white_space_is_around_it(labelled: Indexed) -> None:
    assert read(labelled, [" dog", "cat"]) == {"a": 1, "b": 0}
    assert read(labelled, ["stripes", "dots"], "texture") == {"a": 1, "c": 0, "d": 1}
    assert read_classes(labelled.inputs, labelled.plan.digest, ["cat"], "label", [(1, 4)], required=False) == {}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("label", "its label is 'cat'"),
        ("texture", "its texture is 'dots'"),
        ("shape", r"its shape is not known; .* \(there are label, texture\)"),
    ],
)
def test_labels_that_match_nothing_are_an_error_that_shows_some(labelled: Indexed, column: str, said: str) -> None:
    with pytest.raises(BadLabels, match=f"classes zebra: no image that is looked at is of any; .*{said}"):
        read(labelled, ["zebra"], column)
    assert read(labelled, ["zebra"], column, required=False) == {}
