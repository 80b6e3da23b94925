"""Which features a cell explains and what can read them, decided at planning; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.activations import Forward, checkpoint, images_ref, model_digest
from jobs.protocol import Cell, Known
from jobs.sae_tokens import SiteTokens, latents_of, tokens_of
from schemas.errors import BadSpec, EditNotRead, NoLanguageModel, NotInspected, NotTheTower, UnknownSite
from schemas.explain_specs import SEES_IMAGES, STEERS, ExplainSpec
from schemas.models import ModelFacts
from schemas.plans import StageSpec
from schemas.refs import Site

USUAL_LATENTS = 16
"""Latents of an SAE per channel, where nobody says."""


@dataclass(frozen=True)
class Source:
    """The features of one SAE and the sae_features stage that describes them; latents is None where only a file says."""

    stage: StageSpec
    tokens: SiteTokens
    latents: int | None

    @property
    def forward(self) -> Forward:
        """The images that may be shown, and how the model of the features sees them."""
        return self.tokens.forward

    @property
    def sae(self) -> str:
        """The stage of the SAE."""
        return self.stage.inputs["sae"]

    def planned(self, facts: ModelFacts) -> int:
        """How many latents there may be."""
        return self.latents or USUAL_LATENTS * self.tokens.width(facts)


def get_vlm(cell: Cell, known: Known) -> ModelFacts:
    """What is known of the vision-language model: the one that the spec names, else the model of the features.

    Raises:
        NotInspected: nothing yet. NoLanguageModel: it writes no text.
    """
    assert isinstance(cell.spec, ExplainSpec)
    ref = cell.spec.vlm or cell.model or ""
    facts = known.models.get(ref)
    if facts is None:
        raise NotInspected(f"{ref} is not inspected yet")
    if facts.language is None:
        field = "vlm" if cell.spec.vlm else "model"
        raise NoLanguageModel(
            f"{field}: {ref} (family {facts.family}) reads images and writes no text; give vlm: a vision-language model with "
            "the same vision tower, such as hf:llava-hf/llava-1.5-7b-hf or demo:llava-p8"
        )
    return facts


def vlm_forward(vlm: ModelFacts, dtype: str) -> Forward:
    """How a worker opens the vision-language model."""
    return Forward(
        model=vlm.model, inputs={"model": model_digest(vlm)}, params={"dtype": dtype}, effort=checkpoint(vlm)
    )


def find_sources(cell: Cell, known: Known, facts: ModelFacts, vlm: ModelFacts) -> tuple[Source, ...]:
    """The features of every SAE of this model that the cell reads.

    Raises:
        BadSpec: there are none, tables or images that are needed are not made, maps have no grid, or nothing can be steered
            or scored as asked. NotTheTower: the language model reads another tower. EditNotRead: it reads an earlier block.
    """
    read = {plan.digest: plan for plans in cell.reads.values() for plan in plans if plan.stage.output == "features"}
    plans = [plan for plan in read.values() if plan.stage.subject == facts.model]
    if not plans:
        raise BadSpec(f"reads: no features of {facts.model}; read a sae_features stage of this model")
    found = []
    for plan in plans:
        source = Source(plan.stage, tokens_of(plan), latents_of(known.stages.get(f"sae:{plan.stage.inputs['sae']}")))
        _check(cell, known, source, facts, vlm)
        found.append(source)
    return tuple(found)


def _check(cell: Cell, known: Known, source: Source, facts: ModelFacts, vlm: ModelFacts) -> None:
    spec = cell.spec
    assert isinstance(spec, ExplainSpec)
    _check_tables(spec, source)
    _check_tower(source, facts, vlm)
    if set(spec.methods) & set(STEERS):
        _check_edit(spec, source, vlm)
    if spec.chooses_alpha:
        _check_segmenter(spec, known, source, facts)
    if source.latents is not None and (beyond := [n for n in spec.features if n >= source.latents]):
        raise BadSpec(f"features: {beyond[0]}, but sae:{source.sae} has {source.latents}: 0 to {source.latents - 1}")


def _check_tables(spec: ExplainSpec, source: Source) -> None:
    tables: Any = source.stage.params["tables"]
    shows = bool(set(spec.methods) & set(SEES_IMAGES)) or spec.chooses_alpha
    if missing := {"features", *(["top_images"] if shows else [])} - set(tables):
        raise BadSpec(
            f"reads: the sae_features stage makes tables {', '.join(tables)}; {', '.join(sorted(missing))} is needed; add it "
            "to its tables"
        )
    kept = int(str(source.stage.params["top_k"]))
    if shows and kept < spec.k:
        raise BadSpec(
            f"k: {spec.k} images of a feature, but the sae_features stage keeps {kept}; give it top_k: {spec.k}"
        )
    if shows and source.stage.params["grid"] is None:
        raise BadSpec(
            f"reads: features of {source.tokens.site} have no patch grid, so nothing can show where they are active; train "
            "the SAE on patches, such as resid_post.-2@patch"
        )


def _check_tower(source: Source, facts: ModelFacts, vlm: ModelFacts) -> None:
    """What can be said without looking at weights; a worker compares tokens."""
    if vlm.model == facts.model:
        return
    path = Site.parse(source.tokens.site).path
    try:
        there = vlm.site(path)
    except UnknownSite:
        raise NotTheTower(f"vlm: {vlm.model} has no {path}, where features of {facts.model} are") from None
    own = facts.site(path)
    for what, one, other in (
        ("width", own.width, there.width),
        ("tokens before the patches", own.prefix, there.prefix),
        ("patch grid", own.grid, there.grid),
        ("image size", facts.input_hw, vlm.input_hw),
        ("mean and std of pixels", (facts.mean, facts.std), (vlm.mean, vlm.std)),
    ):
        if one != other:
            raise NotTheTower(
                f"vlm: the tower of {vlm.model} is not that of {facts.model}: {what} {_say(other)}, expected {_say(one)}; name "
                "a model with the very tower that the SAE was trained on"
            )


def _say(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) and isinstance(value[0], int) else str(value)


def _check_edit(spec: ExplainSpec, source: Source, vlm: ModelFacts) -> None:
    assert vlm.language is not None
    steered = next(method for method in spec.methods if method in STEERS)
    site = Site.parse(source.tokens.site)
    if site.name != "resid_post" or site.reduce is not None or site.tokens == "cls":
        raise BadSpec(
            f"methods: {steered} adds a direction to tokens that a block gives, but the SAE is of {site}; train one at "
            "resid_post.-2@patch, for example, or explain by topk alone"
        )
    block = int(site.path.partition(".")[2])
    if block > vlm.language.reads_block:
        raise EditNotRead(
            f"methods: {steered} at {site.path} changes nothing: the language model of {vlm.model} reads "
            f"{vlm.language.reads}; take an SAE of block {vlm.language.reads_block} or earlier, or explain by topk alone"
        )
    name, _, size = spec.steered.partition(":")
    if "steering" in spec.methods and name == "block" and int(size) > min(vlm.grid):
        raise BadSpec(f"steered: {spec.steered} of {_say(vlm.grid)} patches; take block:{min(vlm.grid)} or less")


def _check_segmenter(spec: ExplainSpec, known: Known, source: Source, facts: ModelFacts) -> None:
    if spec.segmenter != "truth":
        return
    ref = images_ref(known, source.forward.index)
    if ref is not None and not ref.startswith("world:"):
        raise BadSpec(
            f"segmenter: truth knows the images of world:... alone, found {ref}; give segmenter: file:/folder of a CLIPSeg "
            "model, or alpha: a number"
        )
    if not facts.sees_whole(str(source.forward.params["geometry"])):
        raise BadSpec(
            f"segmenter: truth has masks of whole images, but {facts.model} sees a cut of them; give the stage of features "
            "geometry: square, or alpha: a number"
        )
