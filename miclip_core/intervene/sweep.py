"""Accuracy under interventions: every image with the units of its own class and of another edited, counted per class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from miclip_core.intervene.edits import Held, UnitKind, check_units, is_void
from miclip_core.zoo.edits import rows_of
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import one_site, position_axis, whole_site
from miclip_core.zoo.suffix import Suffix
from schemas.errors import BadUnits, UnknownSite
from schemas.intervene import Change
from schemas.models import selected_range
from schemas.refs import Site


class Scorer(Protocol):
    """How what a forward pass ends in becomes scores of classes."""

    @property
    def site(self) -> str:
        """`embedding` or `logits`."""
        ...

    def scores(self, tapped_B: Tensor) -> Tensor:
        """Scores [B, C]; the highest is the answer."""
        ...


# ---------------------------------------------------------------- what is counted


@dataclass(frozen=True, eq=False)
class Counts:
    """Images and right answers per class, int64 on the CPU; counts of disjoint images merge to those of all.

    n, clean, ref [C]: images of each class, and how many are right as the model is and by the reference (the same, but
    for features without their error, whose reference is the reconstruction). edit [methods, changes, C].
    off_*: the same where a class's units are edited in images of other classes, which then should stay right.
    """

    methods: tuple[str, ...]
    changes: tuple[Change, ...]
    sums: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def zero(cls, methods: Sequence[str], changes: Sequence[Change], classes: int) -> Counts:
        """No image yet."""
        per_class = {
            name: torch.zeros(classes, dtype=torch.int64) for name in ("n", "clean", "ref", "off_n", "off_ref")
        }
        shape = (len(methods), len(changes), classes)
        per_edit = {name: torch.zeros(shape, dtype=torch.int64) for name in ("edit", "off_edit")}
        return cls(tuple(methods), tuple(changes), per_class | per_edit)

    def merge(self, other: Counts) -> Counts:
        """The counts of both.

        Raises:
            BadUnits: they are of other methods, changes or classes.
        """
        shapes = ({name: tensor.shape for name, tensor in counts.sums.items()} for counts in (self, other))
        if (self.methods, self.changes, next(shapes)) != (other.methods, other.changes, next(shapes)):
            raise BadUnits(
                f"counts of {self._what()} do not merge with those of {other._what()}; run all images with one sweep"
            )
        return Counts(self.methods, self.changes, {name: self.sums[name] + other.sums[name] for name in self.sums})

    def columns(self, method: str, change: Change) -> dict[str, list[int]]:
        """One row per class: class_id, n, correct_clean, correct_ref, correct_edit, offclass_n, offclass_ref, offclass_edit."""
        edit, off_edit = (self._of(name, method, change) for name in ("edit", "off_edit"))
        sums = self.sums
        found = {
            "class_id": torch.arange(len(sums["n"])),
            "n": sums["n"], "correct_clean": sums["clean"], "correct_ref": sums["ref"], "correct_edit": edit,
            "offclass_n": sums["off_n"], "offclass_ref": sums["off_ref"], "offclass_edit": off_edit,
        }  # fmt: skip
        return {name: column.tolist() for name, column in found.items()}

    def change_C(self, method: str, change: Change) -> Tensor:
        """Change of each class's accuracy against the reference, percentage points, float64 [C]; NaN without images."""
        return 100 * (self._of("edit", method, change) - self.sums["ref"]).double() / self.sums["n"]

    def off_change_C(self, method: str, change: Change) -> Tensor:
        """The same of images of other classes in which this class's units are edited."""
        return 100 * (self._of("off_edit", method, change) - self.sums["off_ref"]).double() / self.sums["off_n"]

    def dacc(self, method: str, change: Change) -> float | None:
        """Mean over the classes that have images of `change_C` (MICLIP, dAcc); None without images."""
        return _mean(self.change_C(method, change))

    def off_dacc(self, method: str, change: Change) -> float | None:
        """Mean over classes of `off_change_C`: how specific the edited units are, near 0 if they are."""
        return _mean(self.off_change_C(method, change))

    def _of(self, name: str, method: str, change: Change) -> Tensor:
        return self.sums[name][self.methods.index(method), self.changes.index(change)]

    def _what(self) -> str:
        classes = len(self.sums["n"]) if self.sums else 0
        return f"methods {list(self.methods)}, changes {[str(change) for change in self.changes]}, {classes} classes"


