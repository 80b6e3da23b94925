"""How a ref names a set of generated images, `demo:generator,seed=0,n=1600`, and a uri one of them; loads no torch."""

from __future__ import annotations

import re
from typing import NamedTuple

from miclip_core.generate.files import find_generator
from miclip_core.generate.seeds import MOST_SEEDS
from schemas.errors import BadRef, NoGenerator, UnknownModel
from schemas.refs import ImageSetRef, ModelRef

MOST_IMAGES = 1_000_000


class GeneratedSet(NamedTuple):
    """Images 0 to n - 1 of a generator's set `seed`."""

    model: ModelRef
    seed: int
    n: int

    def __str__(self) -> str:
        return f"{self.model},seed={self.seed},n={self.n}"

    def image_uri(self, number: int) -> str:
        """The uri of one of its images: the ref of the set, and the number."""
        return f"{ImageSetRef(source='generated', location=str(self))}#{number}"


def parse_generated(ref: ImageSetRef) -> GeneratedSet:
    """The generator, the seed and the number of images that `demo:generator,seed=0,n=1600` names; the seed is 0 if left out.

    Raises:
        BadRef: an unknown field, a value out of range, or no generator of that name.
    """
    name, *items = ref.location.split(",")
    values: dict[str, int] = {}
    try:
        model = ModelRef.parse(name)
        find_generator(model)
        for item in items:
            key, _, text = item.partition("=")
            if key not in ("seed", "n") or key in values or not re.fullmatch(r"[0-9]{1,12}", text):
                raise ValueError(f"found {item!r}, expected seed=NUMBER and n=NUMBER, each at most once")
            values[key] = int(text)
        seed, n = values.get("seed", 0), values.get("n", 0)
        if not 1 <= n <= MOST_IMAGES or seed >= MOST_SEEDS:
            raise ValueError(
                f"found seed={seed}, n={n}; expected n between 1 and {MOST_IMAGES} and a seed below {MOST_SEEDS}"
            )
    except (ValueError, BadRef, UnknownModel, NoGenerator) as error:
        raise BadRef(f"images {ref}: {error}; for example generated:demo:generator,seed=0,n=1600") from None
    return GeneratedSet(model, seed, n)


def parse_image(uri: str) -> tuple[GeneratedSet, int]:
    """The set that an image is of, and its number there: the inverse of `GeneratedSet.image_uri`.

    Raises:
        BadRef: it is no uri of a generated image.
    """
    text, _, number = uri.rpartition("#")
    ref = ImageSetRef.parse(text)
    if ref.source != "generated" or not re.fullmatch(r"[0-9]{1,12}", number):
        raise BadRef(
            f"{uri}: no generated image; expected a set and a number, as in generated:demo:generator,seed=0,n=5#4"
        )
    return parse_generated(ref), int(number)
