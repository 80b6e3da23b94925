"""Vision-language checkpoints as zoo members: only the tower is read, under every name it ever had, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from miclip_core.explain.vlm import load_vlm
from miclip_core.zoo import demo, shipped
from miclip_core.zoo.hf import transformers
from miclip_core.zoo.load import inspect_model, load_model
from miclip_core.zoo.locate import HubFile
from schemas.errors import RemoteCodeRefused, UnknownModel, UnsafeCheckpoint, UnsupportedBlock, WeightsMissing
from schemas.models import ModelFacts
from schemas.refs import ModelRef
from tests.miclip_core.explain import vlms

Tensors = dict[str, Tensor]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FAMILIES = {"llava": ("hf_clip", 1, "tok"), "gemma3": ("hf_siglip", 0, "none"), "internvl": ("hf_internvl", 1, "none")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each type, which no test writes to."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in vlms.KINDS}
    for kind, folder in folders.items():
        vlms.save(kind, folder)
    return folders


@pytest.fixture
def llava(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A folder of its own."""
    shutil.copytree(saved["llava"], tmp_path / "llava")
    return tmp_path / "llava"


def ref(folder: Path) -> ModelRef:
    return ModelRef.parse(f"hf:mine@file:{folder}")


def last_tokens(folder: Path) -> Tensor:
    return load_model(ref(folder)).run(IMAGES, ["resid_post.2@all"])["resid_post.2@all"]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def with_names(start: str, instead: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        assert any(name.startswith(start) for name in tensors)
        return {(instead + n.removeprefix(start) if n.startswith(start) else n): t for n, t in tensors.items()}

    return change


# ---------------------------------------------------------------- what is there


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_the_tower_has_the_sites_of_its_family_and_says_who_reads_it(saved: dict[str, Path], kind: str) -> None:
    facts = inspect_model(ref(saved[kind]))
    family, n_prefix, pool = FAMILIES[kind]
    assert (facts.family, facts.n_prefix, facts.pool, facts.has_text) == (family, n_prefix, pool, False)
    assert (facts.n_blocks, facts.width, facts.grid, facts.n_heads) == (3, 32, (4, 4), 4)
    assert (facts.embed_dim is None) == (pool == "none")
    assert facts.language is not None and facts.language.model_type == kind
    assert ModelFacts.model_validate_json(facts.canonical_json()) == facts


@pytest.mark.parametrize(
    "kind", ["gemma3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llava", "internvl"))]
)
def test_pixels_are_those_of_the_librarys_processor(saved: dict[str, Path], kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((70, 50), Image.Resampling.BICUBIC)
    whole = load_vlm(ref(saved[kind]))
    images = whole.processor.image_processor
    expected = type(images)(**{**images.to_dict(), "return_tensors": "pt"})(image, return_tensors="pt").pixel_values[0]
    ours = whole.tower.preprocess(image)
    assert (
        float((ours - expected.reshape(ours.shape)).abs().max()) < 0.05
    )  # a grey level, which resizing may round away


@pytest.mark.slow
def test_models_that_nobody_reads_say_so() -> None:
    assert inspect_model(ModelRef.parse("demo:clip-p8")).language is None


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["llava", *(pytest.param(kind, marks=pytest.mark.slow) for kind in vlms.KINDS[1:])])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_tensors_are_found_under_the_names_of_every_release(
    saved: dict[str, Path], kind: str, newer: bool, nested: bool, tmp_path: Path
) -> None:
    """Towers lay in a module `vision_model` once, and the parts of the whole were not in a module `model`."""
    if nested and kind == "internvl":
        pytest.skip("its tower never was nested")
    expected = last_tokens(saved[kind])
    shutil.copytree(saved[kind], tmp_path, dirs_exist_ok=True)
    names = {"vision_tower.": "vision_tower.vision_model."} if nested else {}
    if newer:
        names = {old: f"model.{names.get(old, old)}" for old in ("vision_tower.", "multi_modal_projector.")}
        names["language_model.model."] = "model.language_model."
        names |= {"vision_tower.": "model.vision_tower.vision_model."} if nested else {}
    for old, new in names.items():
        rewrite(tmp_path, with_names(old, new))
    assert torch.equal(last_tokens(tmp_path), expected)
    whole = load_vlm(ref(tmp_path))
    assert torch.equal(whole.tower.run(IMAGES, ["resid_post.2@all"])["resid_post.2@all"], expected)


def test_only_tensors_of_the_tower_are_read(llava: Path) -> None:
    expected = last_tokens(llava)
    rewrite(llava, lambda tensors: {n: t if "vision_tower" in n else torch.zeros(1) for n, t in tensors.items()})
    assert torch.equal(last_tokens(llava), expected)
    with pytest.raises(WeightsMissing, match="have another shape"):
        load_vlm(ref(llava))


@pytest.mark.slow
def test_shards_hold_the_same_tower(saved: dict[str, Path], tmp_path: Path) -> None:
    module = vlms.make_module("llava")
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    vlms.make_processor("llava", module).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(last_tokens(tmp_path), last_tokens(saved["llava"]))


@pytest.mark.parametrize(
    "file",
    [
        "chat_template.jinja",
        *(
            pytest.param(f"{name}.json", marks=pytest.mark.slow)
            for name in ("config", "processor_config", "generation_config", "tokenizer")
        ),
    ],
)
def test_all_that_decides_what_is_said_is_part_of_the_identity(llava: Path, file: str) -> None:
    before = inspect_model(ref(llava))
    path = llava / file
    path.write_text(
        path.read_text() + " " if file.endswith("jinja") else json.dumps({**json.loads(path.read_text()), "x": 1})
    )
    after = inspect_model(ref(llava))
    assert after.weights_sha256 == before.weights_sha256 and after.files_sha256 != before.files_sha256


