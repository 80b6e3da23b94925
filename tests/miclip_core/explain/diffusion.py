"""A tiny Stable Diffusion with weights of a seed, as a folder; needs diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from miclip_core.dissect.library import transformers
from miclip_core.world.tokens import BOS, CONTEXT, EOS, PAD, VOCABULARY, save_tokenizer
from miclip_core.zoo.random_weights import fill_random

SIZE = 32


def stable_diffusion(folder: Path, safety: bool = False) -> Any:
    """A StableDiffusionPipeline of 32 x 32 pixels that reads the demo world's vocabulary; with or without a safety checker."""
    import diffusers

    blocks: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE // 2, in_channels=4, out_channels=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **blocks,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        latent_channels=4, sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks,
    )  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    reads = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "max_position_embeddings": CONTEXT}
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=len(VOCABULARY), **sizes, **reads))
    checker = {"safety_checker": None, "feature_extractor": None}
    if safety:
        vision = {**sizes, "image_size": SIZE, "patch_size": 8}
        config = transformers.CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
        judge = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(config)
        size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
        checker = {"safety_checker": judge, "feature_extractor": transformers.CLIPImageProcessor(**size)}
    for number, model in enumerate((unet, vae, text)):
        fill_random(model, number)
    save_tokenizer(folder / "words")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "words")
    tokenizer.backend_tokenizer.normalizer = None  # so that "Red" is no word
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text, tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(), requires_safety_checker=safety, **checker,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
