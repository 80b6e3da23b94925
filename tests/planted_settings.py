"""Which settings of alignment name what was planted, and why: `python -m tests.planted_settings` prints the table of docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from miclip_core.intervene.edits import Features, Neurons
from schemas.align import AlignSettings
from tests.planted_concepts import (
    FIT,
    JUDGE,
    SETTINGS,
    Units,
    align,
    concept_texts,
    described,
    drawn,
    embeddings,
    encode,
    make_units,
    miclip,
    open_model,
    predictions,
    sites_of,
    tap,
    train_sae,
)

PAIRS = (
    ("demo:clip-p8", "demo:clip-p8"),
    ("demo:clip-p8", "demo:clip-rn"),
    ("demo:siglip-p8", "demo:siglip-p8"),
    ("demo:clip-p16", "demo:clip-p16"),
    ("demo:clip-rn", "demo:clip-rn"),
    ("demo:vit-dense", "demo:clip-p8"),
)
"""(model, CLIP) on which settings were chosen, at seed 0; the other models of the study had no say."""
PAPER = AlignSettings()
VARIANTS: dict[str, dict[str, Any]] = {
    "scale 20, lr 1e-2, 6 epochs of 256 (60 updates)": {},
    "scale 1": {"logit_scale": 1.0},
    "scale learned": {"logit_scale": "learned"},
    "3 epochs": {"epochs": 3},
    "60 epochs": {"epochs": 60},
    "lr 3e-3": {"lr": 3e-3},
    "images alone (`in`)": {"w_out": 0.0},
    "predictions alone (`out`)": {"w_in": 0.0},
    "`standardise`": {"standardise": True},
    "`multi_positive`": {"multi_positive": True},
    "the paper's scale, rate and batch, 1 epoch (3 updates)": {**PAPER.model_dump()},
    "the same, 33 epochs (99 updates)": {**PAPER.model_dump(), "epochs": 33},
}


@dataclass(frozen=True, eq=False)
class Case:
    """One model and CLIP: pooled activations, predictions, and the units to name."""

    name: str
    clip: str
    a_ND: Tensor
    units: tuple[Units, Units]

    def accuracy(self, embed: Callable[[Units], Tensor]) -> list[float]:
        """Shares of the features and the neurons that get their names from embeddings [U, E]."""
        texts_ME = concept_texts(self.clip)
        return [float(described(normalize(embed(units), dim=1) @ texts_ME.T, units).mean()) for units in self.units]


def cases(pool: str) -> Iterator[Case]:
    """All pairs, with activations that are pooled by their maximum or their mean."""

    def pooled(x_NPU: Tensor) -> Tensor:
        return x_NPU.amax(1, keepdim=True) if pool == "max" else x_NPU.mean(1, keepdim=True)

    for name, clip in PAIRS:
        site = sites_of(open_model(name))[0]
        fit, judge = (tap(open_model(name), drawn(*some).pixels, [site])[site] for some in (FIT, JUDGE))
        sae = train_sae(fit.flatten(0, 1), 0)
        codes = [pooled(encode(sae, some)) for some in (fit, judge)]
        features = make_units("features", site, Features(sae), codes[0], codes[1])
        neurons = make_units("neurons", site, Neurons(), pooled(fit), pooled(judge))
        yield Case(name, clip, neurons.pooled, (features, neurons))


def trained(case: Case, changes: dict[str, Any]) -> list[float] | None:
    """Accuracies of an encoder; None where the loss needs predictions that the model has not."""
    settings, seen = SETTINGS.model_copy(update=changes), predictions(case.name)
    if seen is None and settings.w_in == 0:
        return None
    encoder = align(case.a_ND, case.clip, seen, settings)
    return [float(described(miclip(encoder, units, case.clip), units).mean()) for units in case.units]


def closed(case: Case, least_squares: bool) -> list[float]:
    """Accuracies of the regression of image embeddings on activations, or of their covariance, which is what both begin with."""
    a_ND, x_NE = (some.double() - some.double().mean(0) for some in (case.a_ND, embeddings(case.clip, *FIT)))
    W_DE = torch.linalg.lstsq(a_ND, x_NE, driver="gelsd").solution if least_squares else a_ND.T @ x_NE

    def embed(units: Units) -> Tensor:
        return (units.kind.sae.W_dec @ W_DE.float()) if isinstance(units.kind, Features) else W_DE.float()

    return case.accuracy(embed)


def main() -> None:
    """Print a line per variant: mean over pairs of the accuracy on features and on neurons of the same site."""
    print("| setting | pool | features | neurons |\n|---|---|---|---|")
    for pool in ("max", "mean"):
        every = list(cases(pool))
        rows: dict[str, list[list[float]]] = {}
        for case in every:
            chosen = VARIANTS if pool == "max" else {name: VARIANTS[name] for name in list(VARIANTS)[:5]}
            for name, changes in chosen.items():
                if (found := trained(case, changes)) is not None:
                    rows.setdefault(name, []).append(found)
            rows.setdefault("not trained: covariance of activations and embeddings", []).append(closed(case, False))
            rows.setdefault("not trained: least squares, the limit of long training", []).append(closed(case, True))
        for name, accuracies in rows.items():
            features, neurons = np.mean(accuracies, 0)
            print(f"| {name} | {pool} | {features:.2f} | {neurons:.2f} |", flush=True)


if __name__ == "__main__":
    main()
