"""The extract worker: one model opened once, one forward pass per batch for all stages that still lack the shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from jobs.activations import forward_of
from jobs.bad_inputs import bad_inputs, nonfinite
from jobs.classes import Classifier, get_templates, make_classifier
from jobs.extract.products import (
    Activations,
    Embeddings,
    Predictions,
    Product,
    Reduced,
    merge_partials,
    moments_table,
    top_images_table,
)
from jobs.forward import IndexForward
from jobs.models import notes_of_cut, open_model
from jobs.protocol import Artifact, ImageBytes, Inputs, Keep, Part, Setting
from jobs.rows import make_batch, make_vectors, round_values, stop_for, usable_rows
from jobs.threads import use_cpus
from miclip_core.zoo.reducers import Moments, TopK
from miclip_core.zoo.stream import TappedBatch
from miclip_core.zoo.text import fill_templates, zero_shot_classifier
from schemas.plans import Plan, Shard
from schemas.refs import Site


class ExtractWorker:
    """Holds one model; `notes` says what people should know of a shard, such as a batch that was halved."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}
        use_cpus(setting)
        first = setting.plans[0]
        sites = [str(p.stage.params["site"]) for p in setting.plans if "site" in p.stage.params]
        self._model = open_model(forward_of(first), inputs, setting.device, sites)
        self._forward = IndexForward(self._model, forward_of(first), setting.resources.decode_threads)
        self.notes = self._forward.notes
        self._classifiers: dict[str, Classifier] = {}

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Rows of the shard for every stage that asks, or the merge of all shards' summaries."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        match plans[0].rounds[shard.round].name:
            case "texts":
                for plan in plans:
                    yield self._texts(plan, shard)
            case "merge":
                for plan in plans:
                    yield from self._merge(plan, inputs)
            case _:
                yield from self._map(plans, shard, inputs)

    # -------------------------------------------------------------- images

    def _map(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[Part | Artifact]:
        products = [(plan, *self._make_product(plan)) for plan in plans]
        sites = list(dict.fromkeys(site for _, site, _ in products))
        for batch in self._forward.run(inputs, [(shard.start, shard.stop)], sites):
            yield from bad_inputs(plans, batch.problems)
            if batch.out is not None:
                for plan, site, product in products:
                    yield from self._feed(plan, product, site, batch.out, batch.images)
        for _, _, product in products:
            yield from product.finish()

    def _feed(
        self, plan: Plan, product: Product, site: Site, batch: TappedBatch, images: Sequence[ImageBytes]
    ) -> Iterator[Part]:
        """The rows of one site to one stage; images that cannot be stored stop the shard or are set aside."""
        rows, unusable = usable_rows(batch, site, images, str(plan.stage.params.get("round_to", "fp32")))
        for aside in unusable:
            if plan.stage.params["on_nonfinite"] == "stop":
                raise stop_for(aside, self._model.facts.model)
            yield from bad_inputs([plan], nonfinite(aside))
        if rows is not None:
            yield from product.add(rows)

    # -------------------------------------------------------------- products

    def _make_product(self, plan: Plan) -> tuple[Site, Product]:
        params: dict[str, Any] = plan.stage.params
        match plan.stage.output:
            case "activations":
                return Site.parse(params["site"]), Activations(plan)
            case "activation_moments":
                return Site.parse(params["site"]), Reduced(plan, Moments())
            case "top_images":
                return Site.parse(params["site"]), Reduced(plan, TopK(int(params["k"])))
            case "embeddings":
                return Site.parse("embedding"), Embeddings(plan)
            case "predictions":
                return self._make_predictions(plan)
        raise AssertionError(plan.stage.output)

    def _make_predictions(self, plan: Plan) -> tuple[Site, Product]:
        params: dict[str, Any] = plan.stage.params
        if plan.digest not in self._classifiers:
            self._classifiers[plan.digest] = make_classifier(self._model, params["classes"], params["templates"])
        classifier = self._classifiers[plan.digest]
        return Site.parse(classifier.site), Predictions(plan, classifier)

    @staticmethod
    def _merge(plan: Plan, inputs: Inputs) -> Iterator[Part]:
        if plan.stage.output == "activation_moments":
            moments = Moments()
            merge_partials(plan, inputs, moments)
            if not moments.is_empty:
                yield Part(plan.digest, "activation_moments", moments_table(plan, moments))
        else:
            top = TopK(int(plan.stage.params["k"]))  # type: ignore[arg-type]
            merge_partials(plan, inputs, top)
            if not top.is_empty:
                yield Part(plan.digest, "top_images", top_images_table(plan, top))

    # -------------------------------------------------------------- texts

    def _texts(self, plan: Plan, shard: Shard) -> Part:
        """Texts as they are, then classes averaged over templates; all of unit length."""
        params: dict[str, Any] = plan.stage.params
        texts, classes = list(params["texts"]), list(params["classes"])
        names = (texts + classes)[shard.start : shard.stop]
        plain = names[: max(0, len(texts) - shard.start)]
        parts = []
        if plain:
            parts.append(torch.nn.functional.normalize(self._model.embed_text(plain).float(), dim=-1))
        if names[len(plain) :]:
            parts.append(zero_shot_classifier(self._model, names[len(plain) :], get_templates(params["templates"])).T)
        self.notes += notes_of_cut(
            self._model, [*plain, *fill_templates(names[len(plain) :], get_templates(params["templates"]))]
        )
        values = torch.cat(parts)
        rounded = round_values(values, params["round_to"])
        columns = {
            "stage": plan.digest,
            "model": plan.stage.subject,
            "text_id": list(range(shard.start, shard.stop)),
            "text": names,
            "embedding": make_vectors(rounded.cpu().numpy()),
        }
        return Part(plan.digest, "text_embeddings", make_batch("text_embeddings", columns))


def open_worker(setting: Setting, inputs: Inputs) -> ExtractWorker:
    """Load the model onto the device the spec states."""
    return ExtractWorker(setting, inputs)
