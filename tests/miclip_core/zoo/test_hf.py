"""Transformers checkpoints become models: folders, formats, old names, geometry, text, and each way it can go wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from miclip_core.world.tokens import CONTEXT, EOS, VOCABULARY, encode, save_tokenizer
from miclip_core.zoo import hf, shipped
from miclip_core.zoo.hf import transformers
from miclip_core.zoo.hf_geometry import geometry_of
from miclip_core.zoo.load import inspect_model, load_model
from miclip_core.zoo.locate import HubFile
from miclip_core.zoo.random_weights import fill_random
from miclip_core.zoo.text import zero_shot_classifier
from schemas.errors import (
    GeometryMismatch,
    RemoteCodeRefused,
    UnknownModel,
    UnsafeCheckpoint,
    UnsupportedBlock,
    WeightsMissing,
)
from schemas.models import Geometry, ModelFacts
from schemas.refs import ModelRef
from tests.miclip_core.zoo.test_hf_vit import SIZE, TEXT

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
VOCABULARY_SIZES = {"vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT, "eos_token_id": EOS}


def ref(path: Path) -> ModelRef:
    return ModelRef.parse(f"hf:mine@file:{path}")


def save(model: Any, path: Path, **processor: Any) -> Any:
    """Write a model with weights of a seed as the library does, and its image processor's file if it has one."""
    fill_random(model, 3)
    model.eval().save_pretrained(path)
    if processor:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def vit(path: Path, **processor: Any) -> Any:
    return save(transformers.ViTModel(transformers.ViTConfig(**SIZE)), path, **processor)


def clip(path: Path) -> Any:
    config = transformers.CLIPConfig(text_config={**TEXT, **VOCABULARY_SIZES}, vision_config=SIZE, projection_dim=6)
    model = save(transformers.CLIPModel(config), path)
    save_tokenizer(path)
    return model


def rename(path: Path, names: dict[str, str]) -> None:
    """Write the weights of a folder again under the names of an older release."""

    def old(name: str) -> str:
        for new, before in names.items():
            name = name.replace(new, before)
        return name

    tensors = load_file(path / "model.safetensors")
    save_file({old(name): tensor for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"})


# ---------------------------------------------------------------- folders


def test_a_folder_gives_the_librarys_model_and_the_digest_of_its_weights(tmp_path: Path) -> None:
    library = vit(tmp_path)
    facts, model = inspect_model(ref(tmp_path)), load_model(ref(tmp_path))
    with torch.no_grad():
        assert torch.equal(model.embed_images(IMAGES), library(pixel_values=IMAGES).pooler_output)
    assert facts == model.facts and ModelFacts.model_validate_json(facts.canonical_json()) == facts
    assert facts.weights_sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert set(facts.library_versions) == {"torch", "transformers"} and facts.revision is None
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_beside_the_weights_are_part_of_a_models_identity(tmp_path: Path, file: str) -> None:
    clip(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    before = inspect_model(ref(tmp_path))
    edit_config(tmp_path, file, another="entry")
    after = inspect_model(ref(tmp_path))
    assert after.weights_sha256 == before.weights_sha256 and after.files_sha256 != before.files_sha256


def test_half_precision_checkpoints_run_in_full_precision(tmp_path: Path) -> None:
    clip(tmp_path).half().save_pretrained(tmp_path)
    model = load_model(ref(tmp_path))
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert model.embed_images(IMAGES).dtype == torch.float32


def test_shards_and_plain_pickles_hold_the_same_model(tmp_path: Path) -> None:
    library = vit(tmp_path)
    expected = load_model(ref(tmp_path)).embed_images(IMAGES)
    tensors = library.state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(load_model(ref(tmp_path)).embed_images(IMAGES), expected)
    (tmp_path / "pytorch_model.bin").unlink()
    library.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    sharded = load_model(ref(tmp_path))
    assert torch.equal(sharded.embed_images(IMAGES), expected)
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(WeightsMissing, match="which is not there"):
        inspect_model(ref(tmp_path))


def test_names_of_older_releases_are_understood(tmp_path: Path) -> None:
    library = vit(tmp_path)
    rename(
        tmp_path,
        {
            "layers.": "encoder.layer.", "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        },
    )  # fmt: skip
    with torch.no_grad():
        expected = library(pixel_values=IMAGES).pooler_output
    assert torch.equal(load_model(ref(tmp_path)).embed_images(IMAGES), expected)


def test_a_vit_saved_without_its_pooler_has_none(tmp_path: Path) -> None:
    library = save(transformers.ViTModel(transformers.ViTConfig(**SIZE), add_pooling_layer=False), tmp_path)
    model = load_model(ref(tmp_path))
    with torch.no_grad():
        assert torch.equal(model.embed_images(IMAGES), library(pixel_values=IMAGES).last_hidden_state[:, 0])
    assert model.readout().position == "before_pool"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layernorm.weight"), r"1 tensors of the checkpoint are missing: layernorm\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "belong to no part of the model: extra"),
        (lambda t: t.update({"layernorm.weight": torch.zeros(3)}), r"layernorm\.weight \(3,\) instead of \(16,\)"),
    ],
)
def test_a_checkpoint_loads_completely_or_not_at_all(tmp_path: Path, change: Any, message: str) -> None:
    vit(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsMissing, match=message):
        load_model(ref(tmp_path))


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path)
    capfd.readouterr()
    load_model(ref(tmp_path))
    load_model(ModelRef.parse("hf:resnet/random(0)"))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# ---------------------------------------------------------------- what is refused


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nowhere/touched").touch, ())


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    vit(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Evil()}))
    with pytest.raises(UnsafeCheckpoint, match="save its state dict with safetensors"):
        inspect_model(ref(tmp_path))


