"""A lake in which a test says which units of the generator and of two models are buddies; mining itself never runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster.board import Board
from cluster.events import EventLog
from cluster.executor import StopFlag
from cluster.inputs import StoreInputs
from cluster.planned import plan_pipeline
from cluster.run import run_stages
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from schemas.tables import TABLES
from tests.lakes import Lake
from tests.made_up_descriptions import publish_rows

GENERATOR, VIT, RESNET = "demo:generator", "demo:clip-p8", "demo:resnet-sup"
FINE, COARSE, TOKENS, STAGE = "act.2@map", "act.0@map", "mlp_act.1@patch", "stage.2@map"
DRAWN = f"generated:{GENERATOR},seed=3,n=4"
PHOTOS = "world:seed=1,n=5"
Buddy = tuple[str, int, str, int, float]
BUDDIES: dict[str, list[Buddy]] = {
    VIT: [(FINE, 0, TOKENS, 3, 0.9), (COARSE, 1, TOKENS, 5, 0.5), (FINE, 4, TOKENS, 5, 0.7)],
    RESNET: [(FINE, 0, STAGE, 2, 0.8), (FINE, 2, STAGE, 0, 0.3)],
}
"""Site and unit of the generator, site and unit of the model, r; all are each other's first."""
GRIDS = {FINE: (32, 32), COARSE: (16, 16), TOKENS: (8, 8), STAGE: (8, 8)}
Row = dict[str, Any]


def statistics(site: str, unit: int, side: int) -> tuple[float, float]:
    """Mean and standard deviation that are said of a unit on a grid: other numbers for each."""
    return 0.01 * unit + 0.001 * side, 0.5 + 0.1 * unit + 0.01 * len(site)


class World:
    """One store with facts of models and image sets, and the tables of mined pairs."""

    def __init__(self, folder: Path, images: str = PHOTOS, **mined: Any) -> None:
        """images: that are inverted if a test does not say which. mined: further fields of the stage that mines."""
        self.lake = Lake(folder / "lake")
        self._images, self._mined = images, mined
        spec = self.spec(also=[{"images": {"ref": DRAWN}}])
        planned = plan_pipeline(spec, self.lake.store)
        self._work_off(planned.facts.freeze(self.lake.store, spec.index_resources))
        for cell in plan_pipeline(spec, self.lake.store, planned.facts).cells:
            if cell.cell.name == "mine":
                for plan in cell.plans:
                    self._publish(plan)

    def spec(self, also: Sequence[dict[str, Any]] = (), **fields: Any) -> PipelineSpec:
        """A pipeline that mines and inverts; `also` are further invert stages."""
        mined = {
            "kind": "mine_rosetta", "images": {"ref": DRAWN}, "model": [GENERATOR, VIT, RESNET], "entries": 0,
            "sites": ["act.*", "mlp_act.1", "stage.2"], **self._mined,
        }  # fmt: skip
        usual: dict[str, Any] = {
            "kind": "invert", "reads": ["mine"], "generator": GENERATOR, "images": {"ref": self._images}, "steps": 4,
        }  # fmt: skip
        stages = {"mine": mined, "found": {**usual, **fields}}
        stages |= {f"also{i}": {**usual, **more} for i, more in enumerate(also)}
        return PipelineSpec.model_validate({"kind": "pipeline", "name": "t", "stages": stages}, strict=False)

    def plans(self, spec: PipelineSpec) -> list[Plan]:
        """Those of the invert stages."""
        planned = plan_pipeline(spec, self.lake.store)
        return [plan for cell in planned.cells if cell.cell.spec.kind == "invert" for plan in cell.plans]

    def run(self, spec: PipelineSpec) -> list[list[Row]]:
        """The rows of every plan of the invert stages. Raises AssertionError with what was said if one failed."""
        return self.run_plans(self.plans(spec))

    def run_plans(self, plans: Sequence[Plan]) -> list[list[Row]]:
        """The same for plans that were made before."""
        for plan in plans:  # one after the other: a stage may begin where another ended
            board = self._work_off([(plan, Resources())])
            assert not board.failed, next(iter(board.failed.values())).message
        return [self.rows(plan) for plan in plans]

    def failure(self, spec: PipelineSpec) -> str:
        """Error and message of the first plan that fails."""
        board = self._work_off([(plan, Resources()) for plan in self.plans(spec)])
        outcome = next(iter(board.failed.values()))
        return f"{outcome.error}: {outcome.message}"

    def notes(self) -> list[str]:
        """What workers said since the last run began."""
        return [note for event in self.events for note in event.get("notes", ())]

    def rows(self, plan: Plan) -> list[Row]:
        """What a stage published, as the table says it."""
        found = StoreInputs(self.lake.store).table(plan.digest, "rosetta_inversions")
        rows = [row for batch in found for row in batch.to_pylist()]
        assert all(list(row) == TABLES["rosetta_inversions"].schema.names for row in rows)
        return rows

    def bad_inputs(self, plan: Plan) -> list[tuple[int, str, str]]:
        """Row of the index, reason and detail of every image that a stage has set aside."""
        found = StoreInputs(self.lake.store).table(plan.digest, "bad_inputs")
        return [(row["image_index"], row["reason"], row["detail"]) for batch in found for row in batch.to_pylist()]

    def _work_off(self, plans: Iterable[tuple[Plan, Resources]]) -> Board:
        self.events: list[dict[str, Any]] = []
        log = EventLog(self.events.append)
        return run_stages(list(plans), self.lake.store, self.lake.executor, log, StopFlag())

    # -------------------------------------------------------------- made-up mining

    def _publish(self, plan: Plan) -> None:
        models = plan.stage.subject.split(" + ")
        if plan.stage.output == "units" and models == [GENERATOR]:
            units = sorted({(site, unit) for found in BUDDIES.values() for site, unit, *_ in found} | {(COARSE, 7)})
            publish_rows(self.lake.store, plan.stage, {"rosetta_units": [unit_row(*unit) for unit in units]})
        elif plan.stage.output == "pair" and GENERATOR in models and len(models) == 2:
            (other,) = set(models) - {GENERATOR}
            publish_rows(self.lake.store, plan.stage, pair_tables(models[0] == GENERATOR, other, BUDDIES[other]))


