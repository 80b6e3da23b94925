"""The extract worker: one model opened once, one forward pass per batch for all stages that still lack the shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from jobs.extract.pixels import Problem, iter_pixels
from jobs.extract.products import (
    Activations,
    Embeddings,
    Predictions,
    Product,
    Reduced,
    Rows,
    fits,
    make_batch,
    make_vectors,
    merge_partials,
    moments_table,
    pick,
    round_values,
    top_images_table,
)
from jobs.locate import locate_through
from jobs.protocol import Artifact, ImageBytes, Inputs, Keep, Part, Setting
from miclip_core.zoo.geometry import square_view, to_pixels
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.reducers import Moments, TopK
from miclip_core.zoo.stream import TappedBatch, tapped
from miclip_core.zoo.templates import OPENAI_TEMPLATES
from miclip_core.zoo.text import zero_shot_classifier
from schemas.errors import NonFiniteActivation, OutOfMemory, WeightsMissing
from schemas.plans import Plan, Shard
from schemas.refs import ModelRef, Site

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPLATES = {"openai80": OPENAI_TEMPLATES, "plain": ("a photo of a {}.",)}


class ExtractWorker:
    """Holds one model; `notes` says what people should know of a shard, such as a batch that was halved."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._threads = setting.resources.decode_threads
        # sums are cut by threads, so their last bits follow the stated CPUs and not what the machine happens to have
        torch.set_num_threads(max(1, int(setting.resources.cpus)))
        first = setting.plans[0]
        self._params: dict[str, Any] = first.stage.params
        self._batch_size = int(first.effort["batch_size"])  # type: ignore[arg-type]
        self.notes: list[str] = []
        sites = [str(p.stage.params["site"]) for p in setting.plans if "site" in p.stage.params]
        self._model = open_model(first, inputs, setting.device, sites)
        self._classifiers: dict[str, Tensor] = {}

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
        index = str(plans[0].effort["index"])
        batches = iter_pixels(
            inputs.images(index, shard.start, shard.stop),
            self._to_pixels(),
            batch_size=self._batch_size,
            threads=self._threads,
            orientation=self._params["orientation"],
            on_changed=self._params["on_changed"],
        )
        sites = list(dict.fromkeys(site for _, site, _ in products))
        for batch in batches:
            yield from self._bad_inputs(plans, batch.problems)
            if not batch.images:
                continue
            for tapped_batch, images in self._forward(batch.images, batch.pixels, sites):
                for plan, site, product in products:
                    yield from self._feed(plan, product, site, tapped_batch, images)
        for _, _, product in products:
            yield from product.finish()

    def _forward(
        self, images: Sequence[ImageBytes], pixels: Tensor, sites: Sequence[Site]
    ) -> Iterator[tuple[TappedBatch, Sequence[ImageBytes]]]:
        """One forward at the planned shape; on a device that is too small, at half of it from here on."""
        start = 0
        while start < len(images):
            size = self._batch_size
            some = images[start : start + size]
            ids = [image.image_id for image in some]
            try:
                (out,) = tapped(
                    self._model,
                    [(ids, pixels[start : start + len(some)])],
                    sites,
                    batch_size=size,
                    quarantine=lambda image_id, site: None,
                )
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise OutOfMemory(
                        f"{self._model.facts.model}: one image does not fit on {self._model.device}; "
                        "use a larger device, dtype: bf16, or fewer sites at once"
                    ) from error
                self._batch_size = size // 2
                self.notes.append(f"out of memory at batch size {size}, went on with {self._batch_size}")
                torch.cuda.empty_cache()
                continue
            yield out, some
            start += len(some)

    def _feed(
        self, plan: Plan, product: Product, site: Site, batch: TappedBatch, images: Sequence[ImageBytes]
    ) -> Iterator[Part]:
        """The rows of one site to one stage; images that cannot be stored stop the shard or are set aside."""
        finite_B = batch.finite[str(site)]
        yield from self._set_aside(plan, site, pick(images, ~finite_B), "is NaN or infinite", "use dtype: fp32")
        kept = pick(images, finite_B)
        if not kept:
            return
        values, positions = batch.rows(site)
        to = str(plan.stage.params.get("round_to", "fp32"))
        fits_B = fits(values, to)
        if not fits_B.all():
            words = f"reaches {values.abs().max().item():.6g}, which does not fit {to}"
            yield from self._set_aside(plan, site, pick(kept, ~fits_B), words, "set round_to: bf16 or fp32")
            kept = pick(kept, fits_B)
            chosen = torch.from_numpy(fits_B)
            values = values[chosen.to(values.device)]
            positions = positions if positions.ndim == 1 else positions[fits_B]
        if kept:
            yield from product.add(Rows(values, positions, kept))

    def _set_aside(
        self, plan: Plan, site: Site, images: Sequence[ImageBytes], words: str, advice: str
    ) -> Iterator[Part]:
        if not images:
            return
        if self._params["on_nonfinite"] == "stop":
            raise NonFiniteActivation(
                f"{self._model.facts.model} {site} {words} for {len(images)} images, first {images[0].image_id} "
                f"({images[0].uri}); {advice}, take the image out, or set on_nonfinite: quarantine"
            )
        yield from self._bad_inputs([plan], [Problem(image, "nonfinite", f"{site} {words}") for image in images])

    @staticmethod
    def _bad_inputs(plans: Sequence[Plan], problems: Sequence[Problem]) -> Iterator[Part]:
        if not problems:
            return
        for plan in plans:
            columns = {
                "stage": plan.digest,
                "image_id": [p.image.image_id for p in problems],
                "image_index": [p.image.image_index for p in problems],
                "uri": [p.image.uri for p in problems],
                "reason": [p.reason for p in problems],
                "detail": [p.detail for p in problems],
            }
            yield Part(plan.digest, "bad_inputs", make_batch("bad_inputs", columns))

    def _to_pixels(self) -> Callable[[Image.Image], Tensor]:
        geometry = self._model.facts.geometry
        if self._params["geometry"] == "square":
            return lambda image: square_view(image, geometry)
        return lambda image: to_pixels(image, geometry)

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
        classes: Any = plan.stage.params["classes"]
        if classes == "head":
            assert self._model.facts.classes is not None
            return Site.parse("logits"), Predictions(plan, self._model.facts.classes, None, 1.0)
        if plan.digest not in self._classifiers:
            templates = get_templates(plan)
            self._classifiers[plan.digest] = zero_shot_classifier(self._model, classes, templates)
        scale = getattr(self._model.module, "logit_scale", None)
        scale = 1.0 if scale is None else float(scale.detach().float().exp())
        return Site.parse("embedding"), Predictions(plan, classes, self._classifiers[plan.digest], scale)

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
            parts.append(zero_shot_classifier(self._model, names[len(plain) :], get_templates(plan)).T)
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


