"""The vision-language model's parts: the tower is the CLIP's own, the prompt holds images alone, the folder is transformers' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from PIL import Image

from miclip_core.world.evaluate import held_out, pixels_of
from miclip_core.world.evaluate_vlm import say
from miclip_core.world.recipes import VLM
from miclip_core.world.render import render_scenes
from miclip_core.world.tokens import BOS, EOS, VOCABULARY
from miclip_core.world.towers import load_model
from miclip_core.world.vlm import IMAGE, image_tokens, load_library_vlm, make_vlm, project_tokens, save_vlm
from miclip_core.zoo.shipped import FOLDER

TINY = replace(
    VLM, architecture={**VLM.architecture, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    vlm = make_vlm(TINY)
    save_vlm(vlm, folder)
    return vlm, folder


@torch.no_grad()
def test_the_projector_reads_the_patches_of_the_clips_last_block_but_one():
    clip, pixels = load_model(FOLDER / VLM.tower), pixels_of(held_out(3))
    blocks = clip.visual.forward_intermediates(pixels, indices=[3, 4], output_fmt="NLC")["image_intermediates"]
    assert torch.equal(image_tokens(make_vlm(TINY), pixels), blocks[0])
    assert torch.equal(image_tokens(make_vlm(replace(TINY, reads=-1)), pixels), blocks[1])


def test_only_the_language_model_and_the_projector_learn(saved):
    vlm, _ = saved
    still = {name for name, parameter in vlm.named_parameters() if not parameter.requires_grad}
    assert still == {name for name, _ in vlm.named_parameters() if ".vision_tower." in name}


def test_the_prompt_holds_a_placeholder_per_patch_and_no_question(saved):
    _, folder = saved
    processor = load_library_vlm(folder)[1]
    images, _ = render_scenes(held_out(2))
    shown = [{"type": "image", "image": Image.fromarray(image)} for image in images]
    message = {"role": "user", "content": [*shown, {"type": "text", "text": "What is this, a red circle?"}]}
    given = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert given["input_ids"].tolist() == [[IMAGE] * 2 * 64 + [BOS]]
    torch.testing.assert_close(given["pixel_values"], pixels_of(held_out(2)), atol=1e-6, rtol=0)
    assert processor.tokenizer("a red circle").input_ids == [VOCABULARY.index(w) for w in ("a", "red", "circle")]
    assert (
        processor.tokenizer.decode([BOS, *map(VOCABULARY.index, ("the", "word")), EOS], skip_special_tokens=True)
        == "the word"
    )


@torch.no_grad()
def test_the_librarys_own_generation_says_what_we_read_from_tokens(saved):
    vlm, folder = saved
    loaded, processor = load_library_vlm(folder)
    assert isinstance(loaded, transformers.LlavaForConditionalGeneration)
    for name, weight in vlm.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.half().float(), atol=0, rtol=0)
    pixels = pixels_of(held_out(4))
    ids = torch.tensor([[IMAGE] * 128 + [BOS]] * 2)
    shown = {"image": project_tokens(loaded, image_tokens(loaded, pixels))}
    by_tokens, by_pixels = (
        loaded(input_ids=ids, **how).logits for how in ({"mm_encoder_outputs": shown}, {"pixel_values": pixels})
    )
    assert torch.equal(by_tokens, by_pixels) and by_pixels[:, -1].std() > 0.01
    out = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    theirs = processor.batch_decode(out[:, 129:])
    assert say(loaded, image_tokens(loaded, pixels), 2) == theirs
