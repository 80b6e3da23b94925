"""How fast features are explained, beside a loop that runs the whole model per feature; run with `make bench`, prints a ratio and where time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.explain import explainer as explaining
from jobs.explain.asked import Asked
from jobs.explain.explainer import Explainer, Try
from jobs.explain.features import Batch
from jobs.latents import Feature
from jobs.protocol import Inputs
from jobs.top_images import TopImage
from miclip_core.explain.prompts import HEATMAPS, MASKS, STEERING
from miclip_core.explain.steer import Steering
from miclip_core.explain.vlm import Vlm, load_vlm
from miclip_core.sae.sae import Sae
from miclip_core.world.evaluate import FOUR_OBJECTS
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, attributes
from schemas.plans import Plan, StageSpec
from schemas.refs import ModelRef
from schemas.sae import SaeConfig
from tests.jobs.explain.one_by_one import adding, ids_of, layers_of, say
from tests.miclip_core.explain.vlms import tiny_vlm

PROMPTS = {"none": STEERING, "masks": MASKS, "heatmaps": HEATMAPS}
BATCH = 8
Stages = Sequence[tuple[str, str, str]]
LATENTS = 256

REAL: dict[str, Any] = {
    "vision": {
        "hidden_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 16, "intermediate_size": 4096, "image_size": 112,
        "patch_size": 14,
    },
    "text": {
        "hidden_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64,
        "intermediate_size": 5632, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The widths of a CLIP ViT-L/14 tower and of a Llama of 1.1 billion parameters, with few layers and 64 patches."""


ONCE = (("topk", "masks", "sae"), ("steering", "none", "sae"), ("informed", "masks", "sae"))
MORE = (
    *ONCE,
    ("topk", "heatmaps", "sae"),
    ("steering", "none", "permuted"),
    ("informed", "masks", "permuted"),
    ("informed", "heatmaps", "sae"),
)
"""Stages of one worker: method, masking, direction."""


def _try(method: str, masking: str, direction: str, alpha: float, tokens: int, block: int, k: int) -> Try:
    params: dict[str, Any] = {
        "site": f"resid_post.{block}@patch", "variant": method, "method": method, "masking": masking, "direction": direction,
        "positions": {"topk": "none", "steering": "all", "informed": "active"}[method], "alpha_unit": "activation",
        "prompt": PROMPTS[masking], "k": k, "operation": "add", "blank": "white", "seed": None, "sequences": 1, "dtype": "fp32",
        "generation": {"max_new_tokens": tokens, "sample": False},
    }  # fmt: skip
    stage = StageSpec(kind="explain", method=1, subject="bench", output="explanations", params=params)
    forward = {"model": "bench", "inputs": {}, "params": {}, "effort": {}}
    plan = Plan(stage=stage, rounds=(), worker="bench", effort={"batch_features": BATCH, "forward": forward})
    return Try(Asked(plan), alpha if method != "topk" else 0.0)


def make_sae(width: int) -> Sae:
    """Random unit directions."""
    rows = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=torch.Generator().manual_seed(0)), dim=1)
    config = SaeConfig(arch="topk", d=width, latents=LATENTS, k=8)
    return Sae(config, rows, torch.zeros(LATENTS), rows, torch.zeros(width))


def make_batches(vlm: Vlm, features: int, k: int) -> list[Batch]:
    """Images of the demo world at the tower's size, with blobs where features are active."""
    facts, draw = vlm.tower.facts, torch.Generator().manual_seed(1)
    scenes = attributes(FOUR_OBJECTS, np.arange(features * k) + HELD_OUT_INDICES.start)
    pixels = torch.from_numpy(render_scenes(scenes)[0]).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels.float(), facts.input_hw).to(torch.uint8).unflatten(0, (features, k))
    coarse = torch.rand(features * k, 1, 3, 3, generator=draw) - 0.5
    maps = torch.nn.functional.interpolate(coarse, facts.grid, mode="bilinear")[:, 0].relu().unflatten(0, (features, k))
    found = []
    for start in range(0, features, BATCH):
        rows = slice(start, start + BATCH)
        some = [Feature(number, True, 1.0, 1.0) for number in range(start, min(start + BATCH, features))]
        shown = [[TopImage("", 0, None, of) for of in own] for own in maps[rows]]
        found.append(Batch(some, shown, pixels[rows], maps[rows]))
    return found


# ---------------------------------------------------------------- both ways


def together(vlm: Vlm, sae: Sae, tries: Sequence[Try], batches: Sequence[Batch]) -> dict[tuple[int, int], str]:
    """The worker's way: (try, feature) -> text."""
    inputs: Inputs = None  # type: ignore[assignment]  # nothing is read with these units of alpha
    explainer, found = Explainer(vlm, sae, tries[0].asked, inputs, 1), {}
    for batch in batches:
        for one, written in explainer.write(tries, batch):
            for text in written:
                found[tries.index(one), batch.features[text.place].number] = text.answer.raw
    return found


