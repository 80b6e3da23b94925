"""What planning needs to know first: the inspect and index stages of a pipeline, and what they have published."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.cells import Needs
from cluster.files import Files
from cluster.inputs import StoreInputs
from cluster.ledger import load_published
from cluster.listing import load_image_facts, plan_index
from cluster.stores.base import Store
from jobs.inspect.plan import make_inspect_plan, make_stamp
from jobs.protocol import ImageFacts, Known
from schemas.errors import MiclipError
from schemas.models import ModelFacts
from schemas.plans import Plan, Resources, load_json

INSPECT_RESOURCES = Resources(workers=1)


@dataclass(frozen=True)
class FactPlans:
    """The stages that make facts, by what they are facts of; a model that is not there has an error instead."""

    models: dict[str, Plan]
    images: dict[str, Plan]
    errors: dict[str, str]

    def with_resources(self, index: Resources) -> list[tuple[Plan, Resources]]:
        """All of them, ready to run."""
        models = [(plan, INSPECT_RESOURCES) for plan in self.models.values()]
        return models + [(plan, index) for plan in self.images.values()]


def plan_facts(needs: Needs, store: Store) -> FactPlans:
    """Plan inspection and indexing; lists the image sources, reads no image and no weights.

    Raises:
        EmptyImageSet, BadRef, Unreachable: an image set cannot be listed.
    """
    files = Files()
    models, errors = {}, {}
    for model, modules in needs.models.items():
        try:
            models[model] = make_inspect_plan(model, make_stamp(model, files), modules, model in needs.trusted)
        except MiclipError as error:
            errors[model] = str(error)
    images = {images.key: plan_index(store, files, images) for images in needs.images}
    return FactPlans(models, images, errors)


def load_known(plans: FactPlans, store: Store) -> Known:
    """What has been published so far; what is missing is left out."""
    models: dict[str, ModelFacts] = {}
    images: dict[str, ImageFacts] = {}
    for model, plan in plans.models.items():
        if load_published(store, plan.digest) is not None:
            rows = list(StoreInputs(store).table(plan.digest, "models", ["facts"]))
            models[model] = load_json(ModelFacts, rows[0].column("facts")[0].as_py())
    for key, plan in plans.images.items():
        if (found := load_image_facts(store, plan.digest)) is not None:
            images[key] = found
    return Known(models, images)
