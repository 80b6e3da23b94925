"""Runs whose stages are made by hand: predictions, names of units, codes and SAEs of a night."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import save

from cluster.runs import RunState, RunTables, StageState, new_run, save_state, save_tables
from jobs.sae_files import WEIGHTS
from schemas.plans import StageSpec
from tests.handmade import publish_stage
from tests.lakes import Lake
from tests.rows import make_rows

MODEL, OTHER = "demo:clip-p8", "demo:clip-rn"
UNHEARD = "sae:" + "0" * 20
"""An SAE that no run has made."""
SITE = "resid_post.3@patch"
IMAGES = [f"{number:032x}" for number in range(20)]


def columns(table: str, n: int, **values: Any) -> dict[str, Any]:
    """n rows of a table, of which only these columns matter."""
    rows = make_rows(table, n).to_pydict()
    return {name: values.get(name, column) for name, column in rows.items() if name != "stage"}


class Night:
    """One run whose stages are made by hand."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.stages: list[StageState] = []

    def publish(
        self, cell: str, output: str, tables: dict[str, Any], seed: int = 0, model: str = MODEL, weights: Any = None
    ) -> None:
        """Publish a stage of these tables; nights differ by its seed."""
        stage = StageSpec(
            kind="index_images" if output == "images" else "made",
            method=1,
            subject=model,
            output=output,
            params={"site": SITE, "seed": seed},
        )
        self.add(cell, stage, tables, weights)

    def add(self, cell: str, stage: StageSpec, tables: dict[str, Any], weights: Any = None) -> str:
        """Publish a stage; its digest."""
        artifacts = {WEIGHTS: save({"W_dec": weights})} if weights is not None else {}
        publish_stage(self.lake, stage, tables, artifacts)
        self.stages.append(
            StageState(
                digest=stage.digest,
                cell=cell,
                kind=stage.kind,
                subject=stage.subject,
                output=stage.output,
                detail=stage.detail,
                state="published",
            )
        )
        return stage.digest

    def end(self) -> RunState:
        """Finish the run; its state."""
        run = new_run(self.lake.store, "nights", "kind: made by hand")
        number = int(run[-5:])
        state = RunState(run=run, pipeline="nights", number=number, status="DONE", stages=tuple(self.stages))
        save_state(self.lake.store, state)
        stages = {stage.cell: (stage.digest,) for stage in self.stages}
        save_tables(self.lake.store, RunTables(run=run, pipeline="nights", stages=stages))
        return state


def predictions(right: int) -> dict[str, Any]:
    """20 images of class `cat`, of which so many are predicted right."""
    names = ["cat"] * right + ["dog"] * (20 - right)
    return {"predictions": columns("predictions", 20, model=[MODEL] * 20, image_id=IMAGES, rank=[0] * 20, class_name=names,
                                   probability=[0.5] * 20)}  # fmt: skip


def named(concepts: list[str]) -> dict[str, Any]:
    """Unit i is best described by the i-th concept; a second unit of each is dead."""
    n = 2 * len(concepts)
    return {
        "unit_concepts": columns("unit_concepts", n, site=["s"] * n, sae=[None] * n, unit_kind=["neurons"] * n, variant=["miclip"] * n,
                                 seed=[0] * n, direction=["describe"] * n, unit=list(range(n)), concept=concepts * 2,
                                 rank=[0] * n, is_dead=[False] * (n // 2) + [True] * (n // 2))}  # fmt: skip


def codes(values: np.ndarray) -> dict[str, Any]:
    """Codes of [U, 20] in one token of each image."""
    feature, image = np.nonzero(values)
    n = len(feature)
    return {
        "sae_codes": columns("sae_codes", n, feature=feature.tolist(), image_id=[IMAGES[i] for i in image],
                             value=values[feature, image].tolist())}  # fmt: skip


def sweep_of_saes(lake: Lake, widths: list[int], steps: int, model: str = MODEL) -> Night:
    """SAEs of these widths, their features described and these judged; every figure says whose it is and of how many steps."""
    night, described = Night(lake), {}
    for width in widths:
        settings = {"arch": "topk", "latents": width, "k": 8, "steps": steps}
        decoder = np.random.default_rng([width, steps]).normal(size=(width, 64)).astype(np.float32)
        sae = StageSpec(kind="train_sae", method=1, subject=model, output="sae", params={"site": SITE, "sae": settings})
        ref = f"sae:{night.add(f'sae/{model}', sae, {}, decoder)}"
        about = {"site": SITE, "unit_kind": "features", "variant": "auroc"}
        inputs = {"sae": sae.digest}
        names = StageSpec(kind="describe", method=1, subject=model, output="auroc", params=about, inputs=inputs)
        n = 2
        rows = {
            "unit_concepts": columns("unit_concepts", n, **{k: [v] * n for k, v in about.items()}, sae=[ref] * n, seed=[None] * n,
                                     direction=["describe"] * n, unit=[0, 1], concept=["red", f"{width} for {steps}"],
                                     rank=[0] * n, is_dead=[False] * n),
            "descriptions": columns("descriptions", 1, **{k: [v] for k, v in about.items()}, sae=[ref], seed=[None],
                                    units_described=[100 * width + steps], concepts_located=[0], units_dead=[0]),
        }  # fmt: skip
        described[ref] = night.add(f"names/{model}", names, rows)
        codes_of = StageSpec(
            kind="sae_features", method=1, subject=model, output="features", params={"site": SITE}, inputs=inputs
        )
        night.add(f"features/{model}", codes_of, codes(np.random.default_rng(width).random((width // 16, 20))))
    judge = StageSpec(kind="evaluate", method=1, subject=model, output="scores", params={},
                      inputs={f"describe.{i}": stage for i, stage in enumerate(described.values())})  # fmt: skip
    n = len(widths)
    scores = columns("method_scores", n, site=[SITE] * n, sae=list(described), unit_kind=["features"] * n, variant=["auroc"] * n,
                     seed=[None] * n, measure=["accuracy"] * n, value=[width + steps / 10 for width in widths])  # fmt: skip
    night.add(f"judge/{model}", judge, {"method_scores": scores})
    return night
