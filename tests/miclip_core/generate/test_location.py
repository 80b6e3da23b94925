"""How a set of generated images is named, and which names are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from miclip_core.generate.location import parse_generated, parse_image
from schemas.errors import BadRef
from schemas.refs import ImageSetRef, ModelRef


def test_equal_sets_have_one_name() -> None:
    written = ("demo:generator,n=5", "demo:generator,n=5,seed=0", "demo:generator,seed=0,n=5")
    found = {parse_generated(ImageSetRef.parse(f"generated:{text}")) for text in written}
    assert len(found) == 1 and str(found.pop()) == "demo:generator,seed=0,n=5"


def test_generator_seed_and_number_are_read() -> None:
    found = parse_generated(ImageSetRef.parse("generated:demo:generator,seed=7,n=1600"))
    assert found == (ModelRef.parse("demo:generator"), 7, 1600)


def test_the_uri_of_an_image_names_its_set_and_its_number() -> None:
    of = parse_generated(ImageSetRef.parse("generated:demo:generator,n=5,seed=7"))
    assert of.image_uri(4) == "generated:demo:generator,seed=7,n=5#4"
    assert parse_image(of.image_uri(4)) == (of, 4)


@pytest.mark.parametrize(
    "uri",
    [
        "generated:demo:generator,seed=7,n=5",
        "generated:demo:generator,n=5#-1",
        "generated:demo:generator,n=5#a",
        "world:seed=1,n=5#4",
    ],
)
def test_other_uris_are_no_generated_images(uri: str) -> None:
    with pytest.raises(BadRef):
        parse_image(uri)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("demo:generator", "found seed=0, n=0"),
        ("demo:generator,n=0", "n between 1 and 1000000"),
        ("demo:generator,n=1000001", "n between 1 and 1000000"),
        ("demo:generator,n=5,seed=4294967296", "a seed below 4294967296"),
        ("demo:generator,n=-5", "found 'n=-5', expected seed=NUMBER"),
        ("demo:generator,n=5,n=6", "found 'n=6', expected seed=NUMBER and n=NUMBER, each at most once"),
        ("demo:generator,n=5,text=0.5", "found 'text=0.5'"),
        ("demo:generator,n=x", "found 'n=x'"),
        ("demo:clip-p8,n=5", "demo:clip-p8 draws no images"),
        ("demo:nothing,n=5", "no such demo model"),
        ("n=5,seed=0", "model 'n=5': expected source:name"),
        ("biggan:x,n=5", "source 'biggan' is not one of"),
        ("hf:a/b,n=5", "found among the models that ship"),
    ],
)
def test_a_set_that_cannot_be_is_refused(location: str, words: str) -> None:
    with pytest.raises(BadRef, match="for example generated:demo:generator,seed=0,n=1600") as refused:
        parse_generated(ImageSetRef.parse(f"generated:{location}"))
    assert words in str(refused.value)


def test_naming_and_listing_a_set_load_no_torch() -> None:
    code = (
        "import sys\nfrom cluster.files import Files\nfrom jobs.index_images.sources import list_source\n"
        "from schemas.refs import ImageSetRef\n"
        "print(len(list_source(ImageSetRef.parse('generated:demo:generator,n=600'), Files())), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["3", "False"]
