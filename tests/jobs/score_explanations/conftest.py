"""Texts about features of a made-up SAE, all measures of them and their summary, made once for all tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cluster.inputs import StoreInputs
from schemas.plans import Plan
from tests.jobs.score_explanations.lake_of_texts import (
    HEAT,
    INFORMED,
    STEERING,
    TOPK,
    TextLake,
    texts_of,
)
from tests.made_up_descriptions import Row

WEAK = STEERING._replace(alpha_asked="1")
RANDOM = STEERING._replace(direction="random")


@dataclass(frozen=True)
class World:
    """A lake, the texts in it, and the plans of all that was made of them."""

    lake: TextLake
    explained: tuple[Plan, ...]
    plans: tuple[Plan, ...]
    unscored: TextLake
    """A copy from before they were made."""

    def rows(self, table: str, output: str | None = None) -> list[Row]:
        """Rows of a table of all stages, or of those of one output."""
        return self.lake.rows(self.plans, table, output)

    def read(self, plan: Plan, table: str) -> list[Row]:
        """Rows of a table of a stage that is read."""
        return [row for batch in StoreInputs(self.lake.store).table(plan.digest, table) for row in batch.to_pylist()]

    def read_index(self, features: Plan) -> list[Row]:
        """The images of a sae_features stage."""
        inputs = StoreInputs(self.lake.store)
        return [row for batch in inputs.table(features.stage.inputs["labels"], "images") for row in batch.to_pylist()]

    def texts(self) -> list[Row]:
        """All texts."""
        return [row for plan in self.explained for row in self.read(plan, "explanations")]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six ways to explain: one without feature 11, one that chose its alpha on feature 0, and two with two texts each."""
    lake = TextLake(tmp_path_factory.mktemp("texts") / "lake")
    explained = (
        lake.explain(TOPK, texts_of(TOPK, without=(3,))),
        lake.explain(HEAT, texts_of(HEAT), sequences=2),
        lake.explain(STEERING, texts_of(STEERING), validation=(0,)),
        lake.explain(WEAK, dict.fromkeys(range(11), "A thing")),
        lake.explain(RANDOM, texts_of(INFORMED)),
        lake.explain(INFORMED, texts_of(INFORMED, without=(3, 5)), sequences=2),
    )
    unscored = lake.copy(tmp_path_factory.mktemp("unscored") / "lake")
    plans = lake.plans(explained, labels="world")
    ran = lake.score(plans)
    assert not ran.board.failed, ran.board.failed
    return World(lake, explained, plans, unscored)