def one_by_one(vlm: Vlm, sae: Sae, one: Try, batches: Sequence[Batch]) -> dict[int, str]:
    """The whole model for every feature, with a vector added on the way: feature -> text."""
    asked, facts = one.asked, vlm.tower.facts
    assert asked.block is not None
    layer, tokens = layers_of(vlm.module, facts.n_blocks)[asked.block], asked.params["generation"]["max_new_tokens"]
    white = vlm.tower.normalise(torch.full((1, 3, *facts.input_hw), 255, dtype=torch.uint8))
    ids = ids_of(vlm.processor, asked.prompt, asked.images if asked.sees_images else 1, facts.input_hw[0])
    found = {}
    for batch in batches:
        for place, feature in enumerate(batch.features):
            images, where = white, [None]
            if asked.sees_images:
                maps = batch.maps_FKPQ[place]
                images = vlm.tower.normalise(explaining.render(asked.masking, batch.pixels_FKCIJ[place], maps))
                where = [(1 + of.flatten().nonzero().flatten()).tolist() for of in maps]  # type: ignore[misc]
            with ExitStack() as stack:
                if asked.steers:
                    source = feature.number + (LATENTS // 2 if asked.direction == "permuted" else 0)
                    stack.enter_context(adding(layer, one.alpha * sae.W_dec[source], where))
                found[feature.number] = say(vlm.module, vlm.processor, images, ids, tokens).raw
    return found


# ---------------------------------------------------------------- where time goes


@contextmanager
def parts_of(vlm: Vlm) -> Iterator[dict[str, float]]:
    """Seconds by part, of all that happens inside; filled as it happens."""
    taken: dict[str, float] = defaultdict(float)

    def timed(name: Callable[..., str], inner: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            out = inner(*args, **kwargs)
            taken[name(*args, **kwargs)] += time.perf_counter() - started
            return out

        return wrapped

    def step(*args: Any, **kwargs: Any) -> str:
        embedded = kwargs.get("inputs_embeds")
        length: Tensor = kwargs["input_ids"] if embedded is None else embedded
        return "prefill" if length.shape[1] > 1 else "decoding"

    with ExitStack() as stack:
        for owner, attribute, name in (
            (explaining, "render", lambda *_: "rendering"),
            (Steering, "prefix", lambda *_: "tower up to the block"),
            (Steering, "finish", lambda *_: "tower behind it"),
            (explaining, "answer", lambda *_, **__: "answers"),
            (vlm.module, "forward", step),
        ):
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield taken


def timed(step: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds."""
    started = time.perf_counter()
    return step(), time.perf_counter() - started


@torch.no_grad()
def report(title: str, vlm: Vlm, stages: Stages, block: int, alpha: float, features: int, tokens: int, k: int) -> None:
    """Time both ways, assert equal texts, print."""
    tries = [_try(method, masking, direction, alpha, tokens, block, k) for method, masking, direction in stages]
    sae, batches = make_sae(vlm.tower.facts.width), make_batches(vlm, features, k)
    together(vlm, sae, tries, batches[:1])  # the first passes are slower
    with parts_of(vlm) as parts:
        ours, fast = timed(lambda: together(vlm, sae, tries, batches))
    slow: dict[str, float] = defaultdict(float)
    for number, one in enumerate(tries):
        loop, seconds = timed(lambda one=one: one_by_one(vlm, sae, one, batches))  # type: ignore[misc]
        slow[one.asked.method] += seconds
        assert loop == {feature: ours[number, feature] for feature in loop} and len(loop) == features
    texts, all_slow = len(tries) * features, sum(slow.values())
    print(
        f"\n{title}, {features} features, {k} images, {len(tries)} stages, {len(set(ours.values()))} different texts, equal in "
        f"both: {texts / fast:.1f} a second, loop {texts / all_slow:.1f} a second; loop / ours {all_slow / fast:.1f}"
    )
    for method, seconds in slow.items():
        own = [one for one in tries if one.asked.method == method]
        _, alone = timed(lambda own=own: together(vlm, sae, own, batches))  # type: ignore[misc]
        print(f"  {method} alone: {len(own) * features / alone:.1f} a second; loop / ours {seconds / alone:.1f}")
    parts["generation around it"] = parts.pop("answers") - parts["prefill"] - parts["decoding"]
    parts["the rest"] = fast - sum(parts.values())
    shares = ", ".join(f"{name} {seconds / fast:.0%}" for name, seconds in sorted(parts.items(), key=lambda x: -x[1]))
    print(f"  of ours: {shares}")


@pytest.mark.bench
def test_the_demo_model_against_a_loop_over_features() -> None:
    """Goal: twice as fast in all and four times where a blank image is steered; both do the same prefills, which is most of it."""
    vlm = load_vlm(ModelRef.parse("demo:llava-p8"))
    report("demo:llava-p8", vlm, MORE, block=3, alpha=8.0, features=32, tokens=16, k=5)


@pytest.mark.bench
def test_real_widths_against_a_loop_over_features(tmp_path: Path) -> None:
    """Goal: half as fast again; on a CPU a prefill costs the same in a batch, on an accelerator it does not."""
    vlm = tiny_vlm("llava", tmp_path, **REAL)
    report("LLaVA of real widths", vlm, ONCE, block=2, alpha=40.0, features=8, tokens=8, k=2)
