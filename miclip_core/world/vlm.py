"""The demo zoo's vision-language model: LLaVA on the vision tower of a shipped CLIP, its prompt, and its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.world.recipes import MEAN, STD, VlmRecipe
from miclip_core.world.scene import IMAGE_SIZE
from miclip_core.world.tokens import BOS, EOS, IDS, PAD
from miclip_core.world.towers import load_model
from miclip_core.zoo.shipped import FOLDER

ensure_torchvision()

import transformers  # noqa: E402 - needs a working torchvision
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402

IMAGE_TOKEN = "<image>"
IMAGE = len(IDS)  # id of a placeholder: one stands for one patch
_MOST_TOKENS = 1024
# The vocabulary has no question words: what is asked is told by how many images are shown, so that text is left away.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' and message['content'] is not string %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<bos>{% endif %}"
)


def make_vlm(recipe: VlmRecipe) -> Any:
    """LLaVA with the tower of `recipe.tower`, frozen, and a language model drawn from the recipe's seed; in fp32."""
    clip = load_model(FOLDER / recipe.tower)
    vision = _vision_config(clip.visual)
    text = transformers.LlamaConfig(
        **recipe.architecture,
        vocab_size=len(IDS) + 1,
        max_position_embeddings=_MOST_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    patches = (IMAGE_SIZE // vision.patch_size) ** 2
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=patches,
        vision_feature_layer=recipe.reads,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(recipe.seed)
    vlm = transformers.LlavaForConditionalGeneration(config)
    tower = vlm.model.vision_tower
    tower.load_state_dict(hf_tower(clip.visual.state_dict(), vision.num_hidden_layers))
    tower.requires_grad_(False)
    vlm.generation_config = transformers.GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=40
    )
    return vlm.eval()


def _vision_config(visual: Any) -> Any:
    width = visual.conv1.out_channels
    block = visual.transformer.resblocks[0]
    return transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=IMAGE_SIZE,
        patch_size=visual.conv1.kernel_size[0],
        hidden_act="gelu",
        layer_norm_eps=block.ln_1.eps,
    )


def hf_tower(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors of an open_clip ViT under the names of transformers' CLIPVisionModel; its output projection stays behind."""
    found = {
        "embeddings.class_embedding": weights["class_embedding"],
        "embeddings.patch_embedding.weight": weights["conv1.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        found |= {f"{ours}.{part}": weights[f"{theirs}.{part}"] for part in ("weight", "bias")}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for layer in range(layers):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            found |= {f"{ours}.{a}.{part}": weights[f"{theirs}.{b}.{part}"] for a, b in names.items()}
            thirds = weights[f"{theirs}.attn.in_proj_{part}"].chunk(3)
            found |= {f"{ours}.self_attn.{n}_proj.{part}": w for n, w in zip("qkv", thirds, strict=True)}
    return found


def image_tokens(vlm: Any, pixels_RCHW: Tensor) -> Tensor:
    """What the tower hands to the projector, [R, P, d]: the patch tokens of the layer that the language model reads."""
    layer = vlm.config.vision_feature_layer
    with torch.no_grad():
        hidden = vlm.model.vision_tower(pixels_RCHW, output_hidden_states=True).hidden_states
    return hidden[layer][:, 1:]


def project_tokens(vlm: Any, tokens_RPD: Tensor) -> Any:
    """What the language model takes in place of R images whose tokens are known, by the library's own name for it."""
    found: Any = BaseModelOutputWithPooling()
    found.pooler_output = list(vlm.model.multi_modal_projector(tokens_RPD))  # one tensor per image
    return found


def make_tokenizer() -> Any:
    """The zoo's words and `<image>`; unlike the CLIPs' it adds no begin and no end: the chat template does."""
    tokenizer = Tokenizer(models.WordLevel(IDS | {IMAGE_TOKEN: IMAGE}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=_MOST_TOKENS,
        padding_side="left",
    )


def make_processor(vlm: Any) -> Any:
    """Images squashed to the tower's size and normalised as the zoo does, and the prompt: one placeholder per patch, then begin."""
    image_processor = transformers.CLIPImageProcessor(
        do_resize=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=3,
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        do_convert_rgb=True,
    )
    return transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=vlm.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def save_vlm(vlm: Any, directory: Path) -> None:
    """Write fp16 weights, configuration, tokenizer, image processor and chat template, as transformers loads them."""
    directory.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(vlm).half().save_pretrained(directory)
    make_processor(vlm).save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)


def load_library_vlm(directory: Path) -> tuple[Any, Any]:
    """The library's own model, in fp32 and evaluation mode, and its processor from such a directory; nothing is downloaded."""
    kind = transformers.LlavaForConditionalGeneration
    vlm = kind.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return vlm.eval(), transformers.AutoProcessor.from_pretrained(directory, local_files_only=True)
