"""The demo zoo's members as data: architecture, seed, image distributions and schedule of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from miclip_core.generate.seeds import TRAINING_SEED
from miclip_core.world.captions import CaptionMix
from miclip_core.world.scene import IMAGE_SIZE, World
from miclip_core.world.tokens import CONTEXT, VOCABULARY

MEAN, STD = 0.45, 0.27  # of every channel, in all members
DENSE_WORLD = World(objects=(0, 0, 0, 0, 1), text=0.1, watermark=0.05)
CAPTION_WORLD = World(objects=(0, 0.65, 0.35), text=0.25, watermark=0.05)
LABEL_WORLD = World(objects=(0, 1), text=0.1, watermark=0.02)


@dataclass(frozen=True)
class Schedule:
    """AdamW under a cosine learning rate: `steps` batches of `batch` fresh images from `world`, from index `first` on."""

    world: World
    steps: int
    batch: int
    rate: float
    first: int = 0


@dataclass(frozen=True)
class Recipe:
    """How one member is made: `dense` supervises patches with the pixel truth, `contrast` pairs images with captions, `labels` trains a classifier."""

    name: str
    family: Literal["clip", "vit", "resnet"]
    seed: int
    architecture: dict[str, Any]
    dense: Schedule | None = None
    contrast: Schedule | None = None
    labels: Schedule | None = None
    captions: CaptionMix = field(default_factory=CaptionMix)
    loss: Literal["clip", "siglip"] = "clip"
    dense_weight: float = 0.3  # of the patch loss during `contrast`
    reads_words: bool = False  # patches are also supervised with the rendered word
    patch: int = 8  # pixels on a side of what one dense head sees
    background_pixels: int | None = None

    @property
    def library(self) -> str:
        """Whose format its files have."""
        return "open_clip" if self.family == "clip" else "transformers"

    @property
    def patch_targets(self) -> bool:
        """Whether single patches were supervised."""
        return self.dense is not None

    @property
    def title(self) -> str:
        """What it is, for people."""
        if self.family == "resnet":
            biased = self.labels is not None and self.labels.world.watermark_shape is not None
            return "supervised ResNet" + (", biased by a watermark" if biased else "")
        if self.family == "vit":
            return "ViT without names, transformers format"
        vision = self.architecture["vision_cfg"]
        patch = vision.get("patch_size")
        body = f"ViT, patch {patch}" if patch else "ResNet"
        reads = ", reads rendered words" if self.reads_words else ""
        return f"{'SigLIP' if self.loss == 'siglip' else 'CLIP'} {body}{reads}"


def _clip(vision: dict[str, Any], width: int = 96, **scale: float) -> dict[str, Any]:
    text = {"context_length": CONTEXT, "vocab_size": len(VOCABULARY), "hf_tokenizer_name": "demo-world"}
    return {
        "embed_dim": width,
        "vision_cfg": {"image_size": IMAGE_SIZE, **vision},
        "text_cfg": {**text, "width": width, "heads": 3, "layers": 2},
        **scale,
    }


def _dense(steps: int, **world: Any) -> Schedule:
    return Schedule(replace(DENSE_WORLD, **world), steps, batch=32, rate=2e-3)


def _contrast(steps: int, **world: Any) -> Schedule:
    return Schedule(replace(CAPTION_WORLD, **world), steps, batch=96, rate=1e-3, first=200_000)


_VIT_P8 = {"patch_size": 8, "width": 96, "layers": 5, "head_width": 32}
_VIT_P16 = {"patch_size": 16, "width": 128, "layers": 5, "head_width": 32}
_RN = {"layers": [1, 1, 1, 1], "width": 16}
_RESNET = {"embedding_size": 24, "hidden_sizes": [24, 48, 96, 128], "depths": [1, 1, 1, 1], "layer_type": "basic"}
# A cell of the ResNet's last map is a quadrant: it always shows an object, and the background around it.
_QUADRANT: dict[str, Any] = {"patch": 32, "background_pixels": 256}

_RECIPES = (
    Recipe("clip-p8", "clip", 0, _clip(_VIT_P8), _dense(3000), _contrast(800)),
    Recipe("clip-p8-b", "clip", 1, _clip(_VIT_P8), _dense(3000), _contrast(800)),
    Recipe("clip-p16", "clip", 3, _clip(_VIT_P16), _dense(3200), _contrast(800), patch=16),
    Recipe("clip-rn", "clip", 4, _clip(_RN), _dense(600), _contrast(450), **_QUADRANT),
    Recipe(
        "siglip-p8",
        "clip",
        2,
        _clip(_VIT_P8, init_logit_scale=2.302585092994046, init_logit_bias=-4.0),
        _dense(3000),
        _contrast(900),
        loss="siglip",
    ),
    Recipe(
        "clip-rn-typo",
        "clip",
        6,
        _clip(_RN),
        _dense(1200, text=0.8),
        _contrast(600, text=0.5),
        captions=CaptionMix(misread=0.5),
        reads_words=True,
        **_QUADRANT,
    ),
    Recipe("resnet-sup", "resnet", 7, _RESNET, labels=Schedule(LABEL_WORLD, 2500, 64, 3e-3, 400_000)),
    Recipe(
        "resnet-sup-wm",
        "resnet",
        8,
        _RESNET,
        labels=Schedule(
            replace(LABEL_WORLD, watermark_shape="star", watermark_given_shape=0.98), 1600, 64, 3e-3, 400_000
        ),
    ),
    Recipe("vit-dense", "vit", 9, {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}, _dense(4000)),
    # Not shipped: small enough to be trained wherever the tests run, to show that the trainer does what it says.
    Recipe("quick", "clip", 5, _clip(_RN), _dense(320), replace(_contrast(60), batch=48), **_QUADRANT),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


@dataclass(frozen=True)
class GeneratorRecipe:
    """How the generator is made: regression on the true images of latents, under Adam with a cosine learning rate.

    near: weight of a pixel at the object over one of the background. shrunk: chance of a latent that is scaled down, as
    those are on which an optimiser works that keeps latents small. sharpness: of the choices that it is trained on, one
    value more often than what it then draws. seed: of its latents, which no image set can have.
    """

    name: str
    seed: int
    coarse: tuple[int, ...]
    fine: tuple[int, ...]
    style: int
    memory: int
    steps: int
    batch: int
    rate: float
    near: float
    square: float  # weight of the squared error beside the absolute one
    shrunk: float
    sharpness: float

    library = "miclip"
    patch_targets = False
    title = "generator of images of one object, from 30 numbers"

    @property
    def architecture(self) -> dict[str, Any]:
        """What a decoder is built from."""
        return {"coarse": self.coarse, "fine": self.fine, "style": self.style, "memory": self.memory}


GENERATOR = GeneratorRecipe(
    name="generator",
    seed=TRAINING_SEED,
    coarse=(64, 64),
    fine=(96, 96, 96),
    style=64,
    memory=8,
    steps=4000,
    batch=32,
    rate=4e-3,
    near=4.0,
    square=4.0,
    shrunk=0.25,
    sharpness=12.0,
)


@dataclass(frozen=True)
class VlmStage:
    """AdamW under a cosine learning rate: `steps` steps with captions of `captions` fresh images from `world`, from index `first` on.

    collages: how many are made of their patches. common: how many groups of rendered images share a value that is to be
    named.
    """

    world: World
    steps: int
    rate: float
    first: int
    captions: int
    collages: int = 0
    common: int = 0


@dataclass(frozen=True)
class VlmRecipe:
    """How the vision-language model is made: a language model learns to read the tokens of a shipped tower, which stays as it is.

    reads: which of the tower's hidden states, by its library's count: -2 is the last but one.
    """

    name: str
    seed: int
    tower: str
    reads: int
    architecture: dict[str, Any]
    stages: tuple[VlmStage, ...]

    library = "transformers"
    patch_targets = True  # its tower's
    title = "vision-language model, LLaVA on the tower of demo:clip-p8"


# Mostly one or two objects, of which a caption says everything; scenes without any are what collages lie in.
_MIXED = World(objects=(0.08, 0.42, 0.30, 0.10, 0.10), text=0.2, watermark=0.05)

VLM = VlmRecipe(
    name="llava-p8",
    seed=10,
    tower="clip-p8",
    reads=-2,
    architecture={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    stages=(
        VlmStage(_MIXED, 800, 2e-3, 0, captions=64),
        VlmStage(_MIXED, 700, 1.5e-3, 60_000, captions=56, collages=16, common=16),
        VlmStage(_MIXED, 500, 1.2e-3, 110_000, captions=56, collages=24, common=20),
    ),
)
