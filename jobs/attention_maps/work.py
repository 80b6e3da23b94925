"""The attention_maps worker: one model; images are decoded once for all lists of features, and each is looked at by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jobs.activations import forward_effort
from jobs.attention_maps.choice import Choice, LabelledIndex, choose, read_labelled
from jobs.attention_maps.rows import Map, make_part
from jobs.attention_maps.truth import Truth
from jobs.blame import blaming
from jobs.forward import read_pixels
from jobs.models import open_model
from jobs.protocol import ImageBytes, Inputs, Keep, Part, Setting
from jobs.sae_files import WEIGHTS
from jobs.threads import use_cpus
from miclip_core.align.attention_maps import attention_maps, model_attention
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.model import VisionModel
from schemas.base import canonical_json
from schemas.errors import NonFiniteActivation
from schemas.plans import Plan, Shard


class AttentionMapsWorker:
    """Serves lists of features of one model; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._model: VisionModel | None = None
        self._lookers: dict[str, Looker] = {}
        self._labelled: dict[str, LabelledIndex] = {}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """The maps of a range of images."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        model = self._get_model(plans[0], inputs)
        lookers = [self._get_looker(plan, inputs) for plan in plans]
        wanted = {i for looker in lookers for i in looker.choice.concepts if shard.start <= i < shard.stop}
        for looker in lookers:
            self.notes += looker.notes()
        found: dict[str, list[Map]] = {plan.digest: [] for plan in plans}
        for image, x_1CIJ in self._images(plans[0], model, shard, wanted, inputs):
            own = Own(model, x_1CIJ)
            for looker in lookers:
                with blaming(looker.plan):
                    found[looker.plan.digest] += self._look(looker, image, own)
        self.notes[:] = dict.fromkeys(self.notes)
        yield from (make_part(plan, found[plan.digest]) for plan in plans if found[plan.digest])

    def _images(
        self, plan: Plan, model: VisionModel, shard: Shard, wanted: set[int], inputs: Inputs
    ) -> Iterator[tuple[ImageBytes, Tensor]]:
        """One image at a time, so that no other decides the last bits of its map."""
        if not wanted:
            return
        forward, threads = forward_effort(plan), self._setting.resources.decode_threads
        size = min(len(wanted), int(str(forward.effort["batch_size"])))
        rows = [(shard.start, shard.stop)]
        problems: Counter[str] = Counter()
        for batch in read_pixels(inputs, forward, model.facts.geometry, rows, threads, size, wanted):
            problems.update(problem.reason for problem in batch.problems)
            for place, image in enumerate(batch.images):
                yield image, model.normalise(batch.pixels[place : place + 1])
        self.notes += [f"{count} images left out: {reason}" for reason, count in problems.items()]

    def _look(self, looker: Looker, image: ImageBytes, own: Own) -> list[Map]:
        maps = looker.maps(image, own)
        if all(bool(m.saliency_IJ.isfinite().all()) for m in maps):
            return maps
        site = looker.plan.stage.params["site"]
        if looker.plan.stage.params["on_nonfinite"] == "stop":
            raise NonFiniteActivation(
                f"{image.uri}: attention after {site} of {looker.plan.stage.subject} is NaN or infinite (image "
                f"{image.image_id}); use dtype: fp32, take the image out, or set on_nonfinite: quarantine"
            )
        self.notes.append(f"image {image.image_id} left out: attention after {site} is NaN or infinite")
        return []

    def _get_model(self, plan: Plan, inputs: Inputs) -> VisionModel:
        if self._model is None:
            sites = [str(other.stage.params["site"]) for other in self._setting.plans]
            self._model = open_model(forward_effort(plan), inputs, self._setting.device, sites)
        return self._model

    def _get_looker(self, plan: Plan, inputs: Inputs) -> Looker:
        if plan.digest not in self._lookers:
            with blaming(plan):
                sae = load_sae(inputs.published(plan.stage.inputs["sae"], WEIGHTS)).to(self._setting.device)
                self._lookers[plan.digest] = Looker(plan, sae, choose(plan, inputs, self._get_labelled(plan, inputs)))
        return self._lookers[plan.digest]

    def _get_labelled(self, plan: Plan, inputs: Inputs) -> LabelledIndex:
        key = canonical_json(plan.stage.params["labels_from"])
        if key not in self._labelled:
            self._labelled[key] = read_labelled(plan, inputs)
        return self._labelled[key]


class Own:
    """One image in a model, and the model's own attention by site, looked at once for all lists of features."""

    def __init__(self, model: VisionModel, x_1CIJ: Tensor) -> None:
        self.model, self.x_1CIJ = model, x_1CIJ
        self._maps: dict[str, Tensor] = {}

    def attention(self, site: str) -> Tensor:
        """Over the patches after a site, [h, w]."""
        if site not in self._maps:
            self._maps[site] = model_attention(self.model, site, self.x_1CIJ)[0].cpu()
        return self._maps[site]


class Looker:
    """One list of features, and the images that it is looked for on."""

    def __init__(self, plan: Plan, sae: Sae, choice: Choice) -> None:
        self.plan, self.choice = plan, choice
        self._sae = sae
        self._truth: Truth | None = None

    def maps(self, image: ImageBytes, own: Own) -> list[Map]:
        """Of each concept that an image is looked at for: with its features alone, then the model's own."""
        concepts = self.choice.concepts.get(image.image_index, ())
        if not concepts:
            return []
        params = self.plan.stage.params
        units = [self.choice.units[concept] for concept in concepts]
        units_BK = torch.tensor([[*u, *[-1] * (max(map(len, units)) - len(u))] for u in units])
        x_BCIJ = own.x_1CIJ.expand(len(units), -1, -1, -1)
        site, activation = str(params["site"]), params["activation"]
        saliency_BIJ = attention_maps(own.model, site, self._sae, x_BCIJ, units_BK, activation).cpu()  # type: ignore[arg-type]
        if self._truth is None:
            self._truth = Truth(self.plan, image.uri)
        masks = self._truth.masks(image.uri, concepts)
        found = []
        for concept, some, saliency_IJ, mask_IJ in zip(concepts, units, saliency_BIJ, masks, strict=True):
            found.append(Map(image, concept, "features", some, saliency_IJ, mask_IJ))
            found.append(Map(image, concept, "model", (), own.attention(site), mask_IJ))
        return found

    def notes(self) -> list[str]:
        """Concepts without maps."""
        which = {
            "no image is labelled with it": self.choice.without_images,
            "it has no features": self.choice.without_units,
        }
        return [
            f"{len(names)} concepts have no maps, such as {names[0]}: {why}" for why, names in which.items() if names
        ]


def open_worker(setting: Setting, inputs: Inputs) -> AttentionMapsWorker:
    """Nothing is loaded before a shard needs it."""
    return AttentionMapsWorker(setting, inputs)
