"""How often each method names, finds and steers the units of the demo zoo that stand for a planted concept; `python -m
tests.planted_concepts DIR` measures all models, one JSON file each, and prints the tables of docs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from jobs.classes import Classifier, make_classifier
from miclip_core.align.encoder import NeuronEncoder
from miclip_core.align.order import batch_order
from miclip_core.align.trainer import AlignTrainer
from miclip_core.concepts.names import world_concepts
from miclip_core.concepts.top import TopScores
from miclip_core.dissect.act_values import ActValues
from miclip_core.dissect.caption import GivenCaptions, Patch
from miclip_core.dissect.clip_dissect import SIMILARITIES, clip_dissect
from miclip_core.dissect.masks import truth_masks
from miclip_core.dissect.netdissect import Overlaps, maps_above
from miclip_core.dissect.patches import TopPatches
from miclip_core.dissect.thresholds import find_thresholds
from miclip_core.dissect.v_interp import caption_patches, embed_captions, unit_embeddings
from miclip_core.evaluate.auroc import aurocs
from miclip_core.evaluate.localisation import precision_at
from miclip_core.intervene.edits import Features, Neurons, UnitKind
from miclip_core.intervene.sweep import Counts, Sweep
from miclip_core.sae.sae import Sae
from miclip_core.sae.train import SaeTrainer
from miclip_core.world.captions import full_claims, sentences
from miclip_core.world.evaluate import held_out
from miclip_core.world.planted import VALUES
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, PLANTED, SHAPES, Scenes, World, attributes
from miclip_core.zoo.edits import rows_of
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.reducers import Moments
from schemas.align import AlignSettings
from schemas.intervene import Change
from schemas.refs import ModelRef
from schemas.sae import SaeSettings, default_dead_tokens

ALIGNERS = {
    "demo:clip-p8": ("demo:clip-p8", "demo:clip-rn"),
    "demo:clip-p8-b": ("demo:clip-p8-b", "demo:clip-rn"),
    "demo:clip-p16": ("demo:clip-p16", "demo:clip-rn"),
    "demo:siglip-p8": ("demo:siglip-p8", "demo:clip-rn"),
    "demo:clip-rn": ("demo:clip-rn", "demo:clip-p8"),
    "demo:clip-rn-typo": ("demo:clip-rn-typo", "demo:clip-p8"),
    "demo:resnet-sup": ("demo:clip-p8",),
    "demo:resnet-sup-wm": ("demo:clip-p8",),
    "demo:vit-dense": ("demo:clip-p8",),
}
"""The CLIPs in whose spaces the units of each model are named."""
FIT, JUDGE = (World(seed=0), 2400), (World(seed=1), 2000)
"""What methods see (`world:seed=0,n=2400`), and what tells the truth of units; neither was ever trained on."""
SEEDS = (0, 1, 2)
SELECTIVE = 0.9
"""AUROC from which on a unit stands for a concept."""
TAU = 5
POOL = "max"
SETTINGS = AlignSettings(logit_scale=20.0, lr=1e-2, batch=256, epochs=6)
LOSSES = {"in+out": {}, "in": {"w_out": 0.0}, "out": {"w_in": 0.0}}
TEMPLATES = ("a {}",)
MASKED = 1200
"""Images whose masks Network Dissection sees."""
CHANGES = (Change(beta=2.0), Change(beta=0.0))
SIZE = list(PLANTED).index("size")
CATEGORY = np.array([list(PLANTED).index(category) for category, _ in VALUES])
CONCEPTS = world_concepts()

Scores = Mapping[str, Tensor]
"""Method -> [U, 28], NaN where a pair has no score."""


# ---------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class Images:
    """Scenes, their pixels uint8 [N, 3, 64, 64], and which planted value each shows somewhere, bool [N, 28]."""

    scenes: Scenes
    pixels: Tensor
    shows: np.ndarray


def images_of(scenes: Scenes) -> Images:
    """Draw scenes."""
    pixels = torch.from_numpy(render_scenes(scenes)[0]).permute(0, 3, 1, 2).contiguous()
    columns = [
        scenes.background == PLANTED[category].index(value)
        if category == "background"
        else (getattr(scenes, category) == PLANTED[category].index(value)).any(1)
        for category, value in VALUES
    ]
    return Images(scenes, pixels, np.stack(columns, 1))


@cache
def drawn(world: World, n: int) -> Images:
    """The first n held-out images of a world, as `world:...` names them."""
    return images_of(attributes(world, np.arange(n) + HELD_OUT_INDICES.start))


@cache
def open_model(name: str) -> VisionModel:
    """A demo model, loaded once."""
    return load_model(ModelRef.parse(name))


@cache
def embeddings(clip: str, world: World, n: int) -> Tensor:
    """Unit image embeddings [N, E]."""
    return normalize(tap(open_model(clip), drawn(world, n).pixels, ("embedding",))["embedding"], dim=1)


@cache
def concept_texts(clip: str) -> Tensor:
    """Unit embeddings [28, E] of the planted values' phrases ("a red object")."""
    return normalize(open_model(clip).embed_text(CONCEPTS.phrases).float(), dim=1)