@pytest.mark.slow
def test_weights_of_the_language_model_are_part_of_the_identity(llava: Path) -> None:
    before = inspect_model(ref(llava))
    rewrite(llava, lambda tensors: {n: t if "vision_tower" in n else t + 1 for n, t in tensors.items()})
    assert inspect_model(ref(llava)).files_sha256 != before.files_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if "layers.2.mlp.fc1.bias" not in n}, "1 tensors of the checkpoint are missing"),
        (lambda t: {**t, "vision_tower.extra": torch.zeros(1)}, "belong to no part of the model: extra"),
        (lambda t: {n: v for n, v in t.items() if "vision_tower" not in n}, "no tensor of the checkpoint is called vision"),
    ],
)  # fmt: skip
def test_a_tower_loads_completely_or_not_at_all(
    llava: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    rewrite(llava, change)
    with pytest.raises(WeightsMissing, match=message):
        load_model(ref(llava))


# ---------------------------------------------------------------- what is refused


def test_pickles_are_refused(llava: Path) -> None:
    torch.save(load_file(llava / "model.safetensors"), llava / "pytorch_model.bin")
    (llava / "model.safetensors").unlink()
    with pytest.raises(UnsafeCheckpoint, match="safetensors alone are read"):
        inspect_model(ref(llava))


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_refused_before_weights_are_asked_for(llava: Path, file: str) -> None:
    vlms.edit_json(llava / file, auto_map={"AutoProcessor": "own.Processor"})
    asked: list[str] = []

    def fetch(request: Any) -> Path:
        asked.append(request.file)
        if not (llava / request.file).is_file():
            raise FileNotFoundError(request.file)
        return llava / request.file

    with pytest.raises(RemoteCodeRefused, match=f"{file} has `auto_map`"):
        inspect_model(ModelRef.parse("hf:org/own"), fetch)
    assert "model.safetensors" not in asked


def test_types_that_are_not_known_are_answered_with_those_that_are(llava: Path) -> None:
    config = json.loads((llava / "config.json").read_text())
    for changes, message in (
        ({"model_type": "llava_next"}, r"type 'llava_next' are not known; known are llava, gemma3, internvl, .*not cut into tiles"),
        ({"vision_config": {**config["vision_config"], "model_type": "pixtral"}},
         r"a llava with a vision tower of type 'pixtral'; known are clip_vision_model, siglip"),
    ):  # fmt: skip
        vlms.edit_json(llava / "config.json", **{**config, **changes})
        with pytest.raises(UnsupportedBlock, match=message):
            inspect_model(ref(llava))


def test_a_whole_has_no_random_weights() -> None:
    with pytest.raises(UnknownModel, match=r"read from a checkpoint; .* hf:clip_vision_model/random\(0\)"):
        inspect_model(ModelRef.parse("hf:gemma3/random(0)"))


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ([1, 2], "block 0, block 1 of its vision tower"),
        (0, "reads the tokens before the first block"),
        (9, "hidden state 9 of a tower of 3 blocks"),
    ],
)
def test_a_language_model_that_reads_no_single_block_is_refused(llava: Path, reads: Any, message: str) -> None:
    vlms.edit_json(llava / "config.json", vision_feature_layer=reads)
    with pytest.raises(UnsupportedBlock, match=message):
        inspect_model(ref(llava))


@pytest.mark.parametrize(("reads", "block"), [(-1, 2), (1, 0)])
def test_the_block_that_is_read_may_be_counted_from_either_end(llava: Path, reads: int, block: int) -> None:
    vlms.edit_json(llava / "config.json", vision_feature_layer=reads)
    language = inspect_model(ref(llava)).language
    assert language is not None and (language.reads_block, language.reads) == (block, f"resid_post.{block}")


@pytest.mark.slow
def test_a_class_token_may_be_shown_too(llava: Path) -> None:
    vlms.edit_json(llava / "config.json", vision_feature_select_strategy="full")
    language = inspect_model(ref(llava)).language
    assert language is not None and language.image_tokens == 17


# ---------------------------------------------------------------- shipped and fetched ones


def test_a_shipped_folder_with_a_vlm_is_read_as_one(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved["llava"], tmp_path / "llava-tiny")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    vlm = load_vlm(ModelRef.parse("demo:llava-tiny"))
    assert vlm.tower.facts.model == "demo:llava-tiny" and vlm.language.reads_block == 1
    assert demo.recipe(ModelRef.parse("demo:llava-tiny"), lambda _: tmp_path).language is not None


def test_a_hub_is_asked_for_all_that_the_processor_reads(saved: dict[str, Path]) -> None:
    asked: list[HubFile] = []

    def fetch(request: Any) -> Path:
        asked.append(request)
        if not (saved["internvl"] / request.file).is_file():
            raise FileNotFoundError(request.file)
        return saved["internvl"] / request.file

    vlm = load_vlm(ModelRef.parse("hf:org/internvl@abc"), fetch)
    wanted = {path.name for path in saved["internvl"].iterdir()}
    assert wanted <= {request.file for request in asked} and vlm.language.model_type == "internvl"


@pytest.mark.slow
def test_a_llava_may_have_siglip_as_its_tower(tmp_path: Path) -> None:
    """With its head, which the language model does not read."""
    module = vlms.make_module("llava")
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**vlms.SIZE),
        text_config=module.config.text_config,
        image_token_index=module.config.image_token_index,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    other = transformers.LlavaForConditionalGeneration(config)
    other.save_pretrained(tmp_path)
    facts = inspect_model(ref(tmp_path))
    assert (facts.family, facts.pool, facts.embed_dim) == ("hf_siglip", "map", 32)
    assert facts.language is not None and facts.language.reads == "resid_post.2"
