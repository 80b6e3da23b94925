"""How many planted values SAE latents, neurons, principal components and random directions find; `python -m tests.planted_saes`
measures it again and writes the table of docs/saes.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from miclip_core.sae.sae import Sae
from miclip_core.sae.train import SaeTrainer
from miclip_core.world.evaluate import FOUR_OBJECTS
from miclip_core.world.planted import Judged, judge, patch_truth, share_interval
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, Scenes, attributes
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.refs import ModelRef
from schemas.sae import SaeSettings, default_dead_tokens

PAGE = Path(__file__).parent.parent / "docs" / "saes.md"
MODELS = ("demo:clip-p8", "demo:clip-p8-b", "demo:siglip-p8")
SITE, NEURONS = "resid_post.-2@patch", "mlp_act.-2@patch"
PATCH = 8
TRAINED_ON, JUDGED_ON = range(2400), range(10_000, 10_900)
SEEDS = (0, 1, 2)
BATCH, STEPS = 1024, 800
SETTINGS = {
    "topk, 128 latents, k 10": {"arch": "topk", "latents": 128, "k": 10},
    "topk, 512 latents, k 10": {"arch": "topk", "latents": 512, "k": 10},
    "batchtopk, 128 latents, k 10": {"arch": "batchtopk", "latents": 128, "k": 10},
}
_HEAD = "| model | units | found above .90 | found above .95 | mean AUROC | missed |\n|---|---|---|---|---|---|"


class Row(NamedTuple):
    """One line of the table: shares over the planted values, with 95 % bootstrap intervals over seeds and images."""

    model: str
    units: str
    runs: list[Judged]

    def __str__(self) -> str:
        missed = [VALUE_NAMES[i] for i in np.flatnonzero(np.mean([r.auroc for r in self.runs], 0) <= 0.9)]
        named = ", ".join(missed) if len(missed) <= 4 else f"{len(missed)} values"
        mean = np.mean([r.auroc.mean() for r in self.runs])
        cells = [f"`{self.model}`", self.units, self._share(0.9), self._share(0.95), f"{mean:.3f}", named]
        return f"| {' | '.join(cells)} |"

    def interval(self, above: float) -> tuple[float, float]:
        """Of the share of values that are found with a higher AUROC."""
        return share_interval(self.runs, above)

    def _share(self, above: float) -> str:
        low, high = self.interval(above)
        return f"{np.mean([r.share(above) for r in self.runs]):.2f} ({low:.2f} to {high:.2f})"


def _value_names() -> list[str]:
    from miclip_core.world.planted import VALUES

    return [value for _, value in VALUES]


VALUE_NAMES = _value_names()


def scenes_of(numbers: range) -> Scenes:
    """Held-out scenes of four objects: neither the models nor anything measured elsewhere saw them."""
    return attributes(FOUR_OBJECTS, np.array(numbers) + HELD_OUT_INDICES.start)


@torch.no_grad()
def tokens_of(model: VisionModel, scenes: Scenes, site: str) -> Tensor:
    """Activations [B, P, D] of every patch."""
    found = []
    for start in range(0, len(scenes), 100):
        pixels = torch.from_numpy(render_scenes(scenes[start : start + 100])[0]).permute(0, 3, 1, 2)
        (values,) = model.run(model.normalise(pixels), [site]).values()
        found.append(values)
    return torch.cat(found)


def train(tokens_ND: Tensor, seed: int, **chosen: object) -> Sae:
    """An SAE over shuffled tokens; the order has a seed of its own, so that seeds differ in their weights alone."""
    dead = default_dead_tokens(int(chosen["latents"]), int(chosen["k"]))  # type: ignore[call-overload]
    settings = SaeSettings(**chosen, lr=2e-3, seed=seed, steps=STEPS, warmup_steps=STEPS // 10, dead_tokens=dead)  # type: ignore[arg-type]
    trainer = SaeTrainer(settings, tokens_ND.shape[1])
    trainer.begin(tokens_ND)
    order = torch.Generator().manual_seed(0)
    while trainer.steps_done < STEPS:
        for rows in torch.randperm(len(tokens_ND), generator=order).split(BATCH)[: STEPS - trainer.steps_done]:
            trainer.step(tokens_ND[rows])
    return trainer.finish()


def rows_of(name: str, settings: dict[str, dict[str, object]], seeds: tuple[int, ...] = SEEDS) -> Iterator[Row]:
    """Every method on one model, judged on the same patches."""
    model = load_model(ModelRef.parse(name))
    scenes = scenes_of(JUDGED_ON)
    truth = patch_truth(scenes, PATCH)
    judged_on = tokens_of(model, scenes, SITE)
    trained_on = tokens_of(model, scenes_of(TRAINED_ON), SITE).flatten(0, 1)

    def judge_all(encode: Callable[[Tensor], Tensor], signed: bool) -> Judged:
        return judge(torch.stack([encode(rows) for rows in judged_on]).numpy(), truth, signed=signed)

    for units, chosen in settings.items():
        saes = [train(trained_on, seed, **chosen) for seed in seeds]
        yield Row(name, f"SAE: {units}", [judge_all(lambda x, s=sae: s.encode(x).dense(), False) for sae in saes])  # type: ignore[misc]
    yield Row(name, "channels of the site", [judge_all(lambda x: x, True)])
    neurons = tokens_of(model, scenes, NEURONS).numpy()
    yield Row(name, "MLP neurons before it", [judge(neurons, truth, signed=True)])
    mean = trained_on.mean(0)
    components = torch.linalg.eigh(torch.cov(trained_on.T)).eigenvectors
    yield Row(name, "principal components", [judge_all(lambda x: (x - mean) @ components, True)])
    directions = [torch.randn(len(mean), 128, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    runs = [judge_all(lambda x, d=d: (x - mean) @ d, True) for d in directions]  # type: ignore[misc]
    yield Row(name, "128 random directions", runs)


def main() -> None:
    """Measure everything and put the table into the page."""
    lines = [_HEAD]
    for name in sys.argv[1:] or MODELS:
        for row in rows_of(name, SETTINGS):
            lines.append(str(row))
            print(row, flush=True)
    page = PAGE.read_text()
    begin, end = "<!-- planted: begin -->\n", "<!-- planted: end -->"
    if not sys.argv[1:]:
        PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: f"{begin}{chr(10).join(lines)}\n{end}", page, flags=re.S))


if __name__ == "__main__":
    main()
