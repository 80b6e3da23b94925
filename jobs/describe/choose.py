"""Which units a describe cell is about, from the stages that it reads; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.encoders import Encoder, find_encoders
from jobs.predictions import class_names, predictions_read
from jobs.protocol import Cell
from jobs.sae_tokens import SiteTokens, choose_sites, find_stored, find_whole, planned_tokens, whole_site
from schemas.concept_specs import DescribeSpec, Method
from schemas.errors import BadSpec
from schemas.models import ModelFacts, resolve_sites
from schemas.plans import StageSpec
from schemas.refs import site_path


@dataclass(frozen=True)
class Units:
    """The channels of a site, or the latents of an SAE there, and the encoder that they are compared through if any."""

    tokens: SiteTokens
    sae: StageSpec | None = None
    encoder: Encoder | None = None

    @property
    def kind(self) -> str:
        """`neurons` or `features`."""
        return "neurons" if self.sae is None else "features"


class Choice:
    """What one cell reads, as units."""

    def __init__(self, cell: Cell, facts: ModelFacts) -> None:
        assert isinstance(cell.spec, DescribeSpec)
        self._cell, self._spec, self._facts = cell, cell.spec, facts
        self._encoders = find_encoders(cell)
        if "miclip" in self._spec.methods:
            self._check_encoders()

    def units(self, method: Method) -> Iterator[Units]:
        """Neurons of every site, then features of every SAE; for `miclip` once per encoder.

        Raises:
            BadSpec: there are none, or nothing to see them on. UnknownSite: this model has no such site.
        """
        of_encoder = method == "miclip"
        if "neurons" in self._spec.units:
            yield from self._neurons_of_encoders() if of_encoder else map(Units, self._stored(method))
        for sae in self._saes() if "features" in self._spec.units else ():
            yield from self._features(sae, of_encoder)

    def classes(self) -> list[str]:
        """The classes of the predictions that are read, else those that encoders were trained towards, else of the head.

        Raises:
            BadSpec: there are none, or several lists of them.
        """
        predicted = {tuple(class_names(self._facts, stage.params)) for stage in predictions_read(self._cell)}
        if len(predicted) > 1:
            raise self.refuse(
                f"concepts are classes, but {len(predicted)} different lists of classes are predicted by what is read; give "
                "concepts: a list of names",
                "concepts",
            )
        if predicted:
            return list(predicted.pop())
        texts = {plan.digest: plan.stage for plans in self._cell.reads.values() for plan in plans}
        for encoder in self._encoders:
            if (stage := texts.get(encoder.plan.stage.inputs.get("texts", ""))) is not None:
                return [str(name) for name in stage.params["classes"]]  # type: ignore[union-attr]
        if self._facts.classes is None:
            raise self.refuse(
                f"concepts are classes, but {self._facts.model} has no head and no predictions are read; add an extract "
                "stage with output predictions, or give concepts: a list of names"
            )
        return list(self._facts.classes)

    def refuse(self, what: str, field: str = "reads") -> BadSpec:
        """An error that says where in the spec it is."""
        return BadSpec(f"stages.{self._cell.name}.{field}: {what}")

    # ---------------------------------------------------------------- through encoders

    def _check_encoders(self) -> None:
        if not self._encoders:
            raise self.refuse(
                f"method miclip needs neuron encoders of {self._facts.model}; add an align stage, or leave miclip out of methods"
            )
        if other := {str(e.plan.stage.params["clip"]) for e in self._encoders} - {self._cell.clip}:
            raise self.refuse(
                f"units are to be named in the space of {self._cell.clip}, but encoders that are read map into that of "
                f"{', '.join(sorted(other))}; give the CLIP they were trained with",
                "clip",
            )
        for site in dict.fromkeys(encoder.site for encoder in self._encoders):
            self._check_names([encoder for encoder in self._encoders if encoder.site == site])

    def _check_names(self, encoders: Sequence[Encoder]) -> None:
        """Encoders of the same units must have different names in the tables."""
        seen: dict[tuple[str, int], Encoder] = {}
        for encoder in encoders:
            first = seen.setdefault((encoder.variant, encoder.seed), encoder)
            if first is not encoder:
                raise self.refuse(
                    f"align:{first.plan.digest} at {first.site} and align:{encoder.plan.digest} at {encoder.site} are both "
                    f"{encoder.variant} of seed {encoder.seed}, so no table could tell them apart; read them in describe stages "
                    "of their own"
                )

    def _neurons_of_encoders(self) -> Iterator[Units]:
        where, what = f"stages.{self._cell.name}", f"the encoders of {self._facts.model} that are read"
        wanted = choose_sites(where, what, self._facts, self._spec.sites, (e.site for e in self._encoders))
        yield from (Units(planned_tokens(e.plan), None, e) for e in self._encoders if e.site in wanted)

    # ---------------------------------------------------------------- from activations and SAEs

    def _stored(self, method: Method) -> tuple[SiteTokens, ...]:
        if not any(plan.stage.output == "activations" for plans in self._cell.reads.values() for plan in plans):
            raise self.refuse(
                f"method {method} looks at activations of {self._facts.model}, but none are read; add an extract stage with "
                "output activations"
            )
        return find_stored(self._cell, self._facts, self._spec.sites)

    def _saes(self) -> tuple[StageSpec, ...]:
        """SAEs of this model, at the sites that are chosen if any are."""
        plans = [plan for plans in self._cell.reads.values() for plan in plans]
        read = {plan.digest: plan.stage for plan in plans if plan.stage.output == "sae"}
        saes = [stage for stage in read.values() if stage.subject == self._facts.model]
        if not saes and self._spec.units == ("features",):
            raise self.refuse(
                f"units are features, but no SAE of {self._facts.model} is read; add a train_sae or import_sae stage"
            )
        paths = {site.path for text in self._spec.sites for site in resolve_sites(self._facts, [text])}
        return tuple(stage for stage in saes if not paths or site_path(str(stage.params["site"])) in paths)

    def _features(self, sae: StageSpec, of_encoder: bool) -> Iterator[Units]:
        """Through every encoder of the same path, or those of the same positions if there are any."""
        site = whole_site(self._facts, str(sae.params["site"]))
        near = [encoder for encoder in self._encoders if site_path(encoder.site) == site_path(site)]
        tokens = self._whole(sae, site, near)
        if not of_encoder:
            yield Units(tokens, sae)
            return
        if not near:
            raise self.refuse(
                f"features of sae:{sae.digest} are at {sae.params['site']}, but encoders only at "
                f"{', '.join(sorted({e.site for e in self._encoders}))}; miclip embeds features through an encoder of the "
                "same path (the positions may differ): align that site, or choose others with sites"
            )
        nearest = [encoder for encoder in near if encoder.site == site] or near
        self._check_names(nearest)
        yield from (Units(tokens, sae, encoder) for encoder in nearest)

    def _whole(self, sae: StageSpec, site: str, encoders: Sequence[Encoder]) -> SiteTokens:
        """All tokens of the kind that an SAE was trained on: stored, or from a forward pass over the same images."""
        if (found := find_whole(self._cell, site)) is not None:
            return found
        if not (encoders or self._encoders):
            raise self.refuse(
                f"no images to see the features of sae:{sae.digest} on; add an extract stage with activations or embeddings"
            )
        tokens = planned_tokens((encoders or self._encoders)[0].plan)
        return tokens.model_copy(update={"site": site, "stored": tokens.stored and tokens.site == site})
