"""Small vision-language models of the three known types with random weights, as folders and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from miclip_core.explain.vlm import Vlm, load_vlm
from miclip_core.zoo.hf import transformers
from miclip_core.zoo.random_weights import fill_random
from schemas.refs import ModelRef

Kind = Literal["llava", "gemma3", "internvl"]
KINDS: tuple[Kind, ...] = ("llava", "gemma3", "internvl")

# Special tokens by type, under the names by which the processors ask for them.
SPECIAL: dict[Kind, dict[str, str]] = {
    "llava": {"image_token": "<image>"},
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
}
SHOWN: dict[Kind, str] = {"llava": "<image>", "gemma3": "<start_of_image>", "internvl": "<IMG_CONTEXT>"}
"""How a chat template writes one image."""
WORDS = (
    "the",
    "image",
    "element",
    "you",
    "are",
    "given",
    "describe",
    "is",
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "bird",
)
BASIC = ("<pad>", "<bos>", "<eos>", "<unk>")

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
"""Of the vision tower: 4 x 4 patches."""
TEXT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "intermediate_size": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


WIDE: dict[Kind, dict[str, Any]] = {
    "llava": {
        "vision": {"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4096,
                   "image_size": 336, "patch_size": 14},
        "text": {**TEXT, "num_hidden_layers": 1, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128},
    },
    "gemma3": {
        "vision": {"hidden_size": 1152, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4304,
                   "image_size": 896, "patch_size": 14},
        "text": {**TEXT, "num_hidden_layers": 1, "hidden_size": 2560, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
        "mm_tokens_per_image": 256,
    },
    "internvl": {
        "vision": {"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4096,
                   "image_size": 448, "patch_size": 14},
        "text": {**TEXT, "num_hidden_layers": 1, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2},
    },
}  # fmt: skip
"""Options of `make_module`: towers and widths of llava-1.5-7b, gemma-3-4b and InternVL3-1B, with few blocks."""


def vocabulary(kind: Kind, words: Sequence[str] = WORDS) -> dict[str, int]:
    """Token -> id."""
    return {word: i for i, word in enumerate((*BASIC, *SPECIAL[kind].values(), *words))}


def make_tokenizer(kind: Kind, words: Sequence[str] = WORDS) -> Any:
    """A tokeniser of whole words with the special tokens of the type; every word it does not know is `<unk>`."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(kind, words), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*BASIC, *SPECIAL[kind].values())])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=SPECIAL[kind],
        model_max_length=2048,
        padding_side="left",
    )


def chat_template(kind: Kind) -> str:
    """Images and texts of a turn in their order, then the beginning of the answer."""
    return (
        "<bos>{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + SHOWN[kind]
        + "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} is{% endif %}"
    )


def make_module(
    kind: Kind,
    vision: dict[str, Any] = SIZE,
    text: dict[str, Any] = TEXT,
    seed: int = 0,
    words: Sequence[str] = WORDS,
    **more: Any,
) -> Any:
    """The library's whole model with weights of a seed. more: of its configuration, such as `vision_feature_layer`."""
    ids = vocabulary(kind, words)
    text = {**text, "vocab_size": len(ids), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    patches = vision["image_size"] // vision["patch_size"]
    config: Any
    match kind:
        case "llava":
            config = transformers.LlavaConfig(
                vision_config=transformers.CLIPVisionConfig(**vision),
                text_config=transformers.LlamaConfig(**text),
                image_token_index=ids["<image>"],
                image_seq_length=patches**2,
                tie_word_embeddings=True,
                **more,
            )
        case "gemma3":
            config = transformers.Gemma3Config(
                vision_config=transformers.SiglipVisionConfig(**vision, vision_use_head=False),
                text_config=transformers.Gemma3TextConfig(**text, query_pre_attn_scalar=16, sliding_window=512),
                image_token_index=ids["<image_soft_token>"],
                boi_token_index=ids["<start_of_image>"],
                eoi_token_index=ids["<end_of_image>"],
                **{"mm_tokens_per_image": (patches // 2) ** 2, **more},
            )
        case "internvl":
            config = transformers.InternVLConfig(
                vision_config=transformers.InternVLVisionConfig(**vision, attention_bias=True),
                text_config=transformers.Qwen2Config(**{k: v for k, v in text.items() if k != "head_dim"}),
                image_token_id=ids["<IMG_CONTEXT>"],
                image_seq_length=(patches // 2) ** 2,
                **more,
            )
    module = CLASSES[kind](config)
    fill_random(module, seed)
    return module.eval()


CLASSES: dict[Kind, Any] = {
    "llava": transformers.LlavaForConditionalGeneration,
    "gemma3": transformers.Gemma3ForConditionalGeneration,
    "internvl": transformers.InternVLForConditionalGeneration,
}


def make_processor(kind: Kind, module: Any, words: Sequence[str] = WORDS) -> Any:
    """The library's processor of the type, whose images are squashed to the tower's size."""
    vision, tokenizer, template = module.config.vision_config, make_tokenizer(kind, words), chat_template(kind)
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    size = {"height": side, "width": side}
    match kind:
        case "llava":
            images = transformers.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
            return transformers.LlavaProcessor(
                images,
                tokenizer,
                patch_size=vision.patch_size,
                vision_feature_select_strategy="default",
                chat_template=template,
                num_additional_image_tokens=1,
            )
        case "gemma3":
            return transformers.Gemma3Processor(
                transformers.Gemma3ImageProcessor(size=size),
                tokenizer,
                chat_template=template,
                image_seq_length=module.config.mm_tokens_per_image,
            )
        case "internvl":
            return transformers.InternVLProcessor(
                transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=False),
                tokenizer,
                transformers.InternVLVideoProcessor(size=size),
                image_seq_length=module.config.image_seq_length,
                chat_template=template,
            )


def save(kind: Kind, folder: Path, words: Sequence[str] = WORDS, **options: Any) -> ModelRef:
    """Write model and processor as the library does; options: see `make_module`."""
    module = make_module(kind, words=words, **options)
    module.save_pretrained(folder)
    make_processor(kind, module, words).save_pretrained(folder)
    return ModelRef.parse(f"hf:{kind}@file:{folder}")


def tiny_vlm(kind: Kind, folder: Path, **options: Any) -> Vlm:
    """A small model written to a folder and loaded from there."""
    return load_vlm(save(kind, folder, **options))


def edit_json(path: Path, **entries: Any) -> None:
    """Change entries of a JSON file of a folder."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def images(vlm: Vlm, count: int, seed: int = 0) -> torch.Tensor:
    """Normalised noise images [count, 3, h, w]."""
    return torch.randn(count, 3, *vlm.tower.facts.input_hw, generator=torch.Generator().manual_seed(seed)).to(vlm.dtype)
