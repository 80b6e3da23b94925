"""The generator that ships: what it draws depends on seed and number alone, and its units can be read and differentiated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from miclip_core.generate.files import files_sha256
from miclip_core.generate.generator import DrawsImages, Generator, as_uint8
from miclip_core.generate.latents import normal_latents
from miclip_core.generate.load import load_generator
from miclip_core.zoo import shipped
from miclip_core.zoo.load import inspect_model, load_built, load_model
from miclip_core.zoo.locate import locate
from schemas.errors import BadSite, NoGenerator, ReadsNoImages, UnknownModel, UnknownSite, WeightsMissing
from schemas.refs import ModelRef

REF = ModelRef.parse("demo:generator")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(REF)


def test_its_facts_say_what_it_draws_and_where_its_units_are(generator: Generator) -> None:
    member: DrawsImages = generator
    facts = inspect_model(REF)
    assert facts == member.facts and facts.is_generator and facts.files_sha256 == files_sha256(REF)
    assert facts.input_hw == (64, 64) and facts.embed_dim == member.latent_dim == 30
    assert [(site.path, site.layout, site.width, site.grid) for site in facts.sites] == [
        *[(f"act.{i}", "map", 64, (16, 16)) for i in (0, 1)],
        *[(f"act.{i}", "map", 96, (32, 32)) for i in (2, 3, 4)],
    ]
    assert facts.params == sum(parameter.numel() for parameter in generator.module.parameters())
    # Two operations per weight and cell of the 1x1 convolutions: inputs x units, coarse and fine.
    coarse, fine = 27 * 64 + 64 * 64, (64 + 27 + 24 + 8) * 96 + 2 * 96 * 96 + 96 * 12
    style = 29 * 64 + 64 * 64 + 64 * 2 * (64 + 64 + 96 + 96 + 96)
    assert facts.flops == 2 * (256 * coarse + 1024 * fine + style)


def test_an_image_is_the_same_in_every_batch_shard_and_process(generator: Generator) -> None:
    whole = generator.sample(3, range(10))
    assert whole.dtype == torch.uint8 and whole.shape == (10, 3, 64, 64)
    for parts in ([[i] for i in range(10)], [range(8), range(8, 10)], [range(5), range(5, 6), range(6, 10)]):
        assert torch.equal(torch.cat([generator.sample(3, part) for part in parts]), whole)
    assert torch.equal(load_generator(REF).sample(3, range(6, 9)), whole[6:9])
    assert torch.equal(generator.sample(3, [9, 2, 2]), whole[[9, 2, 2]])
    assert not torch.equal(generator.sample(4, range(10)), whole)


def test_threads_decide_no_byte(generator: Generator) -> None:
    before = torch.get_num_threads()
    images = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        images.append(generator.sample(0, range(4)))
    torch.set_num_threads(before)
    assert torch.equal(*images)


def test_a_sample_is_what_is_synthesized_rounded(generator: Generator) -> None:
    drawn = as_uint8(generator.synthesize(generator.latents(5, range(8)))).int()
    apart = (drawn - generator.sample(5, range(8)).int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3


def test_latents_are_standard_normal_numbers_of_seed_and_index() -> None:
    latents = normal_latents(0, range(4000), 30)
    assert latents.dtype == torch.float32
    assert latents.mean(0).abs().max() < 0.07 and (latents.std(0) - 1).abs().max() < 0.05
    assert (torch.corrcoef(latents.T) - torch.eye(30)).abs().max() < 0.08
    assert torch.equal(normal_latents(0, [7, 3999], 30), latents[[7, 3999]])
    assert torch.equal(normal_latents(0, [7], 12), latents[[7], :12])
    assert not torch.equal(normal_latents(1, [7], 30), latents[[7]])


def test_taps_are_the_rows_of_a_plain_forward(generator: Generator) -> None:
    latents = generator.latents(0, range(3))
    kept: dict[str, torch.Tensor] = {}
    handles = [
        layer.act.register_forward_hook(lambda module, args, output, i=i: kept.update({f"act.{i}@map": output.clone()}))
        for i, layer in enumerate(generator.module.layers)
    ]
    plain = generator.module(latents)
    for handle in handles:
        handle.remove()
    images, rows = generator.run(latents, ["act.*"])
    assert torch.equal(images, plain) and images.min() >= 0 and images.max() <= 1
    assert list(rows) == [f"act.{i}@map" for i in range(5)]
    for site, maps in kept.items():
        b, units, h, w = maps.shape
        assert rows[site].shape == (b, h * w, units)
        for position in (0, w - 1, 3 * w + 5):
            assert torch.equal(rows[site][:, position], maps[:, :, position // w, position % w])
    # The image is made of the last units: every cell of 2 x 2 pixels is painted by its own row.
    paint = generator.module.paint
    cells = (rows["act.4@map"] @ paint.weight.flatten(1).T + paint.bias).sigmoid()
    cell = cells[1, 3 * 32 + 5].view(3, 2, 2)
    torch.testing.assert_close(cell, images[1, :, 6:8, 10:12], atol=1e-5, rtol=0)


def test_only_what_is_asked_for_is_read_and_no_hook_stays(generator: Generator) -> None:
    _, rows = generator.run(generator.latents(0, [0]), ["act.-1", "act.0@map"])
    assert list(rows) == ["act.4@map", "act.0@map"]
    assert not any(module._forward_hooks for module in generator.module.modules())


def test_images_and_rows_can_be_differentiated_in_the_latent(generator: Generator) -> None:
    torch.manual_seed(0)
    facts, family, built = load_built(REF, locate, "cpu", torch.float64)
    exact = Generator(facts, family, built.root, generator.device, generator.exact)
    latents = exact.latents(1, [4]).double()
    along = torch.randn_like(latents)

    def heights(step: float) -> torch.Tensor:
        images, rows = exact.run(latents + step * along, ["act.1", "act.3"])
        return torch.stack([images.square().sum(), rows["act.1@map"].sum(), rows["act.3@map"].square().sum()])

    step = 1e-6
    wanted = (heights(step) - heights(-step)) / (2 * step)
    latents.requires_grad_()
    found = [(torch.autograd.grad(value, latents, retain_graph=True)[0] * along).sum() for value in heights(0)]
    torch.testing.assert_close(torch.stack(found), wanted, rtol=1e-3, atol=1e-4)
    assert all(abs(value) > 1e-3 for value in found)
    assert not any(parameter.requires_grad for parameter in generator.module.parameters())


def test_what_reads_images_refuses_it_and_what_draws_them_refuses_others() -> None:
    with pytest.raises(ReadsNoImages, match="draws images and reads none; use it in mine_rosetta or invert"):
        load_model(REF)
    with pytest.raises(NoGenerator, match="demo:clip-p8 draws no images; a generator is demo:generator"):
        load_generator(ModelRef.parse("demo:clip-p8"))
    with pytest.raises(NoGenerator, match="such as demo:generator"):
        load_generator(ModelRef.parse("hf:google/ddpm"))
    with pytest.raises(UnknownModel, match=r"demo:generatr: no such demo model; there are .*demo:generator"):
        load_generator(ModelRef.parse("demo:generatr"))


@pytest.mark.parametrize(
    ("site", "error"),
    [("act.5", UnknownSite), ("resid_post.0", UnknownSite), ("act.0@patch", UnknownSite), ("act.0:mean", BadSite)],
)
def test_a_site_that_is_no_map_of_it_is_refused(generator: Generator, site: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="demo:generator"):
        generator.run(generator.latents(0, [0]), [site])


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shipped.FOLDER / "generator", tmp_path / "generator")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    whole = files_sha256(REF)
    weights = tmp_path / "generator" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert files_sha256(REF) != whole
    with pytest.raises(WeightsMissing, match="damaged safetensors file"):
        load_generator(REF)
    weights.unlink()
    with pytest.raises(UnknownModel, match=r"no model\.safetensors beside generator.json"):
        load_generator(REF)


def test_weights_of_another_architecture_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shipped.FOLDER / "generator", tmp_path / "generator")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    config = tmp_path / "generator" / "generator.json"
    config.write_text(config.read_text().replace('"memory": 8', '"memory": 4'))
    with pytest.raises(WeightsMissing, match="have another shape"):
        load_generator(REF)


def test_it_is_a_module_in_eval_mode(generator: Generator) -> None:
    assert isinstance(generator.module, nn.Module) and not generator.module.training
