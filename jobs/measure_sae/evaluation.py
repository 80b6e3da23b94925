"""The held-out measurement of SAEs at one site: how they reconstruct its tokens, and what the model loses with those in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jobs.classes import Classifier, make_classifier
from jobs.forward import IndexForward
from jobs.labels import read_classes
from jobs.predictions import HEAD, class_names
from jobs.protocol import Inputs, Part
from jobs.rows import make_batch
from jobs.sae_tokens import SiteTokens
from jobs.tokens.heldout import heldout
from jobs.tokens.order import Order
from jobs.tokens.sources import Source
from miclip_core.sae.evaluate import LossSums, Quality, constant, splice
from miclip_core.sae.sae import Sae
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.suffix import Suffix
from schemas.base import canonical_json
from schemas.errors import BadSite, UnknownSite, UnsupportedBlock
from schemas.plans import Plan, load_json
from schemas.sae import StreamSettings

ROWS = 4096
"""Tokens that are reconstructed together."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One SAE to measure, and what else its row of sae_summary says; columns that are left out are null."""

    plan: Plan
    sae: Sae
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The held-out images of one site, for SAEs whose plans agree on them."""

    tokens: SiteTokens
    params: Mapping[str, Any]
    source: Source
    model: VisionModel
    inputs: Inputs
    threads: int

    def measure(self, saes: Sequence[Measured]) -> Iterator[Part]:
        """A row of sae_summary for each; the original forward pass of the images is shared by all.

        Raises:
            TooFewTokens, BadTokens: the held-out images give no tokens, or tokens that are all alike.
            BadTokens, BadSae: the width of an SAE is not that of the site.
        """
        qualities, images = self._reconstruct(saes)
        losses = self._splice(saes, qualities[0].mean_D, images)
        for measured, quality, loss in zip(saes, qualities, losses, strict=True):
            columns = _row(measured, quality, loss, len(images), self._loss_kind(loss))
            yield Part(measured.plan.digest, "sae_summary", make_batch("sae_summary", columns))

    @property
    def _order(self) -> Order:
        return Order(self.tokens.forward.rows, load_json(StreamSettings, canonical_json(self.params["stream"])))

    @property
    def _limit(self) -> int:
        return int(self.params["evaluate_images"])

    def _reconstruct(self, saes: Sequence[Measured]) -> tuple[list[Quality], set[int]]:
        """Sums over the held-out tokens, and the images that gave them."""
        qualities = [Quality() for _ in saes]
        images: set[int] = set()
        site = self.tokens.site
        for found in heldout(self.source, self._order, [site], self._limit):
            images.update(index for index, _ in found[site].images)
            for part_ND in found[site].values.split(ROWS):
                x_ND = part_ND.to(self.model.device).float()
                for measured, quality in zip(saes, qualities, strict=True):
                    codes, x_hat_ND = measured.sae.reconstruct(x_ND)
                    quality.add(x_ND, x_hat_ND, codes)
        return qualities, images

    # -------------------------------------------------------------- the model

    def _splice(self, saes: Sequence[Measured], mean_D: Tensor, images: set[int]) -> list[LossSums]:
        """What the model says with each SAE, with zeros and with the mean in the site; nothing where it cannot be edited."""
        sums = [LossSums() for _ in saes]
        try:
            ablations = {
                "zero": constant(self.model, self.tokens.site, 0.0),
                "mean": constant(self.model, self.tokens.site, mean_D),
            }
            spliced = [splice(self.model, self.tokens.site, measured.sae) for measured in saes]
        except BadSite:  # a mean or maximum of tokens is no part of the forward pass
            return sums
        spliced_run = SplicedRun(self.model, self.tokens.site, self._classifier())
        if not spliced_run.targets:
            return sums
        forward = IndexForward(self.model, self.tokens.forward, self.threads)
        ranges = self._order.heldout_ranges(self._limit)
        labels = self._labels(ranges)
        for batch in forward.pixels(self.inputs, ranges):
            chosen = [i for i, image in enumerate(batch.images) if image.image_index in images]
            if not chosen:
                continue
            labels_B = torch.tensor([labels.get(batch.images[i].image_index, -1) for i in chosen])
            try:
                shared = spliced_run.begin(self.model.normalise(batch.pixels), ablations, chosen)
                for total, edits in zip(sums, spliced, strict=True):
                    outputs = {**shared, "spliced": spliced_run.edited(edits)}
                    total.add(spliced_run.logits(outputs), labels_B, spliced_run.embeddings(outputs))
            except (UnknownSite, UnsupportedBlock):  # computed from other sites, so it cannot be replaced
                return sums
        return sums

    def _classifier(self) -> Classifier | None:
        classes = self.params["classes"]
        return None if classes is None else make_classifier(self.model, classes, self.params.get("templates", "plain"))

    def _labels(self, ranges: Sequence[tuple[int, int]]) -> dict[int, int]:
        """Row of the index -> class. Raises BadLabels: the spec gives classes, and no image is of any."""
        classes = self.params["classes"]
        if classes is None:
            return {}
        names = class_names(self.model.facts, self.params)
        index, column = self.tokens.forward.index, str(self.params["labels_from"])
        return read_classes(self.inputs, index, names, column, ranges, required=classes != HEAD)

    def _loss_kind(self, loss: LossSums) -> str | None:
        if loss.loss("original") is None:
            return None
        return "head" if self.params["classes"] == HEAD else "zero_shot"


class SplicedRun:
    """One batch of images at a time: what the model says of it as it is, with ablations and with reconstructions."""

    def __init__(self, model: VisionModel, site: str, classifier: Classifier | None) -> None:
        self._classifier = classifier
        self._suffix = Suffix(model, site, ["embedding", *([classifier.site] if classifier else [])])
        self._chosen: list[int] = []

    @property
    def targets(self) -> list[str]:
        """What is looked at at the end of the pass."""
        return self._suffix.targets

    def begin(
        self, images_BCIJ: Tensor, ablations: Mapping[str, Sequence[Edit]], chosen: list[int]
    ) -> dict[str, dict[str, Tensor]]:
        """Run images as they are and with each ablation; `chosen` of them count."""
        self._chosen = chosen
        original = self._of_chosen(self._suffix.begin(images_BCIJ))
        return {"original": original, **{name: self.edited(edits) for name, edits in ablations.items()}}

    def edited(self, edits: Sequence[Edit]) -> dict[str, Tensor]:
        """The targets of the chosen images with edits."""
        return self._of_chosen(self._suffix.edited(edits))

    def logits(self, outputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
        """Logits by variant, if there are classes."""
        if self._classifier is None:
            return None
        return {name: self._classifier.logits(out[self._classifier.site]) for name, out in outputs.items()}

    def embeddings(self, outputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
        """Image embeddings of original and spliced, if the model has any."""
        if "embedding" not in self.targets:
            return None
        return {name: outputs[name]["embedding"] for name in ("original", "spliced")}

    def _of_chosen(self, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: out[name][self._chosen] for name in self.targets}


def _row(
    measured: Measured, quality: Quality, loss: LossSums, images: int, loss_kind: str | None
) -> dict[str, list[Any] | str]:
    plan, config = measured.plan, measured.sae.config
    values: dict[str, Any] = {
        "stage": plan.digest,
        "model": plan.stage.subject,
        "site": str(plan.stage.params["site"]),
        "sae": f"sae:{plan.stage.inputs['sae']}",
        "source": config.source,
        "arch": config.arch,
        "d": config.d,
        "latents": config.latents,
        "k": config.k,
        "l1": None,
        "lr": None,
        "seed": config.seed,
        "steps": None,
        "tokens": config.tokens,
        "norm_scale": config.norm_scale,
        "gamma": quality.gamma,
        "dead_at_end": None,
        "images": images,
        "measured_tokens": quality.tokens,
        "l1_norm": quality.l1,
        **{name: getattr(quality, name) for name in QUALITY},
        "loss_kind": loss_kind,
        **{f"loss_{variant}": loss.loss(variant) for variant in ("original", "spliced", "zero", "mean")},
        **{f"recovered_{ablation}": loss.recovered(ablation) for ablation in ("zero", "mean")},
        "kl_spliced": loss.kl("spliced"),
        **{f"top1_{variant}": loss.top1(variant) for variant in ("original", "spliced")},
        "embedding_cosine": loss.embedding_cosine,
        "config": canonical_json({"settings": plan.stage.params.get("sae"), "sae": config.model_dump(mode="json")}),
        **measured.columns,
    }
    return {name: [value] for name, value in values.items()}


QUALITY = (
    "fvu",
    "fvu_centred",
    "explained_variance",
    "l0",
    "cosine",
    "l2_ratio",
    "relative_bias",
    "dead_fraction",
)
