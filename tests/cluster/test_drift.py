"""What moved between two runs, or between two models, over tables made by hand; and it is a table like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save

import miclip
from cluster.catalog import Catalog, Scope, open_catalog, verify
from cluster.drift import METRICS, Drift, compare_models, compare_runs, save_drift
from cluster.gc import Policy, sweep
from cluster.runs import RunState, RunTables, StageState, new_run, save_state, save_tables
from cluster.sql import run_sql
from cluster.stores.base import Store
from jobs.sae_files import WEIGHTS
from schemas.errors import UsageError
from schemas.plans import StageSpec
from schemas.tables import get_table
from tests.handmade import publish_stage
from tests.lakes import Lake
from tests.paces import fast
from tests.rows import make_rows

MODEL, OTHER = "demo:clip-p8", "demo:clip-rn"
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
        stage = StageSpec(
            kind="index_images" if output == "images" else "made",
            method=1,
            subject=model,
            output=output,
            params={"site": "resid_post.3@patch", "seed": seed},
        )
        artifacts = {WEIGHTS: save({"W_dec": weights})} if weights is not None else {}
        publish_stage(self.lake, stage, tables, artifacts)
        self.stages.append(
            StageState(
                digest=stage.digest,
                cell=cell,
                kind=stage.kind,
                subject=model,
                output=output,
                detail="",
                state="published",
            )
        )

    def end(self) -> RunState:
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
        "unit_concepts": columns("unit_concepts", n, site=["s"] * n, unit_kind=["features"] * n, variant=["miclip"] * n,
                                 seed=[0] * n, direction=["describe"] * n, unit=list(range(n)), concept=concepts * 2,
                                 rank=[0] * n, is_dead=[False] * (n // 2) + [True] * (n // 2))}  # fmt: skip


def codes(values: np.ndarray) -> dict[str, Any]:
    """Codes of [U, 20] in one token of each image."""
    feature, image = np.nonzero(values)
    n = len(feature)
    return {
        "sae_codes": columns("sae_codes", n, feature=feature.tolist(), image_id=[IMAGES[i] for i in image],
                             value=values[feature, image].tolist())}  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(tmp_path_factory.mktemp("drift"))


@pytest.fixture(scope="module")
def nights(lake: Lake) -> tuple[RunState, RunState]:
    """Two nights: four images more are right, a concept came and one went, features changed places and one is new."""
    rng = np.random.default_rng(0)
    decoder, active = rng.normal(size=(4, 8)).astype(np.float32), rng.random((4, 20)) * (rng.random((4, 20)) < 0.6)
    moved, fresh = decoder[[2, 0, 1, 3]].copy(), rng.normal(size=8).astype(np.float32)
    moved[3] = fresh - (fresh @ decoder.T) @ np.linalg.pinv(decoder.T)  # in no direction that there was
    images = {"images": columns("images", 20, image_id=IMAGES, label=["cat"] * 20)}
    states = []
    for seed, right, concepts, weights, order in (
        (1, 10, ["red", "star"], decoder, [0, 1, 2, 3]),
        (2, 14, ["red", "ring"], moved, [2, 0, 1, 3]),
    ):
        night = Night(lake)
        night.publish("images", "images", images)
        night.publish("acts", "predictions", predictions(right), seed)
        night.publish("names", "names", named(concepts), seed)
        night.publish("sae", "sae", {}, seed, weights=weights)
        night.publish("features", "features", codes(active[order] * (1.0 + 0.5 * seed)), seed)
        summary = columns("sae_summary", 1, site=["s"], fvu=[0.25 * seed], l0=[8.0])
        night.publish("measure", "summary", {"sae_summary": summary}, seed)
        night.publish(
            "other", "summary", {"sae_summary": columns("sae_summary", 1, fvu=[0.1])}, 7
        )  # the same both times
        states.append(night.end())
    return states[0], states[1]


@pytest.fixture(scope="module")
def drift(lake: Lake, nights: tuple[RunState, RunState]) -> Drift:
    return compare_runs(lake.store, *nights)


def of(drift: Drift, **where: Any) -> list[dict[str, Any]]:
    return [row for row in drift.rows if all(row[name] == value for name, value in where.items())]


@pytest.mark.parametrize("table", METRICS)
def test_figures_are_numbers_and_what_tells_rows_apart_holds_no_digest(table: str) -> None:
    schema = get_table(table).schema
    keys, figures = METRICS[table]
    assert {*keys, *figures} <= set(schema.names)
    assert all(pa.types.is_integer(schema.field(f).type) or pa.types.is_floating(schema.field(f).type) for f in figures)
    assert not {"stage", "sae", "sae_a", "sae_b", "encoder"} & {*keys, *figures}


def test_figures_that_moved_are_there_with_both_values_and_others_are_not(drift: Drift) -> None:
    (accuracy,) = of(drift, item="accuracy")
    assert (accuracy["before"], accuracy["after"], accuracy["cell"]) == (0.5, 0.7, "acts")
    (agreement,) = of(drift, item="agreement")
    assert agreement["after"] == pytest.approx(0.8)  # four of twenty images changed their class
    (fvu,) = of(drift, item="fvu")
    assert (fvu["before"], fvu["after"], fvu["setting"], fvu["cell"]) == (0.25, 0.5, "site=s", "measure")
    assert of(drift, item="l0") == of(drift, item="mean_probability") == of(drift, cell="other") == []
    assert drift.pairs == 5 and drift.notes == []


def test_concepts_are_gained_and_lost_by_living_units(drift: Drift) -> None:
    found = {row["item"]: (row["status"], row["before"], row["after"]) for row in of(drift, aspect="concept")}
    assert found == {"ring": ("gained", 0.0, 1.0), "star": ("lost", 1.0, 0.0)}
    assert of(drift, item="ring")[0]["setting"] == "site=s unit_kind=features variant=miclip seed=0"


def test_features_are_found_again_by_decoder_and_by_codes(drift: Drift) -> None:
    by_decoder = {row["feature_before"]: row for row in of(drift, item="decoder_cosine")}
    assert [by_decoder[i]["feature_after"] for i in range(3)] == [1, 2, 0]
    assert [by_decoder[i]["status"] for i in range(4)] == ["matched", "matched", "matched", "lost"]
    by_codes = {row["feature_before"]: row for row in of(drift, item="code_correlation")}
    assert [by_codes[i]["feature_after"] for i in range(4)] == [1, 2, 0, 3]
    assert all(row["similarity"] == pytest.approx(1.0) for row in by_codes.values())
    (share,) = of(drift, item="matched_by_decoder_cosine")
    assert (share["before"], share["after"]) == (0.75, 0.75)


def test_drift_is_a_table_of_its_run_for_sql_verify_and_the_read_api(
    lake: Lake, nights: tuple[RunState, RunState], drift: Drift
) -> None:
    before, now = (state.run for state in nights)
    published = save_drift(lake.store, now, before, drift)
    assert save_drift(lake.store, now, before, drift) == published
    catalog = open_catalog(lake.store)
    query = "SELECT round(after - before, 6) AS moved FROM drift WHERE item = 'accuracy'"
    assert run_sql(catalog, query).read_all().to_pylist() == [{"moved": 0.2}]
    assert catalog.tables["drift"] == len(drift.rows)
    assert "drift" not in open_catalog(lake.store, Scope(run=before)).tables
    assert [v.problem for v in verify(open_catalog(lake.store, Scope(all=True))) if v.problem] == []
    table = miclip.open(lake.uri).table("drift", where={"aspect": "concept"}, columns=["item"]).arrow()
    assert sorted(table["item"].to_pylist()) == ["ring", "star"]
    (row,) = run_sql(catalog, "SELECT params FROM stages WHERE kind = 'drift'").read_all().to_pylist()
    assert row["params"] == '{"after": "nights-00002", "before": "nights-00001"}'


def test_the_drift_of_a_kept_run_stays_and_does_not_keep_the_run_before(
    lake: Lake, nights: tuple[RunState, RunState], tmp_path: Path
) -> None:
    import shutil

    save_drift(lake.store, nights[1].run, nights[0].run, compare_runs(lake.store, *nights))
    copied = Lake(shutil.copytree(lake.uri, tmp_path / "lake"))
    found = sweep(copied.store, Policy(keep_runs=1), fast())
    assert found.dropped == ("nights-00001",) and len(found.doomed) == 5
    rows = run_sql(open_catalog(copied.store), "SELECT count(*) AS n FROM drift").read_all().to_pylist()
    assert rows[0]["n"] > 10
    gone = compare_runs(copied.store, *nights)
    assert gone.pairs == 0 and "5 stages of the run before are gone" in gone.notes[0]


def test_two_models_of_one_run_are_compared_stage_by_stage(lake: Lake) -> None:
    night = Night(lake)
    for model, fvu in ((MODEL, 0.2), (OTHER, 0.3)):
        summary = {"sae_summary": columns("sae_summary", 1, site=["s"], fvu=[fvu])}
        night.publish(f"measure/{model}", "summary", summary, 3, model)
        night.publish(f"names/{model}", "names", named(["red", model]), 3, model)
    state = night.end()
    found = compare_models(lake.store, state, MODEL, OTHER)
    (fvu,) = of(found, item="fvu")
    assert (fvu["subject_before"], fvu["subject"], fvu["before"], fvu["after"]) == (MODEL, OTHER, 0.2, 0.3)
    assert fvu["cell"] == f"measure/{OTHER}"
    assert {row["item"] for row in of(found, aspect="concept")} == {MODEL, OTHER}
    with pytest.raises(UsageError, match="no stage about 'demo:none'; there are demo:clip-p8, demo:clip-rn"):
        compare_models(lake.store, state, MODEL, "demo:none")


def test_a_drift_without_rows_is_a_table_without_rows(lake: Lake, nights: tuple[RunState, RunState]) -> None:
    store: Store = lake.store
    same = compare_runs(store, nights[0], nights[0])
    assert same.rows == [] and save_drift(store, nights[0].run, "none", same).tables == {"drift": ()}


@pytest.mark.parametrize("found", ["foreign bytes", "other rows"])
def test_what_is_not_ours_on_the_key_of_a_part_is_left_there_and_never_published(tmp_path: Path, found: str) -> None:
    about = {"cell": "c", "subject": "m", "subject_before": "m", "aspect": "metric", "source": "t", "setting": ""}
    rows = [{**about, "item": item, "status": "changed", "before": 1.0, "after": 2.0} for item in ("fvu", "l0")]
    store, twin = Lake(tmp_path / "lake").store, Lake(tmp_path / "twin").store
    runs = [new_run(some, "nights", "kind: made by hand") for some in (store, twin) for _ in range(2)]
    (key,) = [part.key for part in save_drift(twin, runs[1], runs[0], Drift(rows[:1], 1)).tables["drift"]]
    theirs = b"foreign bytes" if found == "foreign bytes" else twin.get(key)
    store.create(key, theirs)
    published = save_drift(store, runs[1], runs[0], Drift(rows, 1))
    (part,) = published.tables["drift"]
    assert (part.rows, part.key) == (2, key.replace(".parquet", ".a1.parquet")) and store.get(key) == theirs
    assert [v.problem for v in verify(Catalog(store, (published,)))] == [""]
    read = run_sql(Catalog(store, (published,)), "SELECT item FROM drift ORDER BY item").read_all().to_pylist()
    assert [row["item"] for row in read] == ["fvu", "l0"]
