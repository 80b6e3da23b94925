"""Names, phrases and files of concepts, and which images are labelled with them, against loops over the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from miclip_core.concepts.names import Concepts, make_concepts, read_concepts, value_places, world_concepts
from miclip_core.sae.features.concepts import attribute_categories, label_category
from miclip_core.sae.features.selectivity import Category
from miclip_core.world.captions import truth_matrix, value_claims
from miclip_core.world.scene import PLANTED, World, attributes
from miclip_core.world.truth import truth_rows
from schemas.errors import BadSpec


def test_names_are_stripped_and_differ_by_how_they_are_written():
    concepts = make_concepts([" crane", "Crane\t", "hair  dryer"], [" a photo of a {}. "])
    assert concepts.names == concepts.phrases == ("crane", "Crane", "hair  dryer")
    assert concepts.templates == ("a photo of a {}.",) and len(concepts) == 3


def test_a_file_has_one_name_per_line_whatever_wrote_it():
    for text in ("dog\nhair dryer\ncat", "dog\nhair dryer\ncat\n", "\ufeffdog\r\n hair dryer \r\ncat\r\n"):
        assert read_concepts(text).names == ("dog", "hair dryer", "cat")
    assert read_concepts("dog", ["a {}", "one {}"]).templates == ("a {}", "one {}")


def test_empty_names_are_refused_with_their_places_so_that_no_name_moves():
    with pytest.raises(BadSpec, match="lines 2, 4 of 5 are empty; delete them"):
        read_concepts("dog\n\ncat\n  \nbird\n")
    with pytest.raises(BadSpec, match="line 2 of 3 is empty; delete it"):
        read_concepts("dog\n\ncat")
    with pytest.raises(BadSpec, match="concept 2 of 2 is empty"):
        make_concepts(["dog", " "])
    with pytest.raises(BadSpec, match="no concept"):
        make_concepts([])
    with pytest.raises(BadSpec, match="found no concept"):
        read_concepts("")


def test_names_that_are_there_twice_are_refused_with_their_places():
    with pytest.raises(BadSpec, match=r"'missile' \(concepts 1, 3\), 'sunglasses' \(concepts 2, 5\) are there"):
        make_concepts(["missile", "sunglasses", " missile ", "tench", "sunglasses"])
    with pytest.raises(BadSpec, match=r"'dog' \(lines 1, 3\) is there more than once"):
        read_concepts("dog\ncat\ndog\n")
    many = [str(i) for i in range(30)]
    with pytest.raises(BadSpec, match=r"'9' \(concepts 10, 40\) and 20 more are there"):
        make_concepts(many + many)


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",), ("a {}", " ")])
def test_templates_have_one_place_for_the_concept(templates: tuple[str, ...]):
    with pytest.raises(BadSpec, match="exactly once"):
        make_concepts(["dog"], templates)


@pytest.mark.parametrize("phrases", [("a dog",), ("a dog", " "), ("a", "b", "c")])
def test_every_name_has_a_phrase(phrases: tuple[str, ...]):
    with pytest.raises(BadSpec, match="for each of 2 names"):
        Concepts(("dog", "cat"), phrases)


def test_concepts_of_the_demo_world_speak_as_its_captions_do():
    concepts = world_concepts()
    assert len(concepts) == 28 and concepts.names[:1] + concepts.names[-1:] == ("circle", "speckled")
    said = dict(zip(concepts.names, concepts.phrases))
    assert (
        said["red"] == "a red object" and said["orange"] == "an orange object" and said["grey"] == "a grey background"
    )
    words = world_concepts(["colour", "word"])
    assert words.names[0] == "red" and words.names[16] == "word=red" and words.phrases[16] == "the word red"
    assert world_concepts(["position"]).phrases[0] == "an object in the top left"
    with pytest.raises(BadSpec, match="found category 'watermark', expected one of shape, colour"):
        world_concepts(["watermark"])
    with pytest.raises(BadSpec, match="or several with commas; did you mean 'shape'"):
        world_concepts(["colour", "shapes"])
    with pytest.raises(BadSpec, match="more than once"):
        world_concepts(["shape", "shape"])


def shown(categories: Sequence[Category], names: Sequence[str]) -> np.ndarray:
    """Which image has a value that belongs to which name: bool [images, names], by loops."""
    out = np.zeros((len(categories[0].classes), len(names)), bool)
    for category, places in zip(categories, value_places(categories, names), strict=True):
        for image, values in enumerate(category.classes.tolist()):
            for value in values:
                if value >= 0 and places[value] >= 0:
                    out[image, places[value]] = True
    return out


def test_labels_say_which_image_shows_which_concept():
    labels = ["cat", "dog", None, " cat", "bird"]
    category = label_category(labels)
    assert category is not None
    names = ["dog", "cat", "unicorn", "label=bird"]
    expected = [[str(label).strip() == name.removeprefix("label=") for name in names] for label in labels]
    assert np.array_equal(shown([category], names), expected)


def test_attributes_of_the_demo_world_say_the_same_as_its_scenes():
    scenes = attributes(World(seed=4), range(1_000_000, 1_000_300))
    rows = [{k: v for k, v in row.items() if isinstance(v, str)} for row in truth_rows(scenes)]
    wanted = (*PLANTED, "position", "word")
    categories = [c for c in attribute_categories(rows, 100) if c.name in wanted]
    assert {c.name for c in categories} == set(wanted)
    expected = np.concatenate([truth_matrix(scenes, value_claims(category)) for category in wanted], 1)
    found = shown(categories, world_concepts(wanted).names)
    assert np.array_equal(found, expected) and found.any(0).all()


def test_a_name_of_two_categories_must_say_which():
    colour = Category("colour", ("blue", "red"), np.array([[0], [1], [-1]]))
    word = Category("word", ("red", "star"), np.array([[0], [1], [0]]))
    with pytest.raises(BadSpec, match=r"concept 'red' is a value of colour and of word; .* or name it word=red"):
        shown([colour, word], ["blue", "red"])
    both = shown([colour, word], ["red", "word=red", "star"])
    assert both.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert shown([word], ["red"]).tolist() == [[True], [False], [True]]
