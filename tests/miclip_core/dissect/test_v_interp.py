"""From top patches over captions to what a unit is about, on the demo world with its own CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.dissect.caption import GivenCaptions, Patch
from miclip_core.dissect.patches import TopPatches, crop, patch_box
from miclip_core.dissect.v_interp import caption_patches, embed_captions, unit_embeddings
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import COLOURS, World, attributes
from miclip_core.zoo.load import load_model
from schemas.refs import ModelRef

BLANK = Image.new("RGB", (1, 1))


class Counting:
    """Says which image a patch is of, and remembers how many it was shown at once."""

    name = "counting"

    def __init__(self) -> None:
        self.shown: list[int] = []

    def rendered(self, prompt: str) -> str:
        return prompt

    def caption(self, patches: Sequence[Patch], prompt: str) -> list[str]:
        self.shown.append(len(patches))
        return [f"{prompt} {patch.image}" for patch in patches]


def test_patches_are_captioned_in_order_a_batch_at_a_time() -> None:
    cut: list[int] = []

    def patches() -> Iterator[Patch]:
        for image in range(7):
            cut.append(image)
            yield Patch(image, BLANK)
            assert len(cut) - sum(counting.shown) <= 3

    counting = Counting()
    assert caption_patches(counting, patches(), "p", 3) == [f"p {i}" for i in range(7)]
    assert counting.shown == [3, 3, 1]


def test_each_text_is_embedded_once_and_empty_ones_are_zero() -> None:
    seen: list[list[str]] = []

    def embed(texts: list[str]) -> Tensor:
        seen.append(texts)
        return torch.tensor([[float(len(text)), 3.0] for text in texts])

    vectors = embed_captions(["abcd", "", " abcd ", "x", "  "], embed)
    assert seen == [["abcd", "x"]]
    assert torch.allclose(vectors[0], torch.tensor([0.8, 0.6])) and torch.equal(vectors[0], vectors[2])
    assert (vectors[[1, 4]] == 0).all() and abs(vectors[3].norm().item() - 1) < 1e-6
    assert (embed_captions(["", " "], embed) == 0).all()


def test_a_unit_is_the_mean_direction_of_its_captions() -> None:
    captions = torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    places = torch.tensor([[0, 1, 1], [0, -1, -1], [0, 2, -1], [2, -1, -1], [-1, -1, -1]])
    expected = normalize(torch.tensor([[1.0, 2], [1, 0], [1, 0], [0, 0], [0, 0]]), dim=1)
    assert torch.allclose(unit_embeddings(places, captions), expected)
    assert torch.equal(unit_embeddings(places[4:], captions[:0]), torch.zeros(1, 2))


def test_units_that_fire_on_a_colour_are_named_by_it() -> None:
    """Planted units: the area that each colour covers in a patch; captions say what the middle of the crop shows."""
    scenes = attributes(World(seed=4, objects=(0, 1), text=0, watermark=0), range(150))
    pixels, labels = render_scenes(scenes)
    on = torch.from_numpy(labels == 1).float().unflatten(2, (8, 8)).unflatten(1, (8, 8)).mean((2, 4)).flatten(1)
    colour = torch.from_numpy(scenes.colour[:, 0])
    planted = on[:, :, None] * (colour[:, None, None] == torch.arange(8))
    top = TopPatches(8, 3)
    top.add(torch.arange(150), planted)
    listed = top.distinct()
    boxes = [patch_box(position, (8, 8), (64, 64), 3) for position in listed.position.tolist()]
    patches = [Patch(image, crop(torch.from_numpy(pixels[image]).permute(2, 0, 1), box))
               for image, box in zip(listed.image.tolist(), boxes, strict=True)]  # fmt: skip
    assert {patch.pixels.size for patch in patches} == {(24, 24)}
    names = list(COLOURS)
    given = GivenCaptions({i: f"a {names[c]} object" for i, c in enumerate(colour.tolist())})
    model = load_model(ModelRef.parse("demo:clip-p8"))
    units_UE = unit_embeddings(listed.place, embed_captions(caption_patches(given, patches, ""), model.embed_text))
    concepts_ME = normalize(model.embed_text([f"a {name} object" for name in names]), dim=1)
    assert (units_UE @ concepts_ME.T).argmax(1).tolist() == list(range(8))
