"""Describe cells to plans: one stage per method on the units of one site or SAE; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue

from jobs.activations import Forward, get_facts, images_ref
from jobs.concepts import concept_columns, get_concepts
from jobs.describe.choose import Choice, Units
from jobs.describe.sizes import READ_IMAGES, Sizes, between_bytes, method_bytes
from jobs.describe.spatial import caption_buckets, check_spatial, spatial_effort, spatial_params
from jobs.embeddings import clip_forward, clip_images_plan, clip_texts_plan
from jobs.memory import LIBRARY_BYTES
from jobs.predictions import PREDICTED, predictions_read
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_tokens import latents_of, patch_positions, planned_tokens
from schemas.base import digest
from schemas.cells import templates_json
from schemas.concept_specs import OF_A_CLIP, OF_LABELS, SPATIAL, DescribeSpec, Method, Similarity
from schemas.errors import BadSpec, NotInspected
from schemas.plans import Plan, Round, StageSpec

METHOD = 1
LISTS = ("unit_concepts", "descriptions")
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    **{method: {"score": LISTS} for method in ("miclip", "act_values", "auroc", "clip_dissect")},
    "netdissect": {"score": (*LISTS, "unit_iou")},
    "v_interp": {"caption": ("unit_captions",), "score": LISTS},
}
"""What earlier rounds make only goes on to later ones."""
ARTIFACTS: dict[str, tuple[str, ...]] = dict.fromkeys(TABLES, ())
USUAL_LATENTS = 16
"""Latents of an SAE per channel, where nobody says."""
OVER_IMAGES = ("map", "pass1", "pass2", "pass3", "overlaps")
"""Rounds whose shards are ranges of images; all others are about all units, or one bucket of them in round `caption`."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """One stage per method, similarity, site, kind of units, SAE and encoder; before them what a CLIP makes of images and concepts.

    Raises:
        NotInspected: the model or the CLIP is not known yet.
        BadSpec: nothing that is read has the units that are asked for, a method lacks what it needs, or the concepts are
            no list of different names.
    """
    return _Planner(cell, known).plans()


class _Planner:
    """What all stages of one cell share."""

    def __init__(self, cell: Cell, known: Known) -> None:
        assert isinstance(cell.spec, DescribeSpec)
        self.cell, self.spec, self.known = cell, cell.spec, known
        self.facts = get_facts(cell, known)
        self.clip = known.models.get(cell.clip) if cell.clip is not None else None
        if cell.clip is not None and self.clip is None:
            raise NotInspected(f"{cell.clip} is not inspected yet")
        self.choice = Choice(cell, self.facts)
        self.concepts = get_concepts(self.spec.concepts, known.texts, self.choice.classes)
        self._beside: dict[str, Plan] = {}

    def plans(self) -> tuple[Plan, ...]:
        """Embeddings of images and texts where a method compares in the space of a CLIP, then the stages."""
        stages = [plan for method in self.spec.methods for plan in self._method(method)]
        return (*self._beside.values(), *stages)

    # ---------------------------------------------------------------- stages

    def _method(self, method: Method) -> Iterator[Plan]:
        similarities = self.spec.similarity if method == "clip_dissect" else (None,)
        for units in self.choice.units(method):
            self._check(method, units)
            for similarity in similarities:
                yield self._plan(method, units, similarity)

    def _check(self, method: Method, units: Units) -> None:
        if units.sae is None and self.spec.tau > units.tokens.width(self.facts):
            raise self.choice.refuse(
                f"{self.spec.tau} is more than the {units.tokens.width(self.facts)} units of {units.tokens.site}", "tau"
            )
        if method in SPATIAL:
            view = patch_positions(self.facts, units.tokens)
            try:
                check_spatial(method, self.spec, self.known, self.concepts, units.tokens, view)
            except BadSpec as error:
                raise self.choice.refuse(str(error), "methods") from None

    def _plan(self, method: Method, units: Units, similarity: Similarity | None) -> Plan:
        tokens = units.tokens
        rounds = self._rounds(method, units, similarity)
        effort = self._effort(method, units)
        stage = StageSpec(
            kind="describe",
            method=METHOD,
            subject=self.facts.model,
            output=method,
            params={
                "site": tokens.site,
                "unit_kind": units.kind,
                "variant": self._variant(method, units, similarity),
                "seed": units.encoder.seed if units.encoder else None,
                "concepts": list(self.concepts.names),
                "tau": self.spec.tau,
                **self._params(method, units, similarity),
            },
            inputs=self._inputs(method, units, similarity),
        )
        structure = [[r.name, r.rows] for r in rounds]
        forward = tokens.forward
        worker = f"describe {self.facts.model} {digest([forward.inputs, forward.params, structure])}"
        return Plan(stage=stage, rounds=rounds, worker=worker, effort=effort)

    def _variant(self, method: Method, units: Units, similarity: Similarity | None) -> str:
        words = [units.encoder.variant if units.encoder else method]
        words += [similarity] if similarity else []
        if method == "miclip" and units.sae is not None and self.spec.unit_mode != "direction":
            words.append(self.spec.unit_mode)
        if method in (*OF_LABELS, "clip_dissect") and self.spec.pool != "mean":
            words.append(f"pool={self.spec.pool}")
        return " ".join(words)

    def _params(self, method: Method, units: Units, similarity: Similarity | None) -> dict[str, JsonValue]:
        """What the method needs to know, and nothing else: another setting of another method changes no digest."""
        spec = self.spec
        found: dict[str, JsonValue] = {}
        if (latents := latents_of(units.sae)) is not None:
            found["latents"] = latents
        if method in OF_A_CLIP:
            found |= {"clip": self.cell.clip, "templates": templates_json(spec.templates)}
        if method == "miclip":
            found["unit_mode"] = spec.unit_mode if units.sae is not None else "direction"
        if method in (*OF_LABELS, "clip_dissect"):
            found["pool"] = spec.pool
        if method in OF_LABELS:
            images = images_ref(self.known, units.tokens.forward.index)
            found["labels_from"] = list(spec.labels_from or concept_columns(spec.concepts, self.concepts.names, images))
        if method == "auroc":
            found["min_positives"] = spec.min_positives
        if similarity is not None:
            found["similarity"] = similarity
        if similarity == "rank_reorder":
            found["permutation_seed"] = spec.seed
        if method in SPATIAL:
            view = patch_positions(self.facts, units.tokens)
            found |= spatial_params(method, spec, self.known, self.concepts, view)
        return found

    def _inputs(self, method: Method, units: Units, similarity: Similarity | None) -> dict[str, str]:
        forward = units.tokens.forward
        inputs = {"activations": units.tokens.stage.digest}
        if units.sae is not None:
            inputs["sae"] = units.sae.digest
        if units.encoder is not None:
            inputs["encoder"] = units.encoder.plan.digest
        if method in OF_A_CLIP:
            inputs["texts"] = self._texts(forward)
        if method == "clip_dissect":
            inputs["embeddings"] = self._images(forward)
        if method in (*OF_LABELS, *SPATIAL):
            inputs["labels"] = forward.index
        if method in OF_LABELS and PREDICTED in self.spec.labels_from:
            found = predictions_read(self.cell)
            if len(found) != 1:
                raise self.choice.refuse(
                    f"labels_from holds predicted, but {len(found)} stages of predictions of {self.facts.model} are read; "
                    "expected one: add predictions to the outputs of the extract stage"
                )
            inputs["predictions"] = found[0].digest
        return inputs

    def _texts(self, forward: Forward) -> str:
        assert self.clip is not None
        plan = clip_texts_plan(forward, self.clip, self.concepts.phrases, self.spec.templates)
        return self._beside.setdefault(plan.digest, plan).digest

    def _images(self, forward: Forward) -> str:
        assert self.clip is not None
        plan = clip_images_plan(forward, self.clip)
        return self._beside.setdefault(plan.digest, plan).digest

    def _rounds(self, method: Method, units: Units, similarity: Similarity | None) -> tuple[Round, ...]:
        rows = units.tokens.forward.rows
        shard_rows = max(1, self.spec.shard_rows // READ_IMAGES) * READ_IMAGES
        names = ["map", "score"]
        if method == "v_interp":
            names = ["map", "caption", "score"]
        if method == "netdissect":
            passes = [name for n in range(1, 3 if _is_half(units) else 4) for name in (f"pass{n}", f"close{n}")]
            names = [*passes, "overlaps", "score"]
        buckets = caption_buckets(self.spec, units.tokens.width(self.facts) if units.sae is None else None)
        sizes = dict.fromkeys(OVER_IMAGES, (rows, shard_rows)) | {"caption": (buckets, 1)}
        return tuple(Round(name=n, rows=sizes.get(n, (1, 1))[0], shard_rows=sizes.get(n, (1, 1))[1]) for n in names)

    def _effort(self, method: Method, units: Units) -> dict[str, JsonValue]:
        tokens = units.tokens
        view = patch_positions(self.facts, tokens)
        clip = clip_forward(tokens.forward, self.clip).model_dump(mode="json") if self.clip is not None else None
        effort: dict[str, JsonValue] = {
            "tokens": tokens.model_dump(mode="json"),
            "per_image": tokens.per_image(self.facts),
            "width": tokens.width(self.facts),
            "grid": view["grid"],
            "first_patch": view["first_patch"],
            "clip": clip,
        }
        if method == "netdissect":
            effort["half"] = _is_half(units)
        return effort | (spatial_effort(method, self.spec, self.facts) if method in SPATIAL else {})


def _is_half(units: Units) -> bool:
    """Whether activations have 16 bits, whose thresholds two passes find; codes of an SAE are computed in float32."""
    return units.sae is None and units.tokens.round_to in ("fp16", "bf16")


def sizes_of(plan: Plan, known: Known) -> Sizes:
    """What a plan is about; of an SAE whose latents only its file says, USUAL_LATENTS times the width of the site."""
    params: Any = plan.stage.params
    effort: Any = plan.effort
    clip = known.models.get(params.get("clip") or "")
    units = effort["width"]
    if params["unit_kind"] == "features":
        units = params.get("latents") or USUAL_LATENTS * units
    return Sizes(
        rows=planned_tokens(plan).forward.rows,
        shard_rows=plan.rounds[0].shard_rows,
        positions=effort["per_image"],
        width=effort["width"],
        units=units,
        concepts=len(params["concepts"]),
        dim=clip.embed_dim or 0 if clip is not None else 0,
        tau=params["tau"],
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images that are looked at, forward passes that nothing stored, products of units and concepts, and memory."""
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    sizes, tokens, method = sizes_of(plan, known), planned_tokens(plan), plan.stage.output
    similarity: Any = plan.stage.params.get("similarity")
    weights = 4 * 2 * sizes.units * sizes.width if plan.stage.params["unit_kind"] == "features" else 0
    held, peak = method_bytes(method, similarity, sizes)
    return Estimate(
        images=sizes.rows,
        flops=2 * sizes.units * sizes.concepts * max(sizes.dim, 1),
        shared_flops=0 if tokens.stored else sizes.rows * facts.flops,
        bytes=between_bytes(method, similarity, sizes) + 16 * sizes.tau * (sizes.units + sizes.concepts),
        memory=held + weights,
        worker_memory=LIBRARY_BYTES + peak + (0 if tokens.stored else 8 * facts.params),
    )
