"""What planning needs to know first: the inspect and index stages of a pipeline, and what they have published."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cluster.cache import fetch_to_node
from cluster.cells import Needs
from cluster.files import Files
from cluster.inputs import StoreInputs
from cluster.ledger import load_published
from cluster.listing import IndexPlan, load_image_facts, plan_index
from cluster.stores.base import Store
from jobs.files import hash_tree
from jobs.inspect.plan import make_inspect_plan, make_stamp
from jobs.model_folders import weight_bytes
from jobs.protocol import ImageFacts, Known
from schemas import layout
from schemas.base import DIGEST_LENGTH
from schemas.errors import BadRef, BadSpec, KeyMissing, UnknownModel
from schemas.models import ModelFacts
from schemas.plans import Plan, Resources, StageSpec, load_json
from schemas.refs import SaeRef

INSPECT_RESOURCES = Resources(workers=1)


@dataclass(frozen=True)
class FactPlans:
    """The stages that make facts, by what they are facts of; and what needs no stage: files, named stages, lists of concepts.

    files, weights: sha256 of all that is at a location, and bytes of the weights among it.
    """

    models: dict[str, Plan]
    images: dict[str, IndexPlan]
    files: dict[str, str] = field(default_factory=dict)
    stages: dict[str, StageSpec] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    missing: dict[str, UnknownModel] = field(default_factory=dict)
    """Models that are not there, and what is said of each."""

    def with_resources(self, index: Resources) -> list[tuple[Plan, Resources]]:
        """All of them, and what their workers need."""
        models = [(plan, INSPECT_RESOURCES) for plan in self.models.values()]
        return models + [(found.plan, index) for found in self.images.values()]

    def freeze(self, store: Store, index: Resources) -> list[tuple[Plan, Resources]]:
        """As `with_resources`, ready to run: what their shards read is in the store."""
        for found in self.images.values():
            if load_published(store, found.plan.digest) is None:
                found.freeze(store)
        return self.with_resources(index)


def plan_facts(needs: Needs, store: Store) -> FactPlans:
    """Plan inspection and indexing; lists the image sources, reads no image and no model, writes nothing.

    Raises:
        UnknownModel: no demo model or local checkpoint is there, of several that are named; all of them are named. Where
            others are there, it is among the facts.
        EmptyImageSet, BadRef, Unreachable: an image set cannot be listed.
        BadRef: an SAE or a list of concepts that the spec names is not there.
        BadSpec: a list of concepts is no text.
    """
    files = Files()
    models, missing = {}, {}
    for model, modules in needs.models.items():
        try:
            models[model] = make_inspect_plan(model, make_stamp(model, files), modules)
        except UnknownModel as error:
            missing[model] = error
    if missing and not models:
        raise UnknownModel("\n".join(map(str, missing.values())))
    paths = {location: _fetch(files, location) for location in needs.files}
    return FactPlans(
        models,
        images={images.key: plan_index(files, images) for images in needs.images},
        files={location: hash_tree(path) for location, path in paths.items()},
        stages={ref: find_stage(store, ref) for ref in needs.stages},
        texts={ref: _read_text(files, ref) for ref in needs.texts},
        weights={location: weight_bytes(path) for location, path in paths.items()},
        missing=missing,
    )


def _fetch(files: Files, location: str) -> Path:
    try:
        return fetch_to_node(files, location if "://" in location else f"file:{location}")
    except UnknownModel as error:
        raise BadRef(f"{location}: nothing there ({error})") from None


def _read_text(files: Files, ref: str) -> str:
    try:
        return files.read(ref.removeprefix("file:")).decode("utf-8")
    except (KeyMissing, IsADirectoryError) as error:
        raise BadRef(f"concepts {ref}: expected a file with one name per line, found none ({error})") from None
    except UnicodeDecodeError as error:
        raise BadSpec(f"concepts {ref}: not UTF-8 text ({error}); save it as UTF-8, one name per line") from None


def find_stage(store: Store, ref: str) -> StageSpec:
    """The published stage that `sae:<first digits>` names.

    Raises:
        BadRef: none begins so, or several do.
    """
    start = SaeRef.parse(ref).location
    keys = [layout.published_key(start)] if len(start) == DIGEST_LENGTH else store.list("stages")
    found = sorted({key.split("/")[1] for key in keys if key.startswith(f"stages/{start}") and "/published" in key})
    specs = [published.stage for digest in found if (published := load_published(store, digest)) is not None]
    if len(specs) != 1:
        there = f"{len(specs)} stages begin so" if specs else "no published stage begins so"
        raise BadRef(f"{ref}: {there} in {store.uri}; `miclip saes` lists what there is")
    return specs[0]


def load_known(plans: FactPlans, store: Store) -> Known:
    """What has been published so far; what is missing is left out."""
    models: dict[str, ModelFacts] = {}
    images: dict[str, ImageFacts] = {}
    for model, plan in plans.models.items():
        if load_published(store, plan.digest) is not None:
            rows = list(StoreInputs(store).table(plan.digest, "models", ["facts"]))
            models[model] = load_json(ModelFacts, rows[0].column("facts")[0].as_py())
    for key, index in plans.images.items():
        if (found := load_image_facts(store, index.plan.digest)) is not None:
            images[key] = found
    return Known(models, images, plans.files, plans.stages, plans.texts, plans.weights)
