"""What moved between two runs, or between two models, over tables made by hand; and it is a table like any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import miclip
from cluster.catalog import Catalog, Scope, open_catalog, verify
from cluster.cli.comparing import _compared
from cluster.drift import METRICS, SAES, compare_models, compare_runs
from cluster.drift_table import Drift, Pair, save_drift
from cluster.gc import sweep
from cluster.hold import GC, Holds, load_holds
from cluster.lease import take
from cluster.retention import Policy
from cluster.runs import RunState, new_run
from cluster.sql import run_sql
from cluster.stores.base import Store
from schemas.errors import UsageError
from schemas.plans import Published, StageSpec
from schemas.tables import get_table
from tests.lakes import Lake
from tests.made_up_nights import (
    IMAGES,
    MODEL,
    OTHER,
    SITE,
    UNHEARD,
    Night,
    codes,
    columns,
    named,
    predictions,
    sweep_of_saes,
)
from tests.paces import Time, fast


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
        summary = columns("sae_summary", 1, site=["s"], sae=[UNHEARD], fvu=[0.25 * seed], l0=[8.0])
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
    rows = [row for batch in drift.batches("") for row in batch.to_pylist()]
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


@pytest.mark.parametrize("table", METRICS)
def test_figures_are_numbers_and_what_tells_rows_apart_holds_no_digest(table: str) -> None:
    schema = get_table(table).schema
    keys, figures = METRICS[table]
    assert {*keys, *figures} <= set(schema.names)
    assert all(pa.types.is_integer(schema.field(f).type) or pa.types.is_floating(schema.field(f).type) for f in figures)
    assert not {"stage", "encoder"} & {*keys, *figures}
    assert {name for name in schema.names if name.startswith("sae")} == SAES & set(keys)  # by name


def test_figures_that_moved_are_there_with_both_values_and_others_are_not(drift: Drift) -> None:
    (accuracy,) = of(drift, item="accuracy")
    assert (accuracy["before"], accuracy["after"], accuracy["cell"]) == (0.5, 0.7, "acts")
    (agreement,) = of(drift, item="agreement")
    assert agreement["after"] == pytest.approx(0.8)  # four of twenty images changed their class
    (fvu,) = of(drift, item="fvu")
    assert (fvu["before"], fvu["after"], fvu["setting"], fvu["cell"]) == (
        0.25,
        0.5,
        "site=s sae=sae:00000000",
        "measure",
    )
    assert of(drift, item="l0") == of(drift, item="mean_probability") == of(drift, cell="other") == []
    assert (drift.pairs, drift.same, drift.notes) == (5, 2, [])


def test_concepts_are_gained_and_lost_by_living_units(drift: Drift) -> None:
    found = {row["item"]: (row["status"], row["before"], row["after"]) for row in of(drift, aspect="concept")}
    assert found == {"ring": ("gained", 0.0, 1.0), "star": ("lost", 1.0, 0.0)}
    assert of(drift, item="ring")[0]["setting"] == "site=s unit_kind=neurons variant=miclip seed=0"


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
    assert catalog.tables["drift"] == len(of(drift))
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


def test_figures_of_other_stages_that_are_equal_are_no_rows_and_it_is_said_that_nothing_moved(lake: Lake) -> None:
    """Also of a figure that is no number both times, and of features that are all there still, but for those that are dead."""
    values, decoder = np.random.default_rng(3).random((4, 20)), np.eye(4, 8, dtype=np.float32)
    values[1] = 0.0
    runs = []
    for seed in (21, 22):
        night = Night(lake)
        night.publish("acts", "predictions", predictions(7), seed)
        night.publish("names", "names", named(["red"]), seed)
        night.publish("sae", "sae", {}, seed, weights=decoder)
        night.publish("features", "features", codes(values), seed)
        summary = columns("sae_summary", 1, sae=[UNHEARD], fvu=[float("nan")], l0=[float("nan")])
        night.publish("measure", "summary", {"sae_summary": summary}, seed)
        runs.append(night.end())
    found = compare_runs(lake.store, *runs)
    assert (found.rows, found.pairs, len(found.features)) == ([], 5, 2)
    assert _compared(found) == "nothing moved: 5 stages compared, 0 of them the same"


@pytest.mark.parametrize(
    ("before", "after", "status"), [(0.5, 0.25, "changed"), (float("nan"), 0.5, "gained"), (0.5, float("nan"), "lost")]
)
def test_a_figure_that_was_no_number_is_gained(before: float, after: float, status: str) -> None:
    stage = Published(stage=StageSpec(kind="k", method=1, subject="m", output="o", params={}), tables={}, content="")
    (row,) = Pair("c", stage, stage).figure("sae_summary", "fvu", "", before, after)
    assert row["status"] == status
    assert [row["before"], row["after"]] == [None if value != value else value for value in (before, after)]


def test_a_drift_without_rows_is_a_table_without_rows(lake: Lake, nights: tuple[RunState, RunState]) -> None:
    store: Store = lake.store
    same = compare_runs(store, nights[0], nights[0])
    assert (same.rows, same.features, same.pairs, same.same) == ([], [], 0, 7)
    assert save_drift(store, nights[0].run, "none", same).tables == {"drift": ()}


def test_drift_is_held_beside_what_its_run_holds_and_waits_for_a_dead_sweep_as_long_as_its_night(
    tmp_path: Path,
) -> None:
    store, time = Lake(tmp_path / "lake").store, Time()
    run = new_run(store, "nights", "kind: made by hand")
    Holds(store, run, fast()).hold({"0" * 20})
    take(store, GC, Time().pace()._replace(patience=10))
    published = save_drift(store, run, "none", Drift([], 0), time.pace()._replace(patience=300))
    assert load_holds(store, run) == {"0" * 20, published.stage.digest} and 300 <= time.slept <= 310


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


# ---------------------------------------------------------------- two SAEs of one site


def test_each_sae_of_a_sweep_is_compared_with_its_own_in_whatever_order_they_are(lake: Lake) -> None:
    before, after = sweep_of_saes(lake, [16, 32], 1).end(), sweep_of_saes(lake, [32, 16], 2).end()
    found = compare_runs(lake.store, before, after)
    assert found.notes == [] and found.pairs == 7
    for width in (16, 32):
        sae = f"site={SITE} sae=topk {width} latents k 8"
        (score,) = of(found, source="method_scores", setting=f"{sae} unit_kind=features variant=auroc measure=accuracy")
        assert (score["before"], score["after"]) == (width + 0.1, width + 0.2)
        (units,) = of(found, item="units_described", setting=f"{sae} unit_kind=features variant=auroc")
        assert (units["before"], units["after"]) == (100 * width + 1, 100 * width + 2)
        concepts = of(found, aspect="concept", setting=f"{sae} unit_kind=features variant=auroc")
        assert {(row["item"], row["status"]) for row in concepts} == {(f"{width} for 1", "lost"), (f"{width} for 2", "gained")}  # fmt: skip
        assert len(of(found, aspect="feature", item="decoder_cosine", setting=sae)) == width
        by_codes = of(found, item="matched_by_code_correlation", setting=sae)
        assert by_codes == []  # codes of one width are those of the other night
    moved = [(row["cell"], row["source"], row["item"], row["setting"]) for row in found.rows]
    assert len(moved) == len(set(moved))
    assert not [row for row in found.rows if re.search("[0-9a-f]{8}", row["setting"])]


def test_an_sae_that_stays_is_not_taken_for_another_that_comes_or_goes(lake: Lake) -> None:
    before, after = sweep_of_saes(lake, [16, 32], 3).end(), sweep_of_saes(lake, [32, 64], 3).end()
    found = compare_runs(lake.store, before, after)
    assert (found.same, found.notes) == (3, [])
    assert {row["setting"].split(" unit_kind")[0] for row in of(found)} == {f"site={SITE} sae=topk 64 latents k 8"}
    (units,) = of(found, item="units_described")
    assert (units["before"], units["after"]) == (1603, 6403)  # one width was changed for another


def test_saes_of_two_models_meet_their_like(lake: Lake) -> None:
    night, other = sweep_of_saes(lake, [16, 32], 4), sweep_of_saes(lake, [16, 32], 5, OTHER)
    night.stages += other.stages
    found = compare_models(lake.store, night.end(), MODEL, OTHER)
    scores = {
        row["setting"].split(" k 8")[0]: (row["before"], row["after"]) for row in of(found, source="method_scores")
    }
    assert scores == {f"site={SITE} sae=topk {n} latents": (n + 0.4, n + 0.5) for n in (16, 32)}
    assert {row["cell"] for row in of(found)} == {f"{cell}/{OTHER}" for cell in ("sae", "names", "features", "judge")}


def test_the_cell_of_two_models_is_that_of_the_other_model_also_in_a_matrix(lake: Lake) -> None:
    night = Night(lake)
    for model, fvu in ((MODEL, 0.2), (OTHER, 0.3)):
        summary = {"sae_summary": columns("sae_summary", 1, site=["s"], sae=[UNHEARD], fvu=[fvu])}
        night.publish(f"measure/{model}/latents=16", "summary", summary, 8, model)
    (fvu,) = of(compare_models(lake.store, night.end(), MODEL, OTHER), item="fvu")
    assert fvu["cell"] == f"measure/{OTHER}/latents=16"


def test_rows_that_nothing_tells_apart_are_named_and_not_compared(lake: Lake) -> None:
    runs = []
    for seed, l2 in ((11, 0.1), (12, 0.2)):
        night = Night(lake)
        rows = columns("probe_summary", 3, site=["s", "s", "t"], pool=["mean"] * 3, accuracy=[l2, 0.5, l2])
        night.publish("probe", "probes", {"probe_summary": rows}, seed)
        runs.append(night.end())
    found = compare_runs(lake.store, *runs)
    assert [(row["setting"], row["before"], row["after"]) for row in found.rows] == [("site=t pool=mean", 0.1, 0.2)]
    assert found.notes == [
        "probe: several rows of probe_summary have one setting, such as 'site=s pool=mean'; which is which cannot be told, so "
        "they were not compared"
    ]