def _mean(of_classes_C: Tensor) -> float | None:
    known = of_classes_C[~of_classes_C.isnan()]
    return float(known.mean()) if len(known) else None


# ---------------------------------------------------------------- the sweep


class Sweep:
    """Interventions at one site, with every method's units and every change, on batches in which classes mix.

    Per batch: one whole pass, then one suffix pass per method and change (two with off-class), and one for the reference
    of features without their error. Neither encoding nor the pass before the site is repeated.

    units: method -> int64 [C, K], the units of each class, -1 where a class has fewer. scorer: class scores of a pass.
    off_class_seed: draws for each image one other class, whose units are edited as well; None for none.
    """

    def __init__(
        self,
        model: VisionModel,
        site: str | Site,
        kind: UnitKind,
        scorer: Scorer,
        units: Mapping[str, Tensor],
        changes: Sequence[Change],
        off_class_seed: int | None = 0,
    ) -> None:
        """Raises:
        BadSite, UnknownSite, BadSae: the site cannot be edited, the SAE is of another, or the scorer's site is missing.
        BadUnits: units that are not there, methods with other numbers of classes, or one class and nothing off it.
        """
        self._site = one_site(model.facts, site)
        for units_CK in units.values():
            check_units(units_CK, kind.count(model, site))
        self._model, self._kind, self._scorer = model, kind, scorer
        self._units = {method: units_CK.to(model.device) for method, units_CK in units.items()}
        self._classes = _classes(units)
        if off_class_seed is not None and self._classes < 2:
            raise BadUnits("there is no other class whose units could be edited; give off_class_seed=None")
        self._seed = off_class_seed
        self._suffix = Suffix(model, self._site.path, [scorer.site])
        if not self._suffix.targets:
            raise UnknownSite(f"{model.facts.model} has no {scorer.site}, which the classes are told from")
        self.counts = Counts.zero(tuple(units), tuple(changes), self._classes)

    @torch.no_grad()
    def add(self, images_BCIJ: Tensor, labels_B: Tensor, image_ids: Sequence[str]) -> None:
        """Count normalised images [B, 3, h, w] with their classes, int64 [B], and ids, from which other classes are drawn.

        An image of class -1 counts for nothing: it only fills the batch, so that every pass has the same shape.

        Raises:
            BadUnits: a label that is no class, or other numbers of labels or ids than images.
            What `VisionModel.run` raises; BadTokens.
        """
        labels_B = self._checked(images_BCIJ, labels_B, image_ids)
        batch = _Batch(self, images_BCIJ, labels_B)
        found = Counts.zero(self.counts.methods, self.counts.changes, self._classes)
        _count(found.sums["clean"], labels_B, batch.right_clean)
        self._count_edits(found.sums, "", batch, labels_B)
        if self._seed is not None:
            drawn = zip(image_ids, labels_B.tolist(), strict=True)
            others = [other_class(self._seed, *of, self._classes) if of[1] >= 0 else -1 for of in drawn]
            self._count_edits(found.sums, "off_", batch, torch.tensor(others))
        self.counts = self.counts.merge(found)

    def _count_edits(self, sums: Mapping[str, Tensor], prefix: str, batch: _Batch, classes_B: Tensor) -> None:
        """Count the batch with the units of these classes edited."""
        _count(sums[f"{prefix}n"], classes_B, torch.ones_like(classes_B))
        _count(sums[f"{prefix}ref"], classes_B, batch.right_in_reference)
        for m, units_CK in enumerate(self._units.values()):
            of_B = classes_B.to(units_CK.device)
            units_BK = units_CK[of_B].masked_fill(of_B[:, None] < 0, -1)
            for x, change in enumerate(self.counts.changes):
                _count(sums[f"{prefix}edit"][m, x], classes_B, batch.right_edited(units_BK, change))

    def _checked(self, images_BCIJ: Tensor, labels_B: Tensor, image_ids: Sequence[str]) -> Tensor:
        if labels_B.shape != (len(images_BCIJ),) or len(image_ids) != len(images_BCIJ):
            raise BadUnits(
                f"{len(images_BCIJ)} images, labels {tuple(labels_B.shape)} and {len(image_ids)} ids; expected one of each "
                "per image"
            )
        labels_B = labels_B.cpu().long()
        wrong = ((labels_B < -1) | (labels_B >= self._classes)).nonzero().flatten().tolist()
        if wrong:
            raise BadUnits(
                f"image {image_ids[wrong[0]]} has label {int(labels_B[wrong[0]])}; the units are of {self._classes} "
                "classes; an image of none is -1"
            )
        return labels_B


