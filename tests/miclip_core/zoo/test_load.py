"""Refs become models: names, digests, checkpoints of every kind, and each way a checkpoint can be wrong."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from miclip_core.zoo import openclip, shipped
from miclip_core.zoo.checkpoint import fill_completely
from miclip_core.zoo.load import inspect_model, load_model
from miclip_core.zoo.locate import HubFile, locate
from miclip_core.zoo.random_weights import fill_random
from schemas.errors import ActivationMismatch, NotInEval, UnknownModel, UnknownSite, UnsafeCheckpoint, WeightsMissing
from schemas.models import ModelFacts
from schemas.refs import ModelRef
from tests.miclip_core.zoo.test_clip_vit import TINY

IMAGES = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))


def ref(text: str) -> ModelRef:
    return ModelRef.parse(text)


def folder(path: Path, change: Callable[[dict[str, torch.Tensor]], Any] | None = None, **preprocess: Any) -> Path:
    """A checkpoint folder of the tiny model, with its tensors passed through `change`."""
    path.mkdir(exist_ok=True)
    model = openclip.build_from_config(TINY)
    fill_random(model, 5)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if change is not None:
        change(tensors)
    save_file(tensors, path / "open_clip_model.safetensors")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    return path


def no_fetch(request: object) -> Path:
    raise AssertionError(f"nothing may be fetched, asked for {request}")


# ---------------------------------------------------------------- folders and files


def test_a_folder_gives_its_weights_its_geometry_and_the_digest_of_its_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", mean=[0.45] * 3, std=[0.27] * 3, resize_mode="squash", interpolation="bilinear")
    where = ref(f"open_clip:tiny@file:{path}")
    facts, model = inspect_model(where), load_model(where)
    expected = openclip.build_from_config(TINY).eval()
    fill_random(expected, 5)
    with torch.no_grad():
        assert torch.equal(model.embed_images(IMAGES), expected.encode_image(IMAGES))
    assert facts == model.facts
    assert facts.weights_sha256 == hashlib.sha256((path / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert (facts.geometry.resize, facts.geometry.interpolation, facts.mean, facts.std) == (
        "squash", "bilinear", (0.45,) * 3, (0.27,) * 3,
    )  # fmt: skip
    assert facts.geometry.crop_hw == (12, 8) == facts.input_hw
    assert ModelFacts.model_validate_json(facts.canonical_json()) == facts


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("merges.txt", b"a b"),
        ("open_clip_config.json", {"model_cfg": {**TINY, "text_cfg": {**TINY["text_cfg"], "no_causal_mask": True}}}),
        ("open_clip_config.json", {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}),
    ],
)
def test_files_beside_the_weights_are_part_of_a_models_identity(tmp_path: Path, file: str, content: Any) -> None:
    path = folder(tmp_path / "tiny")
    where = ref(f"open_clip:tiny@file:{path}")
    before = inspect_model(where)
    (path / "README.md").write_text("of no consequence")
    assert inspect_model(where) == before
    (path / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    after = inspect_model(where)
    assert after.weights_sha256 == before.weights_sha256
    assert after.files_sha256 != before.files_sha256


def test_an_address_that_states_a_digest_is_verified() -> None:
    asked = []

    def fetch(request: object) -> Path:
        asked.append(request)
        return Path("x")

    openai = "https://openaipublic.azureedge.net/clip/models/40d365715913c9da/ViT-B-32.pt"
    own = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/rn50-quickgelu-cc12m-f000538c.pt"
    for url in (openai, own, "https://example.org/weights-v2.pt"):
        openclip._fetch({"url": url}, None, fetch)
    assert [request.sha256 for request in asked] == ["40d365715913c9da", "f000538c", ""]


def test_half_precision_files_load_into_full_precision(tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    model = load_model(ref(f"open_clip:tiny@file:{folder(tmp_path / 'half', halve)}"))
    assert next(model.module.parameters()).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_caller_decides_how_a_location_becomes_a_path(tmp_path: Path) -> None:
    path, asked = folder(tmp_path / "tiny"), []

    def fetch(request: object) -> Path:
        asked.append(request)
        return path

    assert inspect_model(ref("open_clip:tiny@s3://bucket/models/tiny"), fetch).model.endswith("s3://bucket/models/tiny")
    assert asked == ["s3://bucket/models/tiny"]
    with pytest.raises(UnknownModel, match="fetched by the caller first"):
        inspect_model(ref("open_clip:tiny@s3://bucket/models/tiny"))


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_plain_pickles_of_tensors_load_with_a_wrapping_of_trainers(tmp_path: Path, suffix: str) -> None:
    path = folder(tmp_path / "tiny")
    model = openclip.build_from_config(TINY)
    fill_random(model, 5)
    (path / "open_clip_model.safetensors").unlink()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path / f"epoch_3{suffix}")
    loaded = load_model(ref(f"open_clip:tiny@file:{path}"))
    with torch.no_grad():
        assert torch.equal(loaded.embed_images(IMAGES), model.eval().encode_image(IMAGES))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nowhere/touched").touch, ())


def test_a_pickle_that_would_run_code_is_refused_unopened(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    (path / "open_clip_model.safetensors").unlink()
    (path / "model.bin").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(UnsafeCheckpoint, match="save its state dict with safetensors"):
        load_model(ref(f"open_clip:tiny@file:{path}"))


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(UnsafeCheckpoint):
        load_model(ref(f"open_clip:ViT-S-32-alt@file:{path}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.ln_post.weight"), r"1 tensors of the checkpoint are missing: visual\.ln_post\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "belong to no part of the model: extra"),
        (lambda t: t.update({"visual.proj": torch.zeros(3, 6)}), r"visual\.proj \(3, 6\) instead of \(16, 6\)"),
    ],
)
def test_a_checkpoint_loads_completely_or_not_at_all(tmp_path: Path, change: Callable, message: str) -> None:
    path = folder(tmp_path / "tiny", change)
    with pytest.raises(WeightsMissing, match=message):
        load_model(ref(f"open_clip:tiny@file:{path}"))


def test_a_damaged_file_and_missing_files_say_so(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    weights = path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsMissing, match="damaged"):
        load_model(ref(f"open_clip:tiny@file:{path}"))
    weights.unlink()
    buffer = io.BytesIO()
    torch.save({"visual.proj": torch.zeros(16, 6)}, buffer)
    whole = buffer.getvalue()
    for content in (b"", whole[:10], whole[: len(whole) // 2], whole[:-5]):
        (path / "model.bin").write_bytes(content)
        with pytest.raises(WeightsMissing, match="damaged"):
            load_model(ref(f"open_clip:tiny@file:{path}"))
    (path / "model.bin").unlink()
    with pytest.raises(UnknownModel, match="no checkpoint"):
        inspect_model(ref(f"open_clip:tiny@file:{path}"))
    with pytest.raises(UnknownModel, match="no file or folder"):
        inspect_model(ref("open_clip:tiny@file:/nowhere/at/all"))


def test_what_a_librarys_own_reader_leaves_unset_is_missing() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(WeightsMissing, match="1 tensors of the model are missing in the checkpoint: bias"):
        fill_completely(module, lambda: module.weight.copy_(torch.ones(2, 2)), "timm:tiny from tiny.npz")
    fill_completely(module, lambda: (module.weight.fill_(1.0), module.bias.fill_(2.0)), "timm:tiny from tiny.npz")
    assert module(torch.ones(1, 2)).tolist() == [[4.0, 4.0]]


def test_texts_are_not_embedded_in_training_mode(tmp_path: Path) -> None:
    model = load_model(ref(f"open_clip:tiny@file:{folder(tmp_path / 'tiny')}"))
    model.module.train()
    with pytest.raises(NotInEval):
        model.embed_text(["a red circle"])


# ---------------------------------------------------------------- names


def test_a_tag_trained_with_quickgelu_is_refused_on_a_gelu_architecture_before_anything_is_fetched() -> None:
    for tag in ("openai", "metaclip_400m"):
        with pytest.raises(ActivationMismatch, match=f"write open_clip:ViT-B-32-quickgelu/{tag}"):
            inspect_model(ref(f"open_clip:ViT-B-32/{tag}"), no_fetch)
    with pytest.raises(ActivationMismatch, match="write open_clip:ViT-B-16-quickgelu/dfn2b"):
        inspect_model(ref("open_clip:ViT-B-16/dfn2b"), no_fetch)
    with pytest.raises(ActivationMismatch, match="write open_clip:ViT-B-32/laion2b_s34b_b79k"):
        inspect_model(ref("open_clip:ViT-B-32-quickgelu/laion2b_s34b_b79k"), no_fetch)


def test_a_tag_asks_the_port_for_safetensors_first() -> None:
    asked = []

    def fetch(request: object) -> Path:
        asked.append(request)
        raise FileNotFoundError

    with pytest.raises(UnknownModel, match="has none of"):
        inspect_model(ref("open_clip:ViT-B-32/laion2b_s34b_b79k@abc123"), fetch)
    assert asked[0] == HubFile("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors", "abc123")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("open_clip:ViT-B-33/openai", "did you mean ViT-B-32"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79", "did you mean laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32", "with TAG one of .*laion2b_s34b_b79k"),
        ("demo:no-such-model", "no such demo model"),
    ],
)
def test_unknown_names_are_answered_with_what_exists(text: str, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        inspect_model(ref(text), no_fetch)


def test_every_demo_model_that_ships_is_described() -> None:
    for name in shipped.names():
        if (shipped.FOLDER / name / openclip.CONFIG).is_file():
            facts = inspect_model(ref(f"demo:{name}"))
            assert facts.has_text and facts.input_hw == (64, 64), name


# ---------------------------------------------------------------- random weights


def test_random_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = openclip.build_from_config(TINY)
    torch.manual_seed(2)
    other, third = openclip.build_from_config(TINY), openclip.build_from_config(TINY)
    fill_random(one, 0)
    fill_random(other, 0)
    fill_random(third, 1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.numel() == 1 or not torch.equal(tensor, third.state_dict()[name]), name
    assert one.visual.ln_post.bias.std() > 0.01 and (one.visual.ln_post.weight - 1).std() > 0.03
    assert one.visual.transformer.resblocks[0].attn.in_proj_bias.abs().max() > 0.01


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model(ref("open_clip:ViT-S-32-alt/random(0)"))
    assert torch.equal(torch.rand(3), expected)


def test_random_models_differ_in_digest_by_seed_and_architecture() -> None:
    digests = {
        inspect_model(ref(f"open_clip:{name}/random({seed})")).weights_sha256
        for name in ("ViT-S-32-alt", "ViT-M-32-alt")
        for seed in (0, 1)
    }
    assert len(digests) == 4


# ---------------------------------------------------------------- raw modules


def test_module_sites_get_their_layout_from_the_shape(tmp_path: Path) -> None:
    where = ref(f"open_clip:tiny@file:{folder(tmp_path / 'tiny')}")
    paths = ["module:visual.conv1", "module:visual.transformer.resblocks.0.mlp", "module:visual"]
    facts = inspect_model(where, modules=paths)
    kinds = [(facts.site(path).layout, facts.site(path).shape, facts.site(path).positions) for path in paths]
    assert kinds == [("map", (16,), 6), ("tokens", (16,), 7), ("vector", (6,), 1)]
    model = load_model(where, modules=paths)
    out = model.run(IMAGES, [*paths, "mlp_out.0"])
    assert torch.equal(out["module:visual.transformer.resblocks.0.mlp@all"], out["mlp_out.0@all"])


def test_module_sites_that_cannot_be_are_refused_at_inspection(tmp_path: Path) -> None:
    where = ref(f"open_clip:tiny@file:{folder(tmp_path / 'tiny')}")
    for path, message in (
        ("module:visual.ln_last", "has no such module"),
        ("module:visual.transformer.resblocks.0.attn.out_proj", "runs 0 times"),
        ("module:visual.transformer.resblocks.0.attn", "returns a tuple"),
    ):
        with pytest.raises(UnknownSite, match=message):
            inspect_model(where, modules=[path])


def test_the_default_port_knows_files_only_by_scheme() -> None:
    assert locate("file:/tmp") == Path("/tmp")
