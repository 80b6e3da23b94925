"""How well descriptions of units fit what the units are: accuracy, and similarity of the two texts to some encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from miclip_core.evaluate.cosines import row_cosines


@dataclass(frozen=True, eq=False)
class Descriptions:
    """What some units were said to be beside what they are; analysis 1 of MICLIP, metrics of CLIP-Dissect.

    units int64 [U]. predicted: one text per unit, None where a method had none to give. truth: one text per unit.
    correct bool [U]; a unit without a prediction is wrong.
    similarity: by name of the encoder, cosine of the two texts in it, float32 [U]; NaN without a prediction.
    """

    units: np.ndarray
    predicted: tuple[str | None, ...]
    truth: tuple[str, ...]
    correct: np.ndarray
    similarity: Mapping[str, np.ndarray]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per unit: unit_id, pred, truth, correct, and `<encoder>_score` of every encoder; None for what is not there."""
        for place, unit in enumerate(self.units.tolist()):
            row = {"unit_id": unit, "pred": self.predicted[place], "truth": self.truth[place]}
            row["correct"] = bool(self.correct[place])
            for encoder, cosines in self.similarity.items():
                row[f"{encoder}_score"] = None if np.isnan(cosines[place]) else float(cosines[place])
            yield row


def compare_descriptions(
    units: Sequence[int],
    predicted: Sequence[str | None],
    truth: Sequence[str],
    embeddings: Mapping[str, tuple[Tensor, Tensor]],
    ids: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Descriptions:
    """Compare the description of each unit with its true name, as texts and as embeddings.

    embeddings: name of an encoder -> its embeddings [U, E] of the predicted and of the true texts, of any length; rows of
    zeros where nothing was predicted (`sentences.embed_each` makes them so). ids: numbers of the predicted (-1: none) and
    true concepts; they are then compared in place of the texts, because two concepts of one list can share a name (there
    are two "missile" in one list of the ImageNet names). Texts are compared after strip, in lower case.

    Raises:
        ValueError: something has another number of units.
    """
    lengths = {"units": len(units), "predicted": len(predicted), "truth": len(truth)}
    lengths |= {f"{what} ids": len(some) for what, some in zip(("predicted", "true"), ids or ())}
    for encoder, pair in embeddings.items():
        lengths |= {f"{what} of {encoder}": len(rows) for what, rows in zip(("predicted rows", "true rows"), pair)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected one of each per unit, found {', '.join(f'{n} {k}' for k, n in lengths.items())}")
    return Descriptions(
        np.asarray(units, np.int64),
        tuple(predicted),
        tuple(truth),
        _correct(predicted, truth, ids),
        {encoder: row_cosines(said, true).cpu().numpy() for encoder, (said, true) in embeddings.items()},
    )


def _correct(
    predicted: Sequence[str | None], truth: Sequence[str], ids: tuple[Sequence[int], Sequence[int]] | None
) -> np.ndarray:
    if ids is not None:
        said, true = (np.asarray(some, np.int64) for some in ids)
        return (said == true) & (said >= 0)
    pairs = zip(predicted, truth)
    return np.array([a is not None and a.strip().lower() == b.strip().lower() for a, b in pairs], bool)
