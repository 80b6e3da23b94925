"""Wanted maps of SAE features and of units that fall where others rise; images that a member cannot use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.activations import Forward
from jobs.invert.pairs import read_pairs
from jobs.invert.partners import Partner
from jobs.invert.targets import Targets
from jobs.protocol import ImageBytes
from miclip_core.zoo.load import inspect_model, load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadUnits, NonFiniteActivation
from schemas.plans import StageSpec
from schemas.refs import ModelRef
from tests.jobs.invert.lake_of_pairs import COARSE, FINE, GENERATOR, GRIDS, TOKENS, VIT, Buddy, pair_tables, statistics
from tests.made_up_descriptions import publish_rows, publish_sae

LATENTS = 6
BUDDIES: dict[bool, list[Buddy]] = {
    False: [(FINE, 0, TOKENS, 3, 0.9), (FINE, 2, TOKENS, 1, -0.8), (COARSE, 1, TOKENS, 3, 0.5)],
    True: [(FINE, 1, TOKENS, 4, 0.85), (COARSE, 1, TOKENS, 0, -0.6)],
}
"""Of neurons, and of features of an SAE at the same site."""


class InMemory:
    """Inputs with images of its own beside the tables of a store; image 1 is no image."""

    def __init__(self, inputs: StoreInputs, images: list[np.ndarray]) -> None:
        self._inputs, self._images = inputs, images

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inputs, name)

    def images(self, index: str, start: int, stop: int) -> Iterator[ImageBytes]:
        for i in range(start, stop):
            h, w, _ = self._images[i].shape
            data = b"broken" if i == 1 else f"P6\n{w} {h}\n255\n".encode() + self._images[i].tobytes()
            yield ImageBytes(i, f"id{i}", f"uri{i}", data)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def decoder() -> Tensor:
    width = inspect_model(ModelRef.parse(VIT)).site(TOKENS.split("@")[0]).width
    return torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=torch.Generator().manual_seed(0)), dim=1)


def make_targets(
    folder: Path, images: list[np.ndarray], decoder: Tensor, absolute: bool, stop: bool = False
) -> Targets:
    facts, store = inspect_model(ModelRef.parse(VIT)), make_store(str(folder / "lake"))
    params: dict[str, Any] = {
        "rows": len(images), "dtype": "fp32", "orientation": "upright", "geometry": "square", "on_changed": "stop",
        "on_nonfinite": "stop" if stop else "quarantine",
    }  # fmt: skip
    effort: dict[str, Any] = {"batch_size": 3, "index": "i", "files": facts.files_sha256, "revision": None}
    forward = Forward(model=VIT, inputs={}, params=params, effort=effort)
    sae = publish_sae(store, VIT, TOKENS, decoder.tolist())
    partners = []
    for features, buddies in BUDDIES.items():
        stage = StageSpec(kind="mine_rosetta", method=1, subject=str(features), output="pair", params={})
        publish_rows(store, stage, pair_tables(True, VIT, buddies, f"sae:{sae}" if features else None))
        partners.append(
            Partner(
                forward=forward, sae=sae if features else None, pair=stage.digest, side="a", units="",
                grid="pairwise_max", absolute=absolute, map_numbers=0, sae_numbers=0,
            )
        )  # fmt: skip
    inputs: Any = InMemory(StoreInputs(store), images)
    pairs = read_pairs(inputs, partners, 1, None)
    return Targets(inspect_model(ModelRef.parse(GENERATOR)), partners, pairs, inputs, "cpu", 1)


def slow_maps(image: np.ndarray, decoder: Tensor, absolute: bool) -> dict[tuple[str, int, float], Tensor]:
    """Site and unit of the generator and r -> the wanted map, one pair after the other."""
    model, found = load_model(ModelRef.parse(VIT)), {}
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    acts = model.run(model.normalise(pixels), [TOKENS])[TOKENS][0]
    codes = acts @ decoder.T  # of a top-1 SAE the largest alone
    codes = torch.where(codes == codes.max(1, keepdim=True).values, codes, 0)
    for features, buddies in BUDDIES.items():
        for site, unit, _, other, r in buddies:
            map_ = (codes if features else acts)[:, other].reshape(1, 1, 8, 8)
            mean, sd = statistics(TOKENS, other, GRIDS[site][0])
            z = (interpolate(map_, size=GRIDS[site], mode="bilinear", align_corners=False).flatten() - mean) / sd
            found[site, unit, r] = -z if absolute and r < 0 else z
    return found


@pytest.mark.parametrize("absolute", [False, True])
def test_wanted_maps_are_those_of_neurons_and_features_one_by_one(
    absolute: bool, images: list[np.ndarray], decoder: Tensor, tmp_path: Path
) -> None:
    usable, wanted, problems = make_targets(tmp_path, images, decoder, absolute).find(0, 4)
    assert usable == [0, 2, 3]  # image 1 is no image, as both members say
    assert [(p.image.image_index, p.image.image_id, p.reason) for p in problems] == [(1, "id1", "not_an_image")] * 2
    order = {FINE: [(0, 0.9), (1, 0.85), (2, -0.8)], COARSE: [(1, -0.6), (1, 0.5)]}  # highest |r| first
    assert {some.guides.site: some.guides.units.tolist() for some in wanted} == {
        site: [unit for unit, _ in units] for site, units in order.items()
    }
    for row, image in enumerate(usable):
        expected = slow_maps(images[image], decoder, absolute)
        for some in wanted:
            for q, (unit, r) in enumerate(order[some.guides.site]):
                torch.testing.assert_close(
                    some.maps[row, :, q], expected[some.guides.site, unit, r], rtol=1e-4, atol=1e-4
                )


def test_a_range_without_a_usable_image_wants_nothing(
    images: list[np.ndarray], decoder: Tensor, tmp_path: Path
) -> None:
    usable, wanted, problems = make_targets(tmp_path, images, decoder, False).find(1, 2)
    assert (usable, wanted, {p.reason for p in problems}) == ([], (), {"not_an_image"})


def test_what_happened_in_one_range_is_not_told_again_of_the_next(
    images: list[np.ndarray], decoder: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, run, failed = make_targets(tmp_path, images, decoder, False), VisionModel.run, []

    def full(self: VisionModel, *args: Any, **more: Any) -> dict[str, Tensor]:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError
        return run(self, *args, **more)

    monkeypatch.setattr(VisionModel, "run", full)
    targets.find(0, 3)
    assert targets.notes == ["out of memory at batch size 3, went on with 1"]
    targets.find(3, 4)
    assert targets.notes == []


def test_latents_that_the_sae_does_not_have_are_refused(
    images: list[np.ndarray], decoder: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDDIES, True, [(FINE, 1, TOKENS, LATENTS, 0.5)])
    with pytest.raises(BadUnits, match=rf"unit {LATENTS} of {TOKENS} .* sae:[0-9a-f]* has {LATENTS} units there"):
        make_targets(tmp_path, images, decoder, False)


def test_an_image_without_numbers_is_left_out_or_stops(
    images: list[np.ndarray], decoder: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = VisionModel.run

    def broken(self: VisionModel, pixels: Tensor, *args: Any, **more: Any) -> dict[str, Tensor]:
        found = run(self, pixels, *args, **more)
        found[TOKENS][0, 3, 5] = torch.nan  # the first image of every batch of 3: images 0, 2 and 3 are one
        return found

    monkeypatch.setattr(VisionModel, "run", broken)
    usable, _, problems = make_targets(tmp_path / "quarantine", images, decoder, False).find(0, 4)
    assert usable == [2, 3]
    neurons, features = [p.detail for p in problems if p.image.image_index == 0]
    assert neurons == f"{VIT}: {TOKENS} is NaN or infinite"
    assert re.fullmatch(rf"{VIT} sae:[0-9a-f]{{8}}: {TOKENS} is NaN or infinite", features)
    assert {(p.image.image_index, p.reason) for p in problems} == {(0, "nonfinite"), (1, "not_an_image")}
    with pytest.raises(NonFiniteActivation, match="id0"):
        make_targets(tmp_path / "stop", images, decoder, False, stop=True).find(0, 4)