def get_templates(plan: Plan) -> Sequence[str]:
    """The sentences a plan's templates stand for."""
    templates: Any = plan.stage.params["templates"]
    return TEMPLATES[templates] if isinstance(templates, str) else templates


def open_model(plan: Plan, inputs: Inputs, device: str, sites: Sequence[str]) -> VisionModel:
    """The model of a plan, if it is still the one that was inspected.

    Raises:
        WeightsMissing: the checkpoint changed since.
    """
    modules = tuple(sorted({Site.parse(site).path for site in sites if site.startswith("module:")}))
    ref = ModelRef.parse(plan.stage.subject)
    if ref.location is None and plan.effort["revision"]:
        ref = ref.model_copy(update={"revision": plan.effort["revision"]})
    if device == "cuda":
        _compute_exactly()
    model = load_model(
        ref,
        locate=locate_through(inputs),
        device=device,
        dtype=DTYPES[str(plan.stage.params["dtype"])],
        modules=modules,
    )
    wanted = str(plan.effort["files"])
    if model.facts.files_sha256 != wanted:
        raise WeightsMissing(
            f"{plan.stage.subject}: its weights, configuration or tokeniser changed since it was inspected (expected sha256 "
            f"{wanted[:12]}..., found {model.facts.files_sha256[:12]}...); run the spec again to inspect it anew"
        )
    return model


def _compute_exactly() -> None:
    """Let fp32 mean fp32 on a GPU, and equal input give equal bits: no TF32, no kernel chosen by timing."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def open_worker(setting: Setting, inputs: Inputs) -> ExtractWorker:
    """Load the model onto the device the spec states."""
    return ExtractWorker(setting, inputs)
