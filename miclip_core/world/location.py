"""How a ref names a distribution of the demo world and a number of its images: `seed=0,n=2000`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from miclip_core.world.scene import HELD_OUT_INDICES, World
from schemas.errors import BadRef, BadSpec
from schemas.refs import ImageSetRef


def parse_location(ref: ImageSetRef) -> tuple[World, int]:
    """The distribution and the number of images that `seed=0,n=2000` names; other fields of World may be given.

    Raises:
        BadRef: an unknown field, or a value out of range.
    """
    known: dict[str, Any] = {"seed": int, "n": int, "text": float, "watermark": float}
    known |= {"watermark_shape": str, "watermark_given_shape": float}
    values: dict[str, Any] = {}
    try:
        for item in ref.location.split(","):
            key, _, text = item.partition("=")
            if key in values or key not in known:
                raise ValueError(f"found {item!r}, expected each of {', '.join(known)} at most once, as key=value")
            values[key] = known[key](text)
        n = values.pop("n", 0)
        if not 1 <= n <= len(HELD_OUT_INDICES):
            raise ValueError(f"found n={n}, expected n between 1 and {len(HELD_OUT_INDICES)}")
        return World(**values), n
    except (ValueError, BadSpec) as error:
        raise BadRef(f"images {ref}: {error}; for example world:seed=0,n=2000") from None


def canonical_location(ref: ImageSetRef) -> str:
    """`seed=0,n=2000` and then what differs from the default, so that equal worlds have one name. Raises BadRef."""
    world, n = parse_location(ref)
    changed = [(f.name, getattr(world, f.name)) for f in fields(World) if getattr(world, f.name) != f.default]
    return ",".join([f"seed={world.seed}", f"n={n}", *(f"{k}={v}" for k, v in changed if k != "seed")])
