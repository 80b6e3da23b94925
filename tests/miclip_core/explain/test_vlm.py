"""Vision-language models: our tower with the library's projection says what the library says of pixels, word for word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from miclip_core.explain.vlm import Vlm, load_vlm
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.stand_in import project
from miclip_core.zoo.start import CachedBlock
from schemas.errors import NoLanguageModel, UnknownModel
from schemas.refs import ModelRef, Site
from tests.miclip_core.explain import vlms
from tests.miclip_core.explain.conftest import Speaker, stir

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(params=vlms.KINDS)
def vlm(request: pytest.FixtureRequest, speaker: Speaker) -> Vlm:
    return speaker(request.param)


def question(vlm: Vlm, images: int) -> dict[str, Tensor]:
    """One turn as the library's processor makes it; pixels aside."""
    shown = [
        {"type": "image", "image": torch.zeros(3, *vlm.tower.facts.input_hw, dtype=torch.uint8)} for _ in range(images)
    ]
    told: Any = vlm.processor.apply_chat_template(
        [{"role": "user", "content": [*shown, {"type": "text", "text": "describe the image"}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return {name: value for name, value in told.items() if name in ("input_ids", "attention_mask", "token_type_ids")}


@dataclass
class Said:
    """The words of an answer, and the scores of the first."""

    words: Tensor
    scores: Tensor


def say(vlm: Vlm, asked: dict[str, Tensor], **images: Any) -> Said:
    out = vlm.module.generate(**asked, **images, **GREEDY, return_dict_in_generate=True, output_logits=True)
    return Said(out.sequences[0, asked["input_ids"].shape[1] :], out.logits[0][0])


def from_tokens(vlm: Vlm, tokens_RTD: Tensor) -> dict[str, Any]:
    """What stands for pixels in a call of the library."""
    features: Any = project(vlm.module, tokens_RTD, vlm.tower.facts.n_blocks)[0]
    features = list(features) if vlm.language.model_type == "llava" else features
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}


def read_tokens(vlm: Vlm, images: Tensor | None, edits: tuple[Edit, ...] = (), **how: Any) -> Tensor:
    site = f"{vlm.language.reads}@all"
    return vlm.tower.run(images, [site], edits, **how)[site]


def assert_speaks_as_the_library(vlm: Vlm, images_shown: int = 2) -> None:
    """As a model that the library loaded by itself: images in one question, the same words and scores to the bit."""
    folder = str(ModelRef.parse(vlm.tower.facts.model).location).removeprefix("file:")
    module = type(vlm.module).from_pretrained(folder, dtype=vlm.dtype).eval()
    library = replace(vlm, module=module)
    stir(library)
    module.lm_head.to(vlm.dtype)
    asked, images = question(vlm, images_shown), vlms.images(vlm, images_shown)
    expected = say(library, asked, pixel_values=images)
    ours = say(vlm, asked, **from_tokens(vlm, read_tokens(vlm, images)))
    assert torch.equal(ours.words, expected.words) and torch.equal(ours.scores, expected.scores)
    other = say(vlm, asked, **from_tokens(vlm, read_tokens(vlm, images.flip(3))))
    assert float((other.scores - expected.scores).abs().max()) > 1e-3


def test_our_tower_and_the_librarys_projection_say_what_the_library_says(vlm: Vlm) -> None:
    assert_speaks_as_the_library(vlm)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "positions", "shown"), [("llava", 577, 576), ("gemma3", 4096, 256), ("internvl", 1025, 256)]
)
def test_at_the_widths_of_published_models(kind: vlms.Kind, positions: int, shown: int, tmp_path: Path) -> None:
    vlm = vlms.tiny_vlm(kind, tmp_path, **vlms.WIDE[kind])
    stir(vlm)
    assert (vlm.tower.facts.site("embed").positions, vlm.language.image_tokens) == (positions, shown)
    assert_speaks_as_the_library(vlm, images_shown=1)


def test_a_pass_that_starts_late_says_the_same(vlm: Vlm) -> None:
    images, asked = vlms.images(vlm, 1), question(vlm, 1)
    whole = vlm.tower.run(images, ["resid_pre.1@all"])["resid_pre.1@all"]
    late = read_tokens(vlm, None, start=CachedBlock("resid_pre.1", whole))
    assert torch.equal(say(vlm, asked, **from_tokens(vlm, late)).scores, say(vlm, asked, pixel_values=images).scores)


def test_edits_up_to_the_block_that_is_read_reach_the_words_and_later_ones_do_not(vlm: Vlm) -> None:
    """By hooks of the library alone, so that the facts are checked against what it does."""
    images, asked, seen = vlms.images(vlm, 1), question(vlm, 1), []
    blocks = next(part for part in vlm.tower.module.modules() if isinstance(part, torch.nn.ModuleList))
    plain = say(vlm, asked, pixel_values=images).scores
    for block in blocks:
        handle = block.register_forward_hook(lambda module, args, output: output + 1.0, prepend=True)
        seen.append(not torch.equal(say(vlm, asked, pixel_values=images).scores, plain))
        handle.remove()
    reads = vlm.language.reads_block
    assert seen == [block <= reads for block in range(vlm.tower.facts.n_blocks)]


def test_an_edit_of_ours_is_the_librarys_own_pass_with_a_hook(vlm: Vlm) -> None:
    images, asked, vector = vlms.images(vlm, 1), question(vlm, 1), torch.linspace(-1, 1, vlm.tower.facts.width)
    edit = Edit(Site.parse("resid_post.0"), "add", vector)
    ours = say(vlm, asked, **from_tokens(vlm, read_tokens(vlm, images, (edit,)))).scores
    block = next(part for part in vlm.tower.module.modules() if isinstance(part, torch.nn.ModuleList))[0]
    handle = block.register_forward_hook(lambda module, args, output: output + vector)
    theirs = say(vlm, asked, pixel_values=images).scores
    handle.remove()
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_facts_of_the_language_model_are_the_librarys(vlm: Vlm) -> None:
    module, language = vlm.module, vlm.language
    text = module.get_input_embeddings()
    tower = sum(p.numel() for p in module.model.vision_tower.parameters())
    reads = {"llava": (1, "resid_post.1", 16), "gemma3": (2, "lnf_out", 4), "internvl": (2, "resid_post.2", 4)}
    assert (language.reads_block, language.reads, language.image_tokens) == reads[language.model_type]
    assert (language.width, language.layers) == (text.embedding_dim, 2)
    # The fixture gave the model an output matrix of its own.
    assert language.params + tower == sum(p.numel() for p in module.parameters()) - module.lm_head.weight.numel()
    assert vlm.tower.facts.params == tower and vlm.tower.module is module.model.vision_tower


def test_nothing_takes_gradients_and_fp32_stays_fp32(vlm: Vlm) -> None:
    assert {p.dtype for p in vlm.module.parameters()} == {torch.float32}
    assert not any(module.training for module in vlm.module.modules())
    assert not any(p.requires_grad for p in vlm.module.parameters())


# ---------------------------------------------------------------- from folders


def test_the_tower_alone_is_that_of_the_whole(vlm: Vlm) -> None:
    alone = load_model(ModelRef.parse(vlm.tower.facts.model))
    assert alone.facts == vlm.tower.facts and sum(p.numel() for p in alone.module.parameters()) == alone.facts.params
    images, sites = vlms.images(vlm, 2), [site.path for site in alone.facts.sites]
    ours, theirs = vlm.tower.run(images, sites), alone.run(images, sites)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["llava", *(pytest.param(kind, marks=pytest.mark.slow) for kind in vlms.KINDS[1:])])
def test_half_precision_says_what_the_library_says_in_it(kind: vlms.Kind, speaker: Speaker) -> None:
    vlm = load_vlm(ModelRef.parse(speaker(kind).tower.facts.model), dtype=torch.bfloat16)
    assert {p.dtype for p in vlm.module.parameters()} == {torch.bfloat16} and vlm.dtype == torch.bfloat16
    stir(vlm)
    vlm.module.lm_head.to(torch.bfloat16)
    assert_speaks_as_the_library(vlm)


def test_which_tokens_end_a_text_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    ref = vlms.save("llava", tmp_path)
    vlms.edit_json(tmp_path / "generation_config.json", eos_token_id=[2, 5])
    assert load_vlm(ref).module.generation_config.eos_token_id == [2, 5]


def test_a_model_without_words_is_refused() -> None:
    with pytest.raises(NoLanguageModel, match="writes no text; name a vision-language model"):
        load_vlm(ModelRef.parse("hf:vit/random(0)"))


def test_a_checkpoint_without_a_processor_is_refused(tmp_path: Path) -> None:
    ref = vlms.save("llava", tmp_path)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UnknownModel, match="no processor that transformers knows"):
        load_vlm(ref)
