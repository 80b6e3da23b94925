"""Which concepts a stage names units by, decided at planning; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from miclip_core.concepts.names import PLAIN, Concepts, make_concepts, read_concepts, world_concepts, world_values
from miclip_core.concepts.words import common_words
from miclip_core.world.scene import PLANTED
from schemas.errors import BadSpec, MissingPackage
from schemas.refs import ConceptsRef, ImageSetRef


def get_concepts(
    concepts: str | Sequence[str], texts: Mapping[str, str], classes: Callable[[], Sequence[str]]
) -> Concepts:
    """The concepts that a spec asks for, by a ref or as a list of names.

    texts: location -> content of the files that specs name. classes: the names that the model predicts.

    Raises:
        BadSpec: empty names or such that are there twice, with the names; what `classes` raises.
        MissingPackage: common words are asked for and wordfreq is not installed.
    """
    if not isinstance(concepts, str):
        return make_concepts(concepts)
    ref = ConceptsRef.parse(concepts)
    try:
        match ref.source:
            case "classes":
                return make_concepts(classes())
            case "world":
                return world_concepts(ref.location.split(",")) if ref.location else world_concepts()
            case "words":
                return make_concepts(common_words(int(ref.location)), PLAIN)
            case _:
                return read_concepts(texts[concepts])
    except (BadSpec, MissingPackage) as error:
        raise type(error)(f"concepts {ref}: {error}") from None


def concept_files(concepts: str | Sequence[str]) -> tuple[str, ...]:
    """The locations that planning must read first: the ref of a file, or none."""
    if not isinstance(concepts, str) or ConceptsRef.parse(concepts).source not in ("file", "s3"):
        return ()
    return (concepts,)


def concept_columns(concepts: str | Sequence[str], names: Sequence[str], images: str | None) -> tuple[str, ...]:
    """The columns of labels that hold these concepts, where that is known; () where it is not.

    Categories of the demo world are columns: those that a ref of concepts names, and on images of that world those that
    have one of the names, for a word is also a shape or a colour. images: the ref of the set, None if nothing is known of it.
    """
    if isinstance(concepts, str) and (ref := ConceptsRef.parse(concepts)).source == "world":
        return tuple(ref.location.split(",")) if ref.location else tuple(PLANTED)
    if images is None or ImageSetRef.parse(images).source != "world":
        return ()
    return tuple(dict.fromkeys(full.partition("=")[0] for full in world_values(names)))
