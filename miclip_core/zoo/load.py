"""From a model ref to its facts (built on the meta device) or to a model that runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module, metadata

import torch

from miclip_core.zoo import locate as default
from miclip_core.zoo.digests import identity_sha256, weights_sha256
from miclip_core.zoo.inspect import describe_model
from miclip_core.zoo.locate import Locate
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.random_weights import fill_random
from miclip_core.zoo.recipe import Built, Recipe
from miclip_core.zoo.sitemap import Family
from schemas.base import canonical_json
from schemas.errors import UnknownModel, UnsupportedBlock
from schemas.models import ModelFacts
from schemas.refs import ModelRef

# Who builds the models of a source: a module with `recipe(ref, locate) -> Recipe`.
SOURCES: dict[str, str] = {
    "open_clip": "miclip_core.zoo.openclip",
    "hf": "miclip_core.zoo.hf",
    "timm": "miclip_core.zoo.timm_models",
    "demo": "miclip_core.zoo.demo",
}
# Who knows the sites of a vision tower: modules with `matches(visual) -> bool` and `describe(visual) -> Family`.
FAMILIES: tuple[str, ...] = (
    "miclip_core.zoo.clip_vit",
    "miclip_core.zoo.coca_vit",
    "miclip_core.zoo.modified_resnet",
    "miclip_core.zoo.hf_vit",
    "miclip_core.zoo.hf_resnet",
    "miclip_core.zoo.timm_vit",
    "miclip_core.zoo.timm_resnet",
    "miclip_core.zoo.timm_convnext",
    "miclip_core.generate.recipe",
    "miclip_core.zoo.raw",
)


def inspect_model(ref: ModelRef, locate: Locate = default.locate, modules: Sequence[str] = ()) -> ModelFacts:
    """The static facts of a model: built without memory for weights; only the checkpoint's bytes are read, for its digest.

    modules: raw module paths (`module:visual.ln_post`) that shall be sites too.

    Raises:
        UnknownModel, ActivationMismatch: before anything is fetched. UnknownSite: a module path.
        UnsupportedBlock: no family knows this architecture.
    """
    made = recipe(ref, locate)
    return inspect_made(ref, made, modules)


def load_model(
    ref: ModelRef,
    locate: Locate = default.locate,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modules: Sequence[str] = (),
) -> VisionModel:
    """A model that runs, in eval mode, with parameters that take no gradients.

    Raises:
        What `inspect_model` raises, and WeightsMissing, UnsafeCheckpoint. ReadsNoImages: it is a generator.
    """
    facts, family, built = load_built(ref, locate, device, dtype, modules)
    facts.check_reads_images()
    return VisionModel(
        facts=facts,
        family=family,
        module=built.root,
        text=None if built.text is None else built.text(torch.device(device)),
        device=torch.device(device),
        dtype=dtype,
    )


def load_built(
    ref: ModelRef,
    locate: Locate,
    device: str | torch.device,
    dtype: torch.dtype,
    modules: Sequence[str] = (),
) -> tuple[ModelFacts, Family, Built]:
    """A library's model with its weights, on its device and in eval mode, its facts and its sites; see `load_model`."""
    made = recipe(ref, locate)
    facts = inspect_made(ref, made, modules)
    with torch.random.fork_rng(devices=[]):  # libraries initialise at random; nobody's stream shall move
        built = made.build()
    if ref.random_seed is None:
        made.fill(built)
    else:
        fill_random(built.root, ref.random_seed)
    built.root.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return facts, find_family(str(ref), built), built


def recipe(ref: ModelRef, locate: Locate) -> Recipe:
    """How to make the model that a ref names.

    Raises:
        UnknownModel: nobody builds models of this source, or the source does not know the name.
    """
    if ref.source not in SOURCES:
        raise UnknownModel(f"{ref}: models of source {ref.source} cannot be built; sources are {', '.join(SOURCES)}")
    return import_module(SOURCES[ref.source]).recipe(ref, locate)


def find_family(name: str, built: Built) -> Family:
    """The first family whose structure the vision tower has; the last one, `raw`, takes any.

    Raises:
        UnsupportedBlock: the model lacks what its family needs.
    """
    family = next(family for family in map(import_module, FAMILIES) if family.matches(built.visual))
    try:
        return family.describe(built.visual)
    except UnsupportedBlock as error:
        raise UnsupportedBlock(f"{name}: {error}") from error


def inspect_made(ref: ModelRef, made: Recipe, modules: Sequence[str] = ()) -> ModelFacts:
    """The static facts of a model whose recipe is at hand; see `inspect_model`."""
    weights = _digest(ref, made)
    files = identity_sha256(weights, made.settings, made.tokeniser)
    with torch.device("meta"):
        built = made.build()
    built.root.eval().requires_grad_(False)
    family = find_family(str(ref), built)
    language = None if made.language is None else made.language.facts(family)
    return describe_model(str(ref), built, family, weights, files, made.revision, _versions(made), modules, language)


def _versions(made: Recipe) -> dict[str, str]:
    return {name: metadata.version(name).split("+")[0] for name in made.libraries}


def _digest(ref: ModelRef, made: Recipe) -> str:
    """sha256 of the checkpoint; for random weights, of the text that they are a function of."""
    if ref.random_seed is None:
        return weights_sha256(made.files)
    identity = {"architecture": made.architecture, "seed": ref.random_seed, "libraries": _versions(made)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()
