"""Members are plain library models: what the trainer reads from them, and what is saved, is what the library computes."""

from dataclasses import replace

import pytest
import torch

from miclip_core.world.recipes import RECIPES
from miclip_core.world.towers import DenseView, load_model, make_model, save_model

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_dense_features_are_the_normalised_input_of_the_last_block():
    recipe = RECIPES["clip-p8"]
    model = make_model(recipe).eval()
    seen = []
    model.visual.transformer.resblocks[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embedding = model.encode_image(PIXELS)
    tokens = seen[0][:, 1:]
    expected = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    view = DenseView(model, recipe)
    patches, same = view.patches_and_embedding(PIXELS)
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(view.patches(PIXELS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(same, embedding, atol=1e-5, rtol=0)
    assert patches.shape == (2, 64, view.width)


@torch.no_grad()
def test_a_resnets_dense_features_are_the_quadrants_of_its_last_map():
    recipe = RECIPES["clip-rn"]
    model = make_model(recipe).eval()
    seen = []
    model.visual.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    embedding = model.encode_image(PIXELS)
    patches, same = DenseView(model, recipe).patches_and_embedding(PIXELS)
    torch.testing.assert_close(patches[:, 1], seen[0][:, :, 0, 1])  # top right
    torch.testing.assert_close(same, embedding)
    assert patches.shape == (2, 4, DenseView(model, recipe).width)


def test_position_codes_tell_every_patch_apart_and_depend_on_rows_and_columns():
    code = make_model(RECIPES["clip-p8"]).visual.positional_embedding.detach()
    assert not code[0].any()
    distance = torch.cdist(code[1:], code[1:]) + torch.eye(64)
    assert distance.min() > 0.1
    grid = code[1:].reshape(8, 8, 96)
    assert torch.equal(grid[3, 5, :48], grid[6, 5, :48]) and torch.equal(grid[3, 5, 48:], grid[3, 1, 48:])


def test_weights_come_from_the_seed_alone():
    recipe = RECIPES["clip-rn"]
    first, again, other = make_model(recipe), make_model(recipe), make_model(replace(recipe, seed=99))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.visual.conv1.weight, other.visual.conv1.weight)


@pytest.mark.parametrize("name", ["clip-p16", "clip-rn", "siglip-p8", "resnet-sup", "vit-dense"])
@torch.no_grad()
def test_a_saved_member_loads_in_its_own_library_with_half_precision_weights(name, tmp_path):
    recipe = RECIPES[name]
    model = make_model(recipe).eval()
    save_model(model, recipe, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    values = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(values[key], value.half().to(value.dtype) if value.is_floating_point() else value), key
    weights = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert weights < 2.1 * sum(p.numel() for p in model.parameters()) + 30_000
