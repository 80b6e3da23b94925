"""Maps of a generator's units: of each image by its number, whatever the ranges and batches, without repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.activations import Forward
from jobs.mine_rosetta.drawn import draws_images
from jobs.mine_rosetta.maps import MapReader
from jobs.mine_rosetta.members import Member, MemberSite
from jobs.protocol import Setting
from miclip_core.generate.generator import Generator
from miclip_core.generate.load import load_generator
from schemas.errors import NonFiniteActivation
from schemas.plans import Resources
from schemas.refs import ModelRef

GENERATOR, SEED, REPEAT = "demo:generator", 7, 3
SITES = ("act.0@map", "act.1@map", "act.4@map")  # two of one grid, one of another


class Index:
    """Inputs that have nothing but the index of a generated set, in which one image repeats another."""

    def table(
        self, stage: str, table: str, columns: Sequence[str], between: tuple[str, Sequence[tuple[int, int]]]
    ) -> Iterator[pa.RecordBatch]:
        assert (stage, table) == ("index", "images")
        for start, stop in between[1]:
            rows = [
                {
                    "image_index": i, "image_id": f"id{i}", "uri": f"generated:{GENERATOR},seed={SEED},n=9#{i}",
                    "duplicate_of": "id0" if i == REPEAT else None,
                }
                for i in range(start, stop)
            ]  # fmt: skip
            yield pa.RecordBatch.from_pylist(rows)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(ModelRef.parse(GENERATOR))


def member(generator: Generator, on_nonfinite: str = "stop") -> Member:
    facts = generator.facts
    effort: dict[str, Any] = {"index": "index", "files": facts.files_sha256, "revision": None, "batch_size": 4}
    params: dict[str, Any] = {"rows": 9, "on_nonfinite": on_nonfinite}
    sites = []
    for text in SITES:
        known = facts.site(text.split("@")[0])
        assert known.grid is not None
        width = known.width
        sites.append(MemberSite(site=text, grid=known.grid, width=width, channels=width, depth=0.0))
    return Member(forward=Forward(model=GENERATOR, inputs={}, params=params, effort=effort), sites=tuple(sites))


def read(of: Member, ranges: Sequence[tuple[int, int]], at_once: int) -> list[Any]:
    inputs: Any = Index()
    return [maps for (maps,) in MapReader(Setting((), Resources()), 0.0).read(inputs, [of], ranges, at_once)]


def test_each_image_has_the_maps_of_its_latent(generator: Generator) -> None:
    (found,) = read(member(generator), [(2, 6)], 3)
    assert found.images == ((2, "id2"), (4, "id4"), (5, "id5"))  # 3 repeats another
    coarse, fine = found.groups
    for place, (number, _) in enumerate(found.images):
        _, rows = generator.run(generator.latents(SEED, [number]), list(SITES))
        torch.testing.assert_close(coarse[place], torch.cat([rows[site][0] for site in SITES[:2]], 1))
        torch.testing.assert_close(fine[place], rows[SITES[2]][0])


def test_ranges_and_batches_change_nothing(generator: Generator) -> None:
    whole = read(member(generator), [(0, 9)], 9)[0]
    parts = read(member(generator), [(4, 9), (0, 2), (2, 4)], 2)
    assert [part.index.tolist() for part in parts] == [[4, 5, 6, 7, 8], [0, 1], [2]]
    for part in parts:
        rows = np.searchsorted(whole.index, part.index)
        for group, expected in zip(part.groups, whole.groups, strict=True):
            torch.testing.assert_close(group, expected[rows], atol=1e-5, rtol=1e-5)
    assert not any(np.array_equal(a, b) for a, b in zip(whole.groups[0][:-1], whole.groups[0][1:]))


def test_an_image_whose_maps_are_no_numbers_is_set_aside_or_stops(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Generator.run

    def broken(self: Generator, latents: Any, sites: Any) -> Any:
        images, rows = run(self, latents, sites)
        rows[SITES[1]][1, 0, 0] = torch.nan
        return images, rows

    monkeypatch.setattr(Generator, "run", broken)
    (found,) = read(member(generator, "quarantine"), [(0, 3)], 4)
    assert found.index.tolist() == [0, 2]
    assert [(bad.image_index, bad.reason) for bad in found.problems] == [(1, "nonfinite")]
    with pytest.raises(NonFiniteActivation, match="id1"):
        read(member(generator), [(0, 3)], 4)


def test_only_generators_draw() -> None:
    assert draws_images(GENERATOR)
    assert not any(map(draws_images, ("demo:clip-p8", "demo:nothing", "open_clip:ViT-B-32/openai")))
