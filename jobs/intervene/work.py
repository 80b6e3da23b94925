"""The intervene worker: one model; images are decoded once for all lists of units, and run once for those at one site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jobs.activations import forward_effort
from jobs.between import pack, unpack_all
from jobs.blame import blaming
from jobs.classes import Classifier, make_classifier
from jobs.forward import read_pixels
from jobs.intervene.passes import FiniteScores, LabelledBatch, Passes, counts_of
from jobs.intervene.plan import HEAD, MAP, changes_of, classes_of, pass_of
from jobs.intervene.results import make_parts
from jobs.intervene.units import read_units
from jobs.labels import read_classes
from jobs.models import open_model
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_files import WEIGHTS
from jobs.threads import use_cpus
from miclip_core.intervene.edits import Features, Neurons, UnitKind
from miclip_core.intervene.sweep import Counts, Sweep
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadLabels
from schemas.plans import Plan, Shard

COUNTS = "counts"


class InterveneWorker:
    """Serves lists of units of one model; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._saes: dict[str, Sae] = {}
        self._units: dict[str, Tensor] = {}
        self._opened: tuple[VisionModel, Classifier] | None = None
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Right answers of a range of images, or the tables of each list."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        if plans[0].rounds[shard.round].name == MAP:
            yield from self._map(plans, shard, inputs)
            return
        for plan in plans:
            yield from self._merge(plan, inputs)
        self.notes[:] = dict.fromkeys(self.notes)

    # -------------------------------------------------------------- images

    def _map(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[Artifact]:
        rows = [(shard.start, shard.stop)]
        labels = self._read_classes(plans[0], inputs, rows, required=False)
        if not labels:
            return
        alike: dict[str, list[Plan]] = {}
        for plan in plans:
            alike.setdefault(pass_of(plan.stage), []).append(plan)
        passes = [(group, self._open_passes(group, inputs)) for group in alike.values()]
        for batch in self._batches(plans[0], labels, rows, inputs):
            for group, some in passes:
                with blaming(*group):
                    some.add(batch)
        for group, some in passes:
            self.notes += some.notes
            for plan in group:
                sums = counts_of(some.sweep.counts, plan.digest).sums
                yield pack(plan.digest, COUNTS, {name: tensor.numpy() for name, tensor in sums.items()})

    def _read_classes(
        self, plan: Plan, inputs: Inputs, rows: Sequence[tuple[int, int]], required: bool
    ) -> dict[int, int]:
        column = str(plan.stage.params["labels_from"])
        return read_classes(inputs, forward_effort(plan).index, classes_of(plan), column, rows, required)

    def _batches(
        self, plan: Plan, labels: dict[int, int], rows: Sequence[tuple[int, int]], inputs: Inputs
    ) -> Iterator[LabelledBatch]:
        """Images that are of a class, in batches of the planned shape; what fills the last counts for nothing."""
        model, _ = self._open(plan, inputs)
        forward, threads = forward_effort(plan), self._setting.resources.decode_threads
        size = int(str(forward.effort["batch_size"]))
        problems: Counter[str] = Counter()
        for batch in read_pixels(inputs, forward, model.facts.geometry, rows, threads, size, wanted=labels):
            problems.update(problem.reason for problem in batch.problems)
            if batch.images:
                known = [labels[image.image_index] for image in batch.images]
                fill = len(batch.pixels) - len(known)
                ids = [image.image_id for image in batch.images]
                labels_B = torch.tensor(known + [-1] * fill)
                yield LabelledBatch(model.normalise(batch.pixels), labels_B, ids + ids[-1:] * fill)
        self.notes += [f"{count} images left out: {reason}" for reason, count in problems.items()]

    # -------------------------------------------------------------- what is changed

    def _open_passes(self, plans: Sequence[Plan], inputs: Inputs) -> Passes:
        """One sweep for lists of units that share their passes."""
        model, classifier = self._open(plans[0], inputs)
        params = plans[0].stage.params
        scorer = FiniteScores(classifier, params["on_nonfinite"] == "quarantine")
        with blaming(*plans):
            sweep = Sweep(
                model,
                str(params["at"]),
                self._unit_kind(plans[0], inputs),
                scorer,
                {plan.digest: self._get_units(plan, inputs) for plan in plans},
                changes_of(plans[0]),
                params["off_class_seed"],  # type: ignore[arg-type]
            )
        return Passes(f"{model.facts.model} with units of {params['at']} changed", sweep, scorer)

    def _open(self, plan: Plan, inputs: Inputs) -> tuple[VisionModel, Classifier]:
        """The model, which merging never needs, and what its answers are."""
        if self._opened is None:
            sites = [str(other.stage.params["at"]) for other in self._setting.plans]
            model = open_model(forward_effort(plan), inputs, self._setting.device, sites)
            params = plan.stage.params
            names = HEAD if params["classes"] == HEAD else classes_of(plan)
            self._opened = model, make_classifier(model, names, params["templates"])  # type: ignore[arg-type]
        return self._opened

    def _unit_kind(self, plan: Plan, inputs: Inputs) -> UnitKind:
        if plan.stage.params["unit_kind"] == "neurons":
            return Neurons()
        stage = plan.stage.inputs["sae"]
        if stage not in self._saes:
            self._saes[stage] = load_sae(inputs.published(stage, WEIGHTS)).to(self._setting.device)
        return Features(self._saes[stage], plan.stage.params["error"])  # type: ignore[arg-type]

    def _get_units(self, plan: Plan, inputs: Inputs) -> Tensor:
        if plan.digest not in self._units:
            self._units[plan.digest] = read_units(inputs, plan)
        return self._units[plan.digest]

    # -------------------------------------------------------------- tables

    def _merge(self, plan: Plan, inputs: Inputs) -> Iterator[Part]:
        names, units_CK = classes_of(plan), self._get_units(plan, inputs)
        total = Counts.zero((plan.digest,), changes_of(plan), len(names))
        for arrays in unpack_all(inputs, plan, 0, COUNTS):
            sums = {name: torch.from_numpy(array) for name, array in arrays.items()}
            total = total.merge(Counts(total.methods, total.changes, sums))
        rows = forward_effort(plan).rows
        labels = self._read_classes(plan, inputs, [(0, rows)], required=True)
        if not total.sums["n"].any():
            raise BadLabels(
                f"none of the {len(labels)} images that are of a class could be used: they are duplicates, cannot be read any "
                "more, or their scores are no numbers"
            )
        if len(labels) < rows:
            self.notes.append(f"{rows - len(labels)} of {rows} images are of no class and were left out")
        if without := [name for name, units in zip(names, units_CK.tolist(), strict=True) if max(units) < 0]:
            self.notes.append(
                f"{plan.stage.detail}: no unit for {len(without)} classes, first {', '.join(without[:5])}"
            )
        yield from make_parts(plan, total, units_CK)


def open_worker(setting: Setting, inputs: Inputs) -> InterveneWorker:
    """Nothing is loaded before a shard needs it."""
    return InterveneWorker(setting, inputs)
