"""A pipeline from spec to tables: facts first, cells side by side, one failure at a time, and what the run says of itself."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import pipeline as pipelines
from cluster.catalog import Scope, open_catalog
from cluster.events import EventLog, StoreEvents, read_events
from cluster.executor import SerialExecutor, StopFlag
from cluster.ledger import load_published
from cluster.pipeline import PipelineRun
from cluster.planned import plan_pipeline
from cluster.runs import load_state, load_tables, new_run
from cluster.stores.base import make_store
from schemas.errors import EmptyImageSet, Interrupted, UnknownModel, UsageError
from schemas.layout import published_key
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake, export, make_extract

CLIP = "demo:clip-p8"


def pipeline(stages: dict[str, Any], **fields: Any) -> PipelineSpec:
    stages = {
        name: {"kind": "selftest", "subject": name, "rows": 20, "shard_rows": 10, **s} for name, s in stages.items()
    }
    return PipelineSpec.model_validate({"name": "test", "stages": stages, **fields}, strict=False)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("world"), 8)


def states(lake: Lake, run: str = "test-00001") -> dict[str, str]:
    return {state.subject: state.state for state in load_state(lake.store, run).stages}


# -- facts before plans


def test_a_model_that_is_not_inspected_cannot_be_planned_and_says_so(lake, world):
    spec = make_extract(world, (CLIP,), sites=[], outputs=["embeddings"])
    (cell,) = plan_pipeline(spec, lake.store).cells
    assert cell.plans == () and cell.error == f"{CLIP} is not inspected yet"
    assert not Path(lake.uri).exists()  # planning writes nothing, not even the folder of the store


def test_with_facts_published_a_plan_needs_no_work_and_runs_none(lake, world):
    spec = make_extract(world, (CLIP,), sites=[], outputs=["embeddings"])
    assert lake.run(spec).exit_code == 0
    before = lake.store.list("")
    more = make_extract(world, (CLIP,), sites=["resid_post.*@cls"], outputs=["activations", "embeddings"])
    (cell,) = plan_pipeline(more, lake.store).cells
    assert len(cell.plans) == 6 and cell.error == ""
    assert lake.store.list("") == before


def test_facts_come_first_in_a_run_and_are_found_again_by_the_next(lake, world):
    spec = make_extract(world, (CLIP,), sites=[], outputs=["embeddings"])
    assert lake.run(spec).exit_code == 0
    kinds = [e["kind"] for e in lake.events if e["event"] == "published"]
    assert sorted(kinds[:2]) == ["index_images", "inspect"] and kinds[2:] == ["extract"]
    again = lake.run(spec)
    assert again.exit_code == 0 and lake.count("published") == 0 and lake.count("cached") == 3
    assert [stage.state for stage in again.state.stages] == ["cached"] * 3


def test_models_that_are_not_there_fail_alone_and_are_named(lake, world):
    """One is renamed, of one the folder is gone: 39 others do not wait for it, tonight or tomorrow."""
    models = ("demo:nobody", CLIP, "open_clip:RN50@file:/no/such/folder")
    spec = make_extract(world, models, sites=[], outputs=["embeddings"])
    for published in (3, 0):  # the index, the facts of the CLIP and its embeddings
        report = lake.run(spec)
        assert report.exit_code == 1 and lake.count("published") == published
        assert [f.split(": ")[0] for f in report.failures] == [f"acts/{models[0]}", f"acts/{models[2]}"]
        assert "no such demo model" in report.failures[0] and "nothing at /no/such/folder" in report.failures[1]
        assert set(lake.table(report, "embeddings")["model"].to_pylist()) == {CLIP}
        assert [(c.cell, c.subject, c.kind, c.state) for c in report.state.unplanned] == [
            (f"acts/{model}", model, "extract", "failed") for model in (models[0], models[2])
        ]
        assert [f"{c.cell}: {c.error}" for c in load_state(lake.store, report.state.run).unplanned] == report.failures
    with pytest.raises(UnknownModel, match="no such demo model"):
        plan_pipeline(spec, lake.store).refuse()


def test_a_stage_that_does_not_suit_one_model_is_made_for_the_others_and_refused_if_it_suits_none(lake, world):
    """A ResNet has no blocks of a transformer."""
    resnet, fields = "demo:clip-rn", {"sites": ["resid_post.1@cls"], "outputs": ["activations"]}
    report = lake.run(make_extract(world, (resnet, CLIP), **fields))
    assert report.exit_code == 1 and states(lake)[CLIP] == "published"
    (failure,) = report.failures
    assert failure.startswith(f"acts/{resnet}: ") and "resid_post.1" in failure
    with pytest.raises(UsageError, match=r"stages\.acts.*resid_post\.1"):
        lake.run(make_extract(world, (resnet,), **fields))


def test_a_model_that_cannot_be_inspected_fails_alone(lake, world, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(str(files("miclip_core") / "world" / "zoo" / "clip-p8"), broken)
    (broken / "open_clip_config.json").write_text("{")
    models = (f"open_clip:clip-p8@file:{broken}", CLIP)
    report = lake.run(make_extract(world, models, sites=[], outputs=["embeddings"]))
    assert report.exit_code == 1
    assert report.failures and [f for f in report.failures if models[0] not in f] == []
    assert set(lake.table(report, "embeddings")["model"].to_pylist()) == {CLIP}


def test_models_and_images_that_are_not_there_are_refused_before_any_work(lake, world, tmp_path):
    models = ("demo:nobody", "open_clip:RN50@file:/no/such/folder")
    with pytest.raises(UsageError, match=r"(?s)demo:nobody: no such demo model.*nothing at /no/such/folder"):
        lake.run(make_extract(world, models, sites=[], outputs=["embeddings"]))
    (tmp_path / "empty").mkdir()
    images = {"ref": f"folder:{tmp_path / 'empty'}"}
    with pytest.raises(EmptyImageSet):
        lake.run(make_extract(world, (CLIP,), sites=[], outputs=["embeddings"], images=images))
    assert lake.store.list("stages") == [] and lake.store.list("tables") == []
    assert load_state(lake.store, "test-00002").status == "STOPPED"


def test_pairs_of_a_model_that_is_not_there_fail_and_the_zoo_waits_for_a_spec_without_it(lake, world):
    gone, other = "demo:nobody", "demo:clip-p8-b"
    shared = {
        "kind": "mine_rosetta",
        "model": [gone, CLIP, other],
        "entries": 0,
        "sites": ["mlp_act.-2@map"],
        "rare": "keep",
    }
    spec = PipelineSpec.model_validate(
        {"name": "test", "images": {"ref": f"folder:{world}/images"}, "stages": {"shared": shared}}, strict=False
    )
    report = lake.run(spec)
    assert report.exit_code == 1
    named = [f"shared/{gone}", f"shared/{gone}+{CLIP}", f"shared/{gone}+{other}", "shared"]
    assert [failure.split(": ")[0] for failure in report.failures] == named
    made = {s.subject for s in report.state.stages if s.kind == "mine_rosetta" and s.state == "published"}
    assert made == {CLIP, other, f"{CLIP} + {other}"}


# -- side by side, and failures


def test_a_stage_runs_after_those_it_reads(lake):
    report = lake.run(pipeline({"last": {"reads": ["one", "two"]}, "one": {}, "two": {}}))
    assert report.exit_code == 0
    order = [e["subject"] for e in lake.events if e["event"] == "published"]
    assert order == ["one", "two", "last"]


def test_what_reads_a_stage_does_not_wait_for_others_beside_it(lake):
    """With one worker: the chain of three is done before the stage that was written last begins."""
    chain = {"one": {}, "two": {"reads": "one"}, "three": {"reads": "two"}, "beside": {}}
    assert lake.run(pipeline(chain)).exit_code == 0
    assert [e["subject"] for e in lake.events if e["event"] == "published"] == list(chain)


@pytest.fixture
def no_pauses(monkeypatch):
    """The state of a run is written whenever something has become of a shard."""
    monkeypatch.setattr(pipelines, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pipelines, "SAVE_SHARE", 0.0)


def test_the_state_of_a_run_tells_shards_while_it_works_without_asking_the_store(lake, monkeypatch, no_pauses):
    """Of 3 shards and their sum, one is cut out by a failure; the state is read when the next is done."""
    spec, run, seen = pipeline({"one": {"rows": 30, "error_shards": [1]}}), new_run(lake.store, "test", ""), []
    asked: list[str] = []
    monkeypatch.setattr("cluster.planned.load_marks", lambda store, digest: asked.append(digest) or (0, []))

    def look(event: dict[str, Any]) -> None:
        if event["event"] in ("shard_done", "shard_failed"):
            (stage,) = load_state(lake.store, run).stages
            seen.append((event["event"], stage.shards_done, stage.shards, stage.state, len(asked)))

    PipelineRun(spec, run, lake.store, lake.executor, EventLog(look), StopFlag()).run()
    assert sorted(name for name, *_ in seen) == ["shard_done", "shard_done", "shard_failed"]
    assert [done for _, done, *_ in seen] == [0, 1, 1] and {shards for _, _, shards, *_ in seen} == {4}
    assert seen[0][3] == "to do" and seen[-1][3] == "failed"
    assert len({times for *_, times in seen}) == 1
    state = load_state(lake.store, run)
    assert state.began is not None and state.seconds >= 0


def test_the_state_of_a_run_follows_what_is_published_while_it_works(lake, no_pauses):
    seen = []
    spec, run = pipeline({"one": {}, "two": {"reads": "one"}}), new_run(lake.store, "test", "")

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "shard_done":
            seen.append(states(lake, run))

    PipelineRun(spec, run, lake.store, lake.executor, EventLog(look), StopFlag()).run()
    assert seen[0] == {"one": "to do", "two": "to do"} and seen[-1] == {"one": "published", "two": "to do"}


def test_a_failed_stage_stops_only_what_reads_it(lake):
    spec = pipeline({"bad": {"error_shards": [1]}, "after": {"reads": "bad"}, "last": {"reads": "after"}, "beside": {}})
    report = lake.run(spec)
    assert report.exit_code == 1
    assert states(lake) == {"bad": "failed", "after": "failed", "last": "failed", "beside": "published"}
    assert [f.split(":")[0] for f in report.failures] == ["bad rows", "after rows", "last rows"]
    assert "shard 1: ValueError: shard 1 was told to fail" in report.failures[0]
    assert [f.partition(": ")[2] for f in report.failures[1:]] == [
        "its input stage bad rows a seed 0 is not published"
    ] * 2
    lake.run(spec)
    assert (lake.count("shard_done"), lake.count("shard_failed")) == (0, 1)  # only the failed shard is tried again


@pytest.mark.parametrize("error_shards", [[], [1]])
def test_whether_an_input_is_there_is_not_asked_again_for_every_stage_that_reads_it(
    tmp_path, monkeypatch, error_shards
):
    asked: list[str] = []
    times = []
    for readers in (1, 9):
        lake = Lake(tmp_path / f"lake{readers}")
        exists = lake.store.exists
        monkeypatch.setattr(lake.store, "exists", lambda key, ask=exists: bool(asked.append(key)) or ask(key))
        stages = {"first": {"error_shards": error_shards}, **{f"of{i}": {"reads": "first"} for i in range(readers)}}
        first = published_key(lake.run(pipeline(stages)).state.stages[0].digest)
        times.append(asked.count(first))
        asked.clear()
    assert times[0] == times[1] > 0


def test_a_stage_over_an_axis_reads_the_cell_in_its_own_place_and_others_read_all(lake):
    stages = {
        "one": {"over": "seed", "variants": ["a"]},
        "two": {"reads": "one", "over": "seed", "variants": ["a"]},
        "all": {"reads": "one"},
    }
    spec = pipeline(
        stages, matrix={"seed": [1, 2]}, overrides=[{"stage": "two", "at": {"seed": 2}, "set": {"rows": 7}}]
    )
    report = lake.run(spec)
    assert report.exit_code == 0
    tables = load_tables(lake.store, "test-00001")
    assert tables is not None and list(tables.stages) == ["one/seed=1", "one/seed=2", "two/seed=1", "two/seed=2", "all"]
    found = {cell: load_published(lake.store, digests[0]) for cell, digests in tables.stages.items()}
    read = {cell: set(published.stage.inputs.values()) for cell, published in found.items()}
    (one,), (two,) = tables.stages["one/seed=1"], tables.stages["one/seed=2"]
    assert [read[c] for c in ("two/seed=1", "two/seed=2", "all")] == [{one}, {two}, {one, two}]
    assert [found[c].stage.params["rows"] for c in ("two/seed=1", "two/seed=2")] == [20, 7]
    with_third = pipeline(stages, matrix={"seed": [1, 2, 3]}, exclude=[{"stage": "two", "at": {"seed": 2}}])
    assert lake.run(with_third).exit_code == 0
    assert lake.count("published") == 3  # one and two at 3, and all


def test_a_changed_stage_makes_what_reads_it_anew_and_nothing_else(lake):
    spec = {"first": {}, "second": {"reads": "first"}, "beside": {}}
    assert lake.run(pipeline(spec)).exit_code == 0
    assert lake.run(pipeline({**spec, "first": {"seed": 5}})).exit_code == 0
    assert [e["subject"] for e in lake.events if e["event"] == "published"] == ["first", "second"]


# -- what a run says of itself


def test_a_finished_run_stands_for_all_its_stages_new_and_old(lake):
    lake.run(pipeline({"one": {}}))
    report = lake.run(pipeline({"one": {}, "two": {}}))
    tables = load_tables(lake.store, "test-00002")
    assert tables is not None and set(tables.stages) == {"one", "two"}
    assert tables.digests == tuple(stage.digest for stage in report.state.stages)
    assert load_state(lake.store, "test-00002").status == "DONE"


def test_a_run_with_failures_stands_for_what_it_published(lake):
    lake.run(pipeline({"bad": {"error_shards": [0]}, "good": {}}))
    tables = load_tables(lake.store, "test-00001")
    assert tables is not None and set(tables.stages) == {"good"}
    state = load_state(lake.store, "test-00001")
    assert state.status == "FAILED" and state.message.startswith("bad rows: shard 0: ValueError")


def test_a_run_over_some_images_is_limited_and_not_what_readers_see(lake, world):
    spec = make_extract(world, (CLIP,), sites=[], outputs=["embeddings"])
    limited = spec.model_copy(update={"images": spec.images.model_copy(update={"limit": 3})})
    report = lake.run(limited)
    assert report.state.limited and open_catalog(lake.store).tables == {}
    assert open_catalog(lake.store, Scope(run="test-00001")).tables["embeddings"] == 3
    lake.run(spec)
    assert open_catalog(lake.store).tables["embeddings"] == 8


def test_a_run_that_is_stopped_says_interrupted_and_the_next_goes_on(lake):
    """The flag is set when the first shard is done; the two others, the merge and the pointer are left to the next run."""
    spec, stop = pipeline({"one": {"rows": 30}}), StopFlag()
    run = new_run(lake.store, "test", "")
    log = EventLog(lambda event: stop.stop("SIGTERM") if event["event"] == "shard_done" else None)
    with pytest.raises(Interrupted, match="finished shards are kept"):
        PipelineRun(spec, run, lake.store, SerialExecutor(lake.uri), log, stop).run()
    state = load_state(lake.store, run)
    assert (state.status, state.stages[0].shards_done, state.stages[0].shards) == ("INTERRUPTED", 1, 4)
    assert load_tables(lake.store, run) is None
    assert lake.run(spec).exit_code == 0 and lake.count("shard_done") == 3


# -- events


def test_events_of_a_run_are_kept_in_order_across_segments(tmp_path):
    store = make_store(str(tmp_path))
    log = StoreEvents(store, "test-00001")
    for number in range(450):
        log({"event": "tick", "number": number})
    log.flush()
    log.flush()
    assert len(store.list("events/test-00001")) == 3  # two of 200, one of 50
    assert [event["number"] for event in read_events(store, "test-00001")] == list(range(450))


def test_two_writers_of_one_run_lose_no_event(tmp_path):
    store = make_store(str(tmp_path))
    first, second = StoreEvents(store, "test-00001"), StoreEvents(store, "test-00001")
    for writer, name in ((first, "a"), (second, "b"), (first, "c")):
        writer({"event": name})
        writer.flush()
    assert [event["event"] for event in read_events(store, "test-00001")] == ["a", "b", "c"]


# -- going on with what a run left


def interrupt(lake: Lake, spec: PipelineSpec, title: str, shards: int) -> None:
    """Run until so many shards of one work are done, then stop as Ctrl-C does."""
    stop, seen = StopFlag(), []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "shard_done" and event["title"].startswith(title):
            seen.append(event["shard"])
            if len(seen) == shards:
                stop.stop("test")

    run = new_run(lake.store, spec.name, spec.canonical_json())
    with pytest.raises(Interrupted):
        PipelineRun(spec, run, lake.store, lake.executor, EventLog(listen), stop).run()
    assert len(seen) == shards


def test_an_interrupted_run_is_finished_after_its_folder_moved_and_with_smaller_batches(tmp_path):
    """5 shards of 16 images are frozen, 2 of them done; where the images are and how many fit is the second run's own."""
    before, after = export(tmp_path / "before", 80), tmp_path / "after"
    lake, fields = Lake(tmp_path / "lake"), {"sites": [], "outputs": ["embeddings"]}
    interrupt(lake, make_extract(before, (CLIP,), batch_size=16, shard_rows=16, **fields), "extract", 2)
    before.rename(after)
    again = make_extract(after, (CLIP,), batch_size=4, shard_rows=1000, **fields)
    report = lake.run(again)
    assert report.exit_code == 0, report.failures
    assert sum(e["event"] == "shard_done" and e["title"].startswith("extract") for e in lake.events) == 3
    rows = lake.table(report, "embeddings").sort_by("image_index")
    whole = Lake(tmp_path / "whole")
    expected = whole.table(whole.run(again), "embeddings").sort_by("image_index")
    assert rows["image_id"].equals(expected["image_id"]) and len(rows) == 80
    assert np.allclose(rows["embedding"].to_pylist(), expected["embedding"].to_pylist(), atol=2e-3)