def _count(sums_C: Tensor, classes_B: Tensor, right_B: Tensor) -> None:
    counts_B = classes_B >= 0
    sums_C.index_add_(0, classes_B[counts_B], right_B[counts_B].long())


class _Batch:
    """One batch: its clean pass, the rows at the site, and what the model answers when they are others."""

    def __init__(self, sweep: Sweep, images_BCIJ: Tensor, labels_B: Tensor) -> None:
        self._sweep, self._labels_B = sweep, labels_B
        self._facts = sweep._model.facts.site(sweep._site.path)
        whole = whole_site(self._facts)
        out = sweep._suffix.begin(images_BCIJ, [whole])
        self.right_clean = self._right(out)
        self._whole = out[str(whole)]
        rows_BRW, self._back = rows_of(self._facts, self._selected(self._whole))
        self._held: Held = sweep._kind.hold(rows_BRW)
        keeps = sweep._kind.keeps_clean
        self.right_in_reference = self.right_clean if keeps else self._answer(self._held.reference_BRW)

    def right_edited(self, units_BK: Tensor, change: Change) -> Tensor:
        """Which images are right with the change made to these units, bool [B]."""
        if is_void(units_BK, change):
            return self.right_in_reference
        return self._answer(self._held.edited(units_BK, change))

    def _answer(self, rows_BRW: Tensor) -> Tensor:
        new = self._whole.clone()
        self._selected(new).copy_(self._back(rows_BRW))
        if self._facts.path == self._sweep._scorer.site:  # nothing comes between the edit and the answer
            return self._right({self._facts.path: new})
        return self._right(self._sweep._suffix.replaced(new))

    def _selected(self, whole: Tensor) -> Tensor:
        """The positions of the site, as a view."""
        axis = position_axis(self._facts)
        if axis is None or self._facts.layout == "map":
            return whole
        first, last = selected_range(self._facts, self._sweep._site.tokens)
        return whole.narrow(axis, first, last - first)

    def _right(self, out: Mapping[str, Tensor]) -> Tensor:
        scores_BC = self._sweep._scorer.scores(out[self._sweep._scorer.site])
        return scores_BC.argmax(1).cpu() == self._labels_B


def other_class(seed: int, image_id: str, label: int, classes: int) -> int:
    """A class other than `label`, uniform over them, as a pure function of its arguments."""
    hashed = hashlib.sha256(f"{seed}:off_class:{image_id}".encode()).digest()
    return (label + 1 + int.from_bytes(hashed[:8], "little") % (classes - 1)) % classes


def _classes(units: Mapping[str, Tensor]) -> int:
    found = {method: len(units_CK) for method, units_CK in units.items()}
    if len(set(found.values())) != 1 or not next(iter(found.values())):
        raise BadUnits(f"units of {found} classes by method; expected one list for each of the same classes")
    return next(iter(found.values()))