def pair_tables(first: bool, other: str, buddies: Sequence[Buddy], sae: str | None = None) -> dict[str, list[Row]]:
    """Buddies of the generator and another model, and statistics of both on the grid of the generator, which is finer."""
    own, its = ("a", "b") if first else ("b", "a")
    rows, moments = [], []
    for site, unit, site_of, unit_of, r in buddies:
        rows.append(
            {
                f"model_{own}": GENERATOR, f"sae_{own}": None, f"site_{own}": site, f"unit_{own}": unit,
                f"model_{its}": other, f"sae_{its}": sae, f"site_{its}": site_of, f"unit_{its}": unit_of,
                "r": r, "rank_ab": 0, "rank_ba": 0, "place_r": 0.0, "null_q999": 0.2, "is_below_null": False,
            }
        )  # fmt: skip
        h, w = GRIDS[site]
        for model, of_sae, where, number in ((GENERATOR, None, site, unit), (other, sae, site_of, unit_of)):
            mean, sd = statistics(where, number, h)
            about = {"model": model, "sae": of_sae, "unit_kind": "features" if of_sae else "neurons"}
            place = {"site": where, "unit": number, "target_h": h, "target_w": w, "n": 1, "mean": mean, "sd": sd}
            if {**about, **place} not in moments:
                moments.append({**about, **place})
    return {"rosetta_buddies": rows, "rosetta_moments": moments}


def unit_row(site: str, unit: int) -> Row:
    """Native statistics of a unit of the generator."""
    row: Row = dict.fromkeys(TABLES["rosetta_units"].schema.names[1:], 0)
    h, w = GRIDS[site]
    mean, sd = statistics(site, unit, h)
    return {
        **row, "model": GENERATOR, "sae": None, "unit_kind": "neurons", "site": site, "unit": unit, "grid_h": h, "grid_w": w,
        "mean": mean, "sd": sd, "is_dead": False, "is_rare": False,
    }  # fmt: skip
