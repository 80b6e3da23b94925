"""The `activations` of a site as a stage, whether it is stored or only computed where it is needed; loads no torch."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from jobs.protocol import Cell, ImageFacts, Known
from schemas.base import Frozen, canonical_json, digest
from schemas.cells import ForwardCell, Images, OverZoo
from schemas.errors import NotInspected
from schemas.models import ModelFacts
from schemas.plans import Plan, StageSpec, load_json

METHOD = 1


class Forward(Frozen):
    """One model over one image set: all that decides the activations of any of its sites, and how they are computed here.

    inputs: digests of model and images. params: what every site shares. effort: index stage, batch size, revision and
    sha256 of the checkpoint's files.
    """

    model: str
    inputs: dict[str, str]
    params: dict[str, JsonValue]
    effort: dict[str, JsonValue]

    @property
    def rows(self) -> int:
        """Rows of the index that are read."""
        return int(self.params["rows"])  # type: ignore[arg-type]

    @property
    def index(self) -> str:
        """The stage whose table `images` says where they are."""
        return str(self.effort["index"])

    def over(self, images: ImageFacts, of: Images, batch_size: int) -> Forward:
        """The same model, precision and view over other images."""
        return Forward(
            model=self.model,
            inputs={**self.inputs, "images": images.content},
            params={**self.params, **_which(images, of)},
            effort={**self.effort, "index": images.stage, "batch_size": batch_size},
        )

    def stage(self, site: str, round_to: str) -> StageSpec:
        """The stage that holds the activations of one canonical site."""
        return StageSpec(
            kind="extract",
            method=METHOD,
            subject=self.model,
            output="activations",
            params={**self.params, "site": site, "round_to": round_to},
            inputs=self.inputs,
        )


def make_forward(cell: Cell, known: Known) -> Forward:
    """The forward pass of a cell over its images.

    Raises:
        NotInspected: the model or the image set is not known yet. ReadsNoImages: the model is a generator, which is of use
            to stages about a zoo alone.
    """
    spec = cell.spec
    assert isinstance(spec, ForwardCell) and cell.images is not None
    facts, images = get_facts(cell, known), _get_images(cell, known)
    if not isinstance(spec, OverZoo):
        facts.check_reads_images()
    return Forward(
        model=facts.model,
        inputs={"model": model_digest(facts), "images": images.content},
        params={
            **_which(images, cell.images),
            "dtype": spec.dtype,
            "geometry": spec.geometry,
            "on_nonfinite": spec.on_nonfinite,
            "on_changed": spec.on_changed,
        },
        effort={"batch_size": spec.batch_size, "index": images.stage, **checkpoint(facts)},
    )


def _which(images: ImageFacts, of: Images) -> dict[str, JsonValue]:
    """Which rows of an index are read, and which way up."""
    return {"rows": min(images.rows, of.limit or images.rows), "orientation": of.orientation}


def forward_of(plan: Plan) -> Forward:
    """The forward pass that a plan of activations describes."""
    own = ("site", "round_to")
    params: dict[str, Any] = {name: value for name, value in plan.stage.params.items() if name not in own}
    return Forward(model=plan.stage.subject, inputs=plan.stage.inputs, params=params, effort=plan.effort)


def forward_effort(plan: Plan) -> Forward:
    """The forward pass that a plan of something else says in its effort `forward`, as `model_dump` wrote it."""
    return load_json(Forward, canonical_json(plan.effort["forward"]))


def get_facts(cell: Cell, known: Known) -> ModelFacts:
    """What inspection published of the cell's model. Raises NotInspected."""
    facts = known.models.get(cell.model or "")
    if facts is None:
        raise NotInspected(f"{cell.model} is not inspected yet")
    return facts


def _get_images(cell: Cell, known: Known) -> ImageFacts:
    assert cell.images is not None
    images = known.images.get(cell.images.key)
    if images is None:
        raise NotInspected(f"{cell.images.ref} is not indexed yet")
    return images


def images_ref(known: Known, index: str) -> str | None:
    """The ref of the image set that a stage is the index of, if planning knows it."""
    keys = [key for key, images in known.images.items() if images.stage == index]
    return load_json(Images, keys[0]).ref if keys else None


def checkpoint(facts: ModelFacts) -> dict[str, JsonValue]:
    """Which state of the checkpoint is to be loaded: a hub branch may move between inspection and use."""
    return {"files": facts.files_sha256, "revision": facts.revision}


def model_digest(facts: ModelFacts) -> str:
    """What of a model decides its activations: weights, structure and preprocessing, not where it was found or who reads it."""
    left_out = {"model", "revision", "library_versions", "flops", "sites", "language"}
    return digest(facts.model_dump(mode="json", exclude=left_out))
