"""The choice of an alpha: texts of every alpha are looked for in the top images of validation features, and compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jobs.between import pack, unpack_all
from jobs.explain.asked import Asked
from jobs.explain.explainer import Try, Written
from jobs.explain.features import Batch
from jobs.explain.rows import text_of
from jobs.protocol import Artifact, Inputs, Part
from jobs.rows import make_batch
from jobs.text_driven import IndexSegmenter
from miclip_core.explain.alphas import compare_alphas
from miclip_core.explain.overlap import join_masks, measure_overlap
from schemas.errors import NoAlpha

TABLE = "explanation_alphas"
TRIALS = "trials"


class Said(NamedTuple):
    """A text about the feature at a place of a batch, and which of its masks count."""

    place: int
    text: str
    masks_scored: Literal["first", "union"]


def find_overlaps(batch: Batch, said: Iterable[Said], segmenter: IndexSegmenter) -> dict[Said, float]:
    """Mean overlap of where the segmenter finds each text with where its feature is active; NaN without any image.

    Image by image: a segmenter that looks at one of them once keeps few, and alphas say much the same of all.
    """
    wanted = sorted(set(said))
    found: dict[Said, list[float]] = {one: [] for one in wanted}
    for place in range(len(batch.features)):
        of_feature = [one for one in wanted if one.place == place]
        for image, pixels, map_PQ in zip(batch.shown[place], batch.pixels_FKCIJ[place], batch.maps_FKPQ[place]):
            for one in of_feature:
                mask = join_masks(segmenter.masks(pixels, str(image.uri), one.text), one.masks_scored)
                found[one].append(float(measure_overlap(map_PQ, mask).iou))
    return {one: float(np.mean(ious)) if ious else float("nan") for one, ious in found.items()}


class Trials:
    """What the texts of one stage are worth on the validation features of a shard, for each alpha of its grid."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._found: dict[str, list[Any]] = defaultdict(list)

    def said(self, written: Sequence[Written]) -> Iterator[Said]:
        """What of texts about a batch is to be looked for."""
        for text in written:
            if (cleaned := text_of(text)[0]) is not None:
                yield Said(text.place, cleaned, self._asked.params["masks_scored"])

    def add(self, one: Try, batch: Batch, written: Sequence[Written], overlaps: Mapping[Said, float]) -> None:
        """Texts about a batch, and how well the segmenter finds its features by them."""
        for text in written:
            said = next(self.said([text]), None)
            self._found["feature"].append(batch.features[text.place].number)
            self._found["alpha"].append(one.alpha)
            self._found["text"].append(said.text if said else "")
            self._found["iou"].append(overlaps[said] if said else np.nan)

    def packed(self) -> Artifact:
        """All of it, for the round that chooses."""
        kinds = {"feature": np.int64, "alpha": np.float64, "text": np.str_, "iou": np.float64}
        return pack(
            self._asked.plan.digest, TRIALS, {name: np.array(self._found[name], kind) for name, kind in kinds.items()}
        )


def choose_alpha(asked: Asked, inputs: Inputs, notes: list[str]) -> Part:
    """The table of all alphas of a stage; notes takes in what people should know. Raises NoAlpha: none can be chosen."""
    trials: dict[float, list[tuple[str | None, float | None]]] = {alpha: [] for alpha in asked.grid}
    for found in unpack_all(inputs, asked.plan, 0, TRIALS):
        for alpha, text, iou in zip(found["alpha"].tolist(), found["text"].tolist(), found["iou"].tolist()):
            trials[alpha].append((text or None, None if np.isnan(iou) else iou))
    scores = compare_alphas(trials)
    if not any(score.mean_iou for score in scores):
        notes.append(
            f"{asked.params['variant']}: no text names anything that is found where its feature is active, so the alpha nearest "
            "to 0 is taken"
        )
    names = ("alpha", "mean_iou", "sd_iou", "distinct", "n", "n_empty", "is_chosen")
    columns: dict[str, Any] = {name: [getattr(score, name) for score in scores] for name in names}
    return Part(asked.plan.digest, TABLE, make_batch(TABLE, {**columns, **asked.about()}))


def chosen_alpha(asked: Asked, inputs: Inputs) -> float:
    """The alpha of a stage: the number that it asks for, or the one that was chosen for it. Raises NoAlpha."""
    if not asked.is_auto:
        return float(str(asked.params["alpha_asked"]))
    stage = asked.plan.stage.inputs["alphas"]
    rows = [row for batch in inputs.table(stage, TABLE, ("alpha", "is_chosen")) for row in batch.to_pylist()]
    chosen = next((row["alpha"] for row in rows if row["is_chosen"]), None)
    if chosen is None:
        raise NoAlpha(f"stage {stage} chose none of {len(rows)} alphas; write alpha as a number")
    return float(str(np.float32(chosen)))  # as it was written before the table rounded it


def tries_of(asked: Asked) -> Iterator[Try]:
    """All alphas that a stage compares."""
    yield from (Try(asked, alpha) for alpha in asked.grid)