def test_a_setting_that_made_a_shard_fail_is_not_kept_for_the_next_run(lake):
    assert lake.run(pipeline({"one": {"error_shards": [1]}})).exit_code == 1
    assert lake.run(pipeline({"one": {"shard_rows": 3}})).exit_code == 0
    assert (lake.count("shard_done"), lake.count("published")) == (2, 1)  # shard 1 of the first cut, and the sum


def test_two_cells_that_ask_for_one_stage_with_other_resources_compute_it_once(lake):
    same = {"subject": "same", "rows": 20, "shard_rows": 10}
    wide, deep = {**same, "resources": {"workers": 2}}, {**same, "resources": {"cpus": 2.0, "memory_gb": 1.0}}
    report = lake.run(pipeline({"wide": wide, "deep": deep}))
    assert report.exit_code == 0, report.failures
    assert (lake.count("published"), lake.count("shard_done")) == (1, 3)  # two shards and their sum
    (digest,) = {stage.digest for stage in report.state.stages}
    tables = load_tables(lake.store, "test-00001")
    assert tables is not None and tables.stages == {"wide": (digest,), "deep": (digest,)}


def test_a_file_that_the_disk_refuses_fails_its_stage_and_is_never_set_aside(lake, tmp_path):
    """/proc/self/mem may be listed, and reading its first byte is an I/O error."""
    folder = export(tmp_path / "world", 8)
    image = sorted((folder / "images").iterdir())[3]
    data = image.read_bytes()
    image.unlink()
    image.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        image.read_bytes()
    spec = make_extract(folder, (CLIP,), sites=[], outputs=["embeddings"])
    report = lake.run(spec)
    assert report.exit_code == 1
    assert [f for f in report.failures if "InputUnreadable" in f and str(image) in f]
    assert lake.store.list("tables/bad_inputs") == []
    image.unlink()
    image.write_bytes(data)
    again = lake.run(spec)
    assert again.exit_code == 0 and len(lake.table(again, "embeddings")) == 8
