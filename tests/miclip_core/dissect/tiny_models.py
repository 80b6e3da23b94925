"""Tiny checkpoints of real architectures with weights of a seed, as folders that `save_pretrained` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from miclip_core.dissect.library import transformers
from miclip_core.world.tokens import BOS, CONTEXT, EOS, PAD, VOCABULARY, save_tokenizer
from miclip_core.zoo.random_weights import fill_random

VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip
CHAT = "{% for m in messages %}USER: {% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }} {% endfor %}{% endfor %}ASSISTANT:"


def clipseg(folder: Path) -> Any:
    """A CLIPSeg of 32 x 32 pixels with the demo world's vocabulary; the library's own model is returned."""
    sizes = {"projection_dim": 10, "reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    config = transformers.CLIPSegConfig(text_config=TEXT, vision_config=VISION, extract_layers=[0, 2], **sizes)
    model = transformers.CLIPSegForImageSegmentation(config).eval()
    fill_random(model, 0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pictures = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    transformers.CLIPSegProcessor(pictures, tokenizer).save_pretrained(folder)
    return model


def llava(folder: Path, chat_template: str | None = CHAT, seed: int = 0) -> Any:
    """A LLaVA of 32 x 32 pixels with some forty words; the library's own model is returned."""
    pictures = transformers.CLIPImageProcessor(**_PICTURES)
    processor = transformers.LlavaProcessor(pictures, _words(), chat_template=chat_template, **_PLACES)
    return _save(folder, processor, transformers.LlavaForConditionalGeneration, transformers.LlavaConfig, seed)


def llava_next(folder: Path) -> Any:
    """A LLaVA-NeXT, whose questions are longer for larger pictures; the library's own model is returned."""
    tiles = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
    pictures = transformers.LlavaNextImageProcessor(**_PICTURES, **tiles)
    processor = transformers.LlavaNextProcessor(pictures, _words(), chat_template=CHAT, **_PLACES)
    kinds = transformers.LlavaNextForConditionalGeneration, transformers.LlavaNextConfig
    return _save(folder, processor, *kinds, 0, **tiles)


_WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", "ASSISTANT", ":", "describe", "this", *VOCABULARY[4:-1]]
_PICTURES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
_PLACES = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def _words() -> Any:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def _save(folder: Path, processor: Any, kind: Any, settings: Any, seed: int, **more: Any) -> Any:
    language = transformers.LlamaConfig(
        vocab_size=len(_WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(**VISION)
    model = kind(settings(vision_config=vision, text_config=language, image_token_index=4, **more)).eval()
    fill_random(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