@torch.no_grad()
def tap(model: VisionModel, pixels: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
    """Site -> rows of all images, [N, P, W] (or [N, W] of a vector)."""
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    names = {site: str(model.sites([site])[0]) for site in sites}
    for part in pixels.split(200):
        out = model.run(model.normalise(part), sites)
        for site, name in names.items():
            facts = model.facts.site(model.sites([site])[0].path)
            found[site].append(out[name] if facts.layout == "vector" else rows_of(facts, out[name])[0])
    return {site: torch.cat(parts) for site, parts in found.items()}


# ---------------------------------------------------------------- units and what they stand for


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one site: activations at every position on the images to fit and to judge on, and their truth.

    truth int [U]: the planted value of the highest AUROC on the images to judge on if that is SELECTIVE, else -1.
    """

    what: str
    site: str
    kind: UnitKind
    fit_NPU: Tensor
    truth_U: np.ndarray
    auroc_MU: np.ndarray

    @property
    def pooled(self) -> Tensor:
        """Float32 [N, U]."""
        return self.fit_NPU.amax(1)

    @property
    def judged(self) -> np.ndarray:
        """Units that stand for a value that is no size, ascending."""
        return np.flatnonzero((self.truth_U >= 0) & (CATEGORY[self.truth_U] != SIZE))


def make_units(
    what: str, site: str, kind: UnitKind, fit_NPU: Tensor, judge_NPU: Tensor, least: float = SELECTIVE
) -> Units:
    """Units with their truth, from AUROC over images: of an object's values among those with an object."""
    images = drawn(*JUDGE)
    pooled = judge_NPU.amax(1).numpy()
    found = np.zeros((len(VALUES), pooled.shape[1]))
    in_scene = list(PLANTED).index("background") == CATEGORY
    for values, rows in ((in_scene, slice(None)), (~in_scene, images.scenes.count > 0)):
        found[values] = aurocs(pooled[rows], images.shows[rows][:, values])
    return Units(what, site, kind, fit_NPU, np.where(found.max(0) >= least, found.argmax(0), -1), found)


def sites_of(model: VisionModel) -> tuple[str, str]:
    """Where neurons are taken: the last block but one and its MLP, or the last two stages of a ResNet."""
    if model.facts.has_cls:
        return "resid_post.-2@patch", "mlp_act.-2@patch"
    return "stage.3@map", "stage.4@map"


def train_sae(tokens_ND: Tensor, seed: int) -> Sae:
    """As jobs/examples/sae.yaml: batchtopk, 128 latents, k 10, 800 steps of 1,024 tokens."""
    settings = SaeSettings(
        arch="batchtopk", latents=128, k=10, lr=2e-3, seed=seed, steps=800, warmup_steps=80,
        dead_tokens=default_dead_tokens(128, 10),
    )  # fmt: skip
    trainer = SaeTrainer(settings, tokens_ND.shape[1])
    trainer.begin(tokens_ND)
    order = torch.Generator().manual_seed(0)
    while trainer.steps_done < settings.steps:
        for rows in torch.randperm(len(tokens_ND), generator=order).split(1024)[: settings.steps - trainer.steps_done]:
            trainer.step(tokens_ND[rows])
    return trainer.finish()


def encode(sae: Sae, x_NPD: Tensor) -> Tensor:
    """Codes [N, P, U]."""
    parts = [sae.encode(part.flatten(0, 1)).dense().unflatten(0, part.shape[:2]) for part in x_NPD.split(400)]
    return torch.cat(parts)


# ---------------------------------------------------------------- methods


@cache
def predictions(name: str) -> tuple[Tensor, list[str]] | None:
    """What the model sees in each image to fit on, int64 [N], and the names of its classes; None if it has none.

    Shapes by zero-shot sentences for a CLIP; a classifier answers "red circle" and the like.
    """
    model = open_model(name)
    if model.text is None and model.facts.classes is None:
        return None
    classifier = classes_of(model)
    tapped = tap(model, drawn(*FIT).pixels, (classifier.site,))[classifier.site]
    return classifier.scores(tapped).argmax(1), list(classifier.names)


def classes_of(model: VisionModel) -> Classifier:
    """Its own head, or shapes by sentences."""
    return make_classifier(model, "head" if model.text is None else SHAPES, TEMPLATES)


def align(
    a_ND: Tensor, clip: str, seen: tuple[Tensor, list[str]] | None, settings: AlignSettings = SETTINGS
) -> NeuronEncoder:
    """A neuron encoder from pooled activations into the space of a CLIP. seen: predictions; none leaves L_out out."""
    if seen is None:
        settings, seen = (
            settings.model_copy(update={"w_out": 0.0}),
            (torch.zeros(len(a_ND), dtype=torch.int64), ["object"]),
        )
    texts_CE = open_model(clip).embed_text([TEMPLATES[0].format(name) for name in seen[1]])
    x_NE = embeddings(clip, *FIT)
    moments = Moments()
    moments.add(a_ND[:, None], np.zeros(1, np.int32), [""] * len(a_ND))
    trainer = AlignTrainer(settings, a_ND.shape[1], x_NE.shape[1])
    trainer.begin(moments)
    for epoch in range(settings.epochs):
        for batch in map(torch.from_numpy, batch_order(len(a_ND), settings, epoch)):
            trainer.step(a_ND[batch], texts_CE, seen[0][batch], x_NE[batch])
    return trainer.finish()


def miclip(encoder: NeuronEncoder, units: Units, clip: str) -> Tensor:
    """Cosines of units and concepts, NaN for units without a direction."""
    kind = units.kind
    vectors = encoder.embed_latents(kind.sae) if isinstance(kind, Features) else encoder.embed_units()
    return vectors / vectors.norm(dim=1, keepdim=True) @ concept_texts(clip).T


def losses_of(seen: object) -> dict[str, dict[str, float]]:
    """The losses that can be had: without predictions only the images'."""
    return LOSSES if seen is not None else {"in": LOSSES["in"]}


def act_values(units: Units) -> Tensor:
    """Told which image shows what."""
    found = ActValues(len(VALUES))
    found.add(units.pooled, torch.from_numpy(drawn(*FIT).shows))
    return found.scores()


def netdissect(units: Units) -> Tensor:
    """Told which pixel shows what."""
    scenes = drawn(*FIT).scenes[:MASKED]
    side = round(units.fit_NPU.shape[1] ** 0.5)
    maps = units.fit_NPU[:MASKED].unflatten(1, (side, side)).movedim(3, 1)
    thresholds = find_thresholds(lambda: iter([units.fit_NPU[:MASKED].flatten(0, 1)]), maps.shape[1])
    overlaps = Overlaps(maps.shape[1], len(VALUES))
    for first in range(0, MASKED, 100):
        part = scenes[first : first + 100]
        masks = truth_masks(part, render_scenes(part)[1], tuple(PLANTED))
        overlaps.add(maps_above(maps[first : first + 100], thresholds), masks)
    return overlaps.iou(thresholds.above > 0).float()


def v_interp(units: Units, clip: str) -> Tensor:
    """Told what each image shows, in a sentence."""
    captions = GivenCaptions(dict(enumerate(sentences(full_claims(drawn(*FIT).scenes)))))
    top = TopPatches(units.fit_NPU.shape[2], TAU)
    top.add(torch.arange(len(units.fit_NPU)), units.fit_NPU)
    patches = top.distinct()
    texts = caption_patches(captions, (Patch(image, None) for image in patches.image.tolist()), "")  # type: ignore[arg-type]
    vectors = unit_embeddings(patches.place, embed_captions(texts, open_model(clip).embed_text))
    return vectors / vectors.norm(dim=1, keepdim=True) @ concept_texts(clip).T


def baselines(units: Units, clip: str, similarities: Iterable[str] = SIMILARITIES) -> dict[str, Tensor]:
    """Every other method that a CLIP takes part in, by name."""
    found = {"v_interp": v_interp(units, clip)}
    x_NE, c_ME = embeddings(clip, *FIT), concept_texts(clip)
    for similarity in similarities:
        found[f"clip_dissect {similarity}"] = clip_dissect(similarity, units.pooled, x_NE, c_ME)  # type: ignore[arg-type]
    return found


# ---------------------------------------------------------------- what they are worth


def lists(scores_UM: Tensor) -> TopScores:
    """The best concept of every unit, and the TAU best units of every concept."""
    units, concepts = scores_UM.shape
    found = TopScores(units, concepts, TAU)
    found.add(0, 0, scores_UM)
    return found


def described(scores_UM: Tensor, units: Units) -> np.ndarray:
    """Whether each of the judged units was named by what it stands for, bool [judged]."""
    named_U = lists(scores_UM).concepts_of_unit.ids_NK[:, 0].numpy()
    return named_U[units.judged] == units.truth_U[units.judged]


def located(scores_UM: Tensor, units: Units) -> dict[str, tuple[float, float]]:
    """Precision@TAU and its ceiling of every concept, not a size, that some unit stands for."""
    ids_MK = lists(scores_UM).units_of_concept.ids_NK
    by_name = {name: ids_MK[m][ids_MK[m] >= 0].tolist() for m, name in enumerate(CONCEPTS.names)}
    truth = {int(unit): CONCEPTS.names[units.truth_U[unit]] for unit in units.judged}
    found = precision_at(by_name, truth, CONCEPTS.names, TAU)
    return {name: (precision.value, precision.ceiling) for name, precision in found.items()}


@dataclass(frozen=True, eq=False)
class ShapesOfHead:
    """Shapes by a head of "red circle" and the like: the best of each shape's classes counts."""

    number_C: Tensor
    site: str = "logits"

    def scores(self, tapped_B: Tensor) -> Tensor:
        """Scores [B, shapes]."""
        return torch.stack([tapped_B[:, self.number_C == shape].amax(1) for shape in range(len(SHAPES))], 1)


def shapes_of(model: VisionModel) -> Any:
    """What tells shapes from a pass."""
    classifier = classes_of(model)
    if classifier.site == "embedding":
        return classifier
    return ShapesOfHead(torch.tensor([SHAPES.index(name.split()[-1]) for name in classifier.names]))


@cache
def steered(two: bool, n: int) -> tuple[Images, Tensor]:
    """Images to steer, and their class: of one object its shape; of two with different shapes that of the first one.

    The places of objects are drawn apart from their order, so of two a model names either one as often.
    """
    if not two:
        images = images_of(held_out(n))
        return images, torch.from_numpy(images.scenes.shape[:, 0])
    world = World(seed=3, objects=(0, 0, 1, 0, 0), text=0, watermark=0)
    scenes = held_out(2 * n, world)
    scenes = scenes[np.flatnonzero(scenes.shape[:, 0] != scenes.shape[:, 1])[:n]]
    return images_of(scenes), torch.from_numpy(scenes.shape[:, 0])


def steer(name: str, units: Units, found: Scores, two: bool, n: int = 400, site: str | None = None) -> Counts:
    """Scale the units that each method located for the shape of the image, and those of another shape."""
    model = open_model(name)
    names = [CONCEPTS.names.index(shape) for shape in SHAPES]
    chosen = {method: lists(scores).units_of_concept.ids_NK[names] for method, scores in found.items()}
    sweep = Sweep(model, site or units.site, units.kind, shapes_of(model), chosen, CHANGES)
    images, labels = steered(two, n)
    for first in range(0, n, 100):
        part = slice(first, first + 100)
        sweep.add(model.normalise(images.pixels[part]), labels[part], [f"{two}:{i}" for i in range(n)][part])
    return sweep.counts


# ---------------------------------------------------------------- a whole model


def units_of(
    name: str, seeds: Sequence[int] = SEEDS, sites: Sequence[int] = (0, 1)
) -> Iterator[tuple[Units, list[int]]]:
    """Neurons of the chosen sites, which all seeds share, and the features of one SAE per seed, each with its seeds."""
    model = open_model(name)
    where = sites_of(model)
    wanted = sorted({0, *sites})
    fit, judge = (tap(model, drawn(*some).pixels, [where[i] for i in wanted]) for some in (FIT, JUDGE))
    for i in sites:
        yield make_units("neurons", where[i], Neurons(), fit[where[i]], judge[where[i]]), list(seeds)
    for seed in seeds:
        sae = train_sae(fit[where[0]].flatten(0, 1), seed)
        codes = [encode(sae, some[where[0]]) for some in (fit, judge)]
        yield make_units("features", where[0], Features(sae), codes[0], codes[1]), [seed]


def scores_of(
    name: str, units: Units, clip: str, seeds: Sequence[int], a_ND: Tensor, similarities: Iterable[str] = SIMILARITIES
) -> dict[tuple[str, int], Tensor]:
    """(method, seed) -> scores; baselines have no seed and stand under the first. a: pooled activations of the site."""
    seen = predictions(name)
    found = {(method, seeds[0]): scores for method, scores in baselines(units, clip, similarities).items()}
    for loss, weights in losses_of(seen).items():
        for seed in seeds:
            encoder = align(a_ND, clip, seen, SETTINGS.model_copy(update={**weights, "seed": seed}))
            found[f"miclip {loss}", seed] = miclip(encoder, units, clip)
    return found


def controls(units: Units, a_ND: Tensor, clip: str, seed: int) -> dict[str, Tensor]:
    """The best that scores can be, nothing at all, and MICLIP (in) with images and activations that do not belong together."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.from_numpy(units.auroc_MU.T).float()
    mixed = a_ND[torch.randperm(len(a_ND), generator=draw)]
    encoder = align(mixed, clip, None, SETTINGS.model_copy(update={"seed": seed}))
    return {"truth": truth, "random": torch.rand(truth.shape, generator=draw), "shuffled": miclip(encoder, units, clip)}


STEERED = ("miclip in+out", "miclip in", "miclip out", "act_values", "netdissect", "v_interp", "clip_dissect cos_cubed",
           "clip_dissect soft_wpmi", "truth", "random")  # fmt: skip
"""Methods whose units are scaled."""


def measure(name: str, seeds: Sequence[int] = SEEDS, sites: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """Everything about one model, as plain lists."""
    pooled: dict[str, Tensor] = {}
    blocks = []
    for units, its_seeds in units_of(name, seeds, sites):
        if units.what == "neurons":
            pooled[units.site] = units.pooled
        a_ND = pooled[units.site]
        of_clip = {}
        told = {("act_values", its_seeds[0]): act_values(units), ("netdissect", its_seeds[0]): netdissect(units)}
        for clip in ALIGNERS[name]:
            found = told | scores_of(name, units, clip, its_seeds, a_ND)
            for seed in its_seeds:
                found |= {(method, seed): scores for method, scores in controls(units, a_ND, clip, seed).items()}
            of_clip[clip] = [
                {
                    "method": method,
                    "seed": seed,
                    "right": described(scores, units).tolist(),
                    "located": located(scores, units),
                }
                for (method, seed), scores in found.items()
            ]
            if clip == ALIGNERS[name][0]:
                steerable = {f"{m}#{seed}": s for (m, seed), s in found.items() if m in STEERED}
        steers = units.site == sites_of(open_model(name))[0] and predictions(name) is not None
        blocks.append(
            {
                "what": units.what, "site": units.site, "seeds": list(its_seeds), "units": int(units.auroc_MU.shape[1]),
                "truth": units.truth_U[units.judged].tolist(), "auroc": units.auroc_MU.max(0)[units.judged].tolist(),
                "sizes": int(((units.truth_U >= 0) & (CATEGORY[units.truth_U] == SIZE)).sum()),
                "clips": of_clip,
                "steered": _steered(name, units, steerable) if steers else {},
            }
        )  # fmt: skip
    return {"model": name, "blocks": blocks}


def _steered(name: str, units: Units, found: Scores) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for two in (False, True):
        counts = steer(name, units, found, two)
        n = counts.sums["n"]
        runs["two" if two else "one"] = {
            "clean": (counts.sums["clean"] / n).tolist(),
            "methods": {
                method: {
                    str(change): [
                        counts.change_C(method, change).tolist(),
                        counts.off_change_C(method, change).tolist(),
                    ]
                    for change in CHANGES
                }
                for method in found
            },
        }
    return runs


def main() -> None:
    """Measure the models whose file is missing."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or ALIGNERS:
        path = folder / f"{name.partition(':')[2]}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(name)))
            print(path, flush=True)


if __name__ == "__main__":
    main()