def edit_config(path: Path, file: str = "config.json", **changes: Any) -> None:
    (path / file).write_text(json.dumps({**json.loads((path / file).read_text()), **changes}))


def test_a_checkpoint_with_its_own_python_is_refused_before_weights_are_asked_for(tmp_path: Path) -> None:
    clip(tmp_path)
    edit_config(tmp_path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokens", None]})
    with pytest.raises(RemoteCodeRefused, match=r"tokenizer_config\.json has `auto_map`"):
        inspect_model(ref(tmp_path))
    edit_config(tmp_path, auto_map={"AutoModel": "modeling_own.Own"})
    asked: list[HubFile] = []

    def fetch(request: Any) -> Path:
        asked.append(request)
        return tmp_path / request.file

    with pytest.raises(RemoteCodeRefused, match=r"modeling_own\.Own.*never done"):
        inspect_model(ModelRef.parse("hf:org/own"), fetch)
    assert set(asked) == {HubFile("org/own", "config.json", None)}


def test_unknown_types_classes_and_folders_are_answered_with_what_is_known(tmp_path: Path) -> None:
    vit(tmp_path)
    for changes, error, message in (
        ({"architectures": ["ViTForMaskedImageModeling"]}, UnsupportedBlock, "known are ViTModel, ViTForImage"),
        ({"model_type": "bert"}, UnknownModel, "model type 'bert' is none of those we know: clip, "),
    ):
        edit_config(tmp_path, **changes)
        with pytest.raises(error, match=message):
            inspect_model(ref(tmp_path))
    with pytest.raises(UnknownModel, match="give the folder"):
        inspect_model(ref(tmp_path / "config.json"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UnknownModel, match=r"no config\.json"):
        inspect_model(ref(tmp_path))
    with pytest.raises(UnknownModel, match="model type 'vitt'"):
        inspect_model(ModelRef.parse("hf:vitt/random(0)"))


def test_an_index_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    vit(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"layernorm.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeCheckpoint, match="outside the checkpoint"):
        inspect_model(ref(tmp_path))


# ---------------------------------------------------------------- random weights


def test_random_weights_are_a_function_of_the_seed_alone() -> None:
    """SigLIP's own constructor draws its scale at random."""
    plan = hf.Blueprint(
        "siglip", transformers.SiglipModel, transformers.SiglipConfig(text_config=TEXT, vision_config=SIZE)
    )
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        root = plan.build().root
        fill_random(root, 0)
        states.append(root.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


# ---------------------------------------------------------------- text


def test_texts_are_embedded_as_the_library_does(tmp_path: Path) -> None:
    library, model = clip(tmp_path), load_model(ref(tmp_path))
    texts = ["a red circle", "an object that says word", "red " * 60]
    with torch.no_grad():
        expected = library.get_text_features(input_ids=torch.from_numpy(encode(texts))).pooler_output
    assert model.facts.has_text
    assert torch.equal(model.embed_text(texts), expected)
    columns = zero_shot_classifier(model, ["red circle", "green star"], ["a {}"])
    one = normalize(model.embed_text(["a green star"]).float(), dim=-1)[0]
    assert torch.allclose(columns[:, 1], one, atol=1e-6)


def test_siglip_lowers_case_and_pads_to_the_length_it_was_trained_with(tmp_path: Path) -> None:
    config = transformers.SiglipConfig(
        text_config={**TEXT, **VOCABULARY_SIZES, "projection_size": 16}, vision_config=SIZE
    )
    library = save(transformers.SiglipModel(config), tmp_path)
    save_tokenizer(tmp_path)
    edit_config(tmp_path, "tokenizer.json", normalizer=None)  # which would lower case itself
    model = load_model(ref(tmp_path))
    with torch.no_grad():
        expected = library.get_text_features(input_ids=torch.from_numpy(encode(["a red circle"]))).pooler_output
    assert torch.allclose(model.embed_text(["A RED circle "]), expected, atol=1e-6)


def test_a_dual_encoder_without_a_vocabulary_reads_no_text(tmp_path: Path) -> None:
    clip(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    model = load_model(ref(tmp_path))
    assert not model.facts.has_text
    with pytest.raises(UnsupportedBlock, match="no text tower"):
        model.embed_text(["a red circle"])


# ---------------------------------------------------------------- geometry


def geometry(model_type: str, own: int = 224, fixed: bool = True, **processor: Any) -> Geometry:
    return geometry_of(model_type, processor, (own, own), fixed)


@pytest.mark.parametrize(
    ("found", "resize", "resize_hw", "crop_hw", "interpolation"),
    [
        (geometry("clip"), "shortest", 224, 224, "bicubic"),
        (geometry("clip_vision_model", size=224, crop_size=224, resample=2), "shortest", 224, 224, "bilinear"),
        (geometry("clip", 336, size={"shortest_edge": 224}, crop_size=224), "shortest", 336, 336, "bicubic"),
        (geometry("siglip", 384), "squash", 384, 384, "bicubic"),
        (geometry("vit", size=224), "squash", 224, 224, "bilinear"),
        (geometry("vit", size={"height": 224, "width": 224}, resample=3), "squash", 224, 224, "bicubic"),
        (geometry("vit_mae"), "squash", 224, 224, "bicubic"),
        (geometry("dinov2", 518, False, size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
         "shortest", 256, 224, "bicubic"),
        (geometry("dinov2_with_registers", 518, False), "shortest", 592, 518, "bicubic"),
        (geometry("llava", 336), "shortest", 336, 336, "bicubic"),
        (geometry("llava", do_pad=False), "shortest", 224, 224, "bicubic"),
        (geometry("gemma3", 896), "squash", 896, 896, "bilinear"),
        (geometry("internvl", 448), "squash", 448, 448, "bicubic"),
        (geometry("resnet", 224, False, size=224, crop_pct=0.875), "shortest", 256, 224, "bicubic"),
        (geometry("resnet", 224, False, size={"shortest_edge": 384}), "squash", 384, 384, "bicubic"),
        (geometry("resnet", 224, False, image_processor_type="ViTImageProcessor", size=64), "squash", 64, 64, "bicubic"),
    ],
)  # fmt: skip
def test_processors_of_every_kind_and_age_become_one_geometry(
    found: Geometry, resize: str, resize_hw: int, crop_hw: int, interpolation: str
) -> None:
    assert (found.resize, found.resize_hw, found.crop_hw, found.interpolation) == (
        resize, (resize_hw, resize_hw), (crop_hw, crop_hw), interpolation,
    )  # fmt: skip


def test_normalisation_holds_for_bytes_however_the_processor_rescales_them() -> None:
    plain = geometry("vit", image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
    assert (plain.mean, plain.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    signed = geometry("vit", rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3)
    assert signed.mean == pytest.approx((0.5,) * 3) and signed.std == pytest.approx((0.5,) * 3)
    bare = geometry("vit", do_normalize=False)
    assert bare.mean == (0.0,) * 3 and bare.std == (1.0,) * 3
    raw = geometry("vit", do_rescale=False, do_normalize=False)  # bytes as they are: (x / 255) / (1 / 255)
    assert raw.std == pytest.approx((1 / 255,) * 3)
    with pytest.raises(GeometryMismatch, match="resample 4"):
        geometry("vit", resample=4)


def test_a_processor_that_pads_images_to_a_square_is_refused() -> None:
    with pytest.raises(GeometryMismatch, match=r"do_pad is true.*Set do_pad: false"):
        geometry("llava", 336, image_processor_type="LlavaImageProcessor", do_pad=True, size={"shortest_edge": 336})


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("llava", "CLIPImageProcessor"), ("gemma3", "Gemma3ImageProcessor"), ("internvl", "GotOcr2ImageProcessor")],
)
def test_without_a_file_pixels_are_normalised_as_the_librarys_processor_does(model_type: str, name: str) -> None:
    own, processor = geometry(model_type), getattr(transformers, name)
    assert (own.mean, own.std) == (tuple(processor.image_mean), tuple(processor.image_std))


def test_preprocessing_equals_the_librarys_image_processor(tmp_path: Path) -> None:
    vit(tmp_path, image_processor_type="ViTImageProcessor", size={"height": 12, "width": 12}, resample=3)
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((70, 50), Image.Resampling.BICUBIC)
    processor = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)
    expected = processor(image, return_tensors="pt").pixel_values[0]
    assert torch.allclose(load_model(ref(tmp_path)).preprocess(image), expected, atol=1e-5)


def test_dinov2_runs_at_the_size_of_its_processor_on_resized_positions(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**{key: SIZE[key] for key in SIZE if key != "intermediate_size"})
    library = save(
        transformers.Dinov2Model(config), tmp_path, size={"shortest_edge": 24}, crop_size={"height": 20, "width": 20}
    )
    model = load_model(ref(tmp_path))
    assert (model.facts.input_hw, model.facts.grid, model.facts.site("embed").positions) == ((20, 20), (5, 5), 26)
    images = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(model.embed_images(images), library(pixel_values=images).pooler_output)


def test_newer_processors_are_found_inside_the_whole_processors_file(tmp_path: Path) -> None:
    vit(tmp_path)
    content = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "size": {"height": 12, "width": 12}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert inspect_model(ref(tmp_path)).mean == (0.1, 0.2, 0.3)


# ---------------------------------------------------------------- demo models


def test_demo_models_in_the_transformers_format_are_described() -> None:
    for name in shipped.names():
        if (shipped.FOLDER / name / "config.json").is_file():
            facts = load_model(ModelRef.parse(f"demo:{name}")).facts
            assert facts.input_hw == (64, 64) and facts.family.startswith("hf_"), name
            assert facts.geometry.resize == "squash" and facts.geometry.interpolation == "bicubic"
            if "classifier" in (shipped.FOLDER / name / "config.json").read_text() or facts.classes:
                assert facts.classes is not None and facts.classes[0] == "red circle"
