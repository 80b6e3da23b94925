"""Figures of runs: what events add up to, what a store says of its newest runs, and that Prometheus can read it."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.events import EventLog, StoreEvents, read_events
from cluster.metrics import (
    ITEMS,
    METRICS,
    RETRIES,
    ROWS,
    RUN_SECONDS,
    SECONDS,
    SHARDS,
    STAGES,
    STATUS,
    Metric,
    Sample,
    StoreMetrics,
    changes,
    to_text,
)
from cluster.metrics_server import MetricsServer
from cluster.runs import UnplannedCell, load_state, new_run, save_state
from cluster.stores import Store, make_store
from schemas.layout import alive_key
from tests.published import SPEC, run_spec

FAILING = SPEC.replace("numbers", "broken") + "error_shards: [1]\n"


def ended_at(store: Store, run: str, moment: float) -> None:
    """As if the driver of this run had last lived at that moment."""
    store.replace(alive_key(run), json.dumps({"time": moment}).encode())


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`numbers` ran twice, `broken` once well and then badly; a trial of it came last."""
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    for moment, (text, *overrides) in enumerate(
        [(SPEC,), (SPEC,), (FAILING, "error_shards=[]"), (FAILING, "seed=1"), (FAILING, "error_shards=[]", "rows=40")]
    ):
        run = run_spec(store, text, *overrides).state.run
        ended_at(store, run, 1000.0 + moment)
    save_state(store, load_state(store, "broken-00003").model_copy(update={"limited": True}))
    return store


def values(samples: list[Sample], metric: Metric) -> dict[tuple[str, ...], float]:
    return {labels: value for found, labels, value in samples if found is metric}


def test_a_page_says_what_a_person_would_count(lake: Store) -> None:
    families = {f.name: f for f in text_string_to_metric_families(to_text(StoreMetrics(lake).read()))}

    def value(name: str, **labels: str) -> float:
        (found,) = [s.value for f in families.values() for s in f.samples if s.name == name and s.labels == labels]
        return found

    assert value("miclip_run_number", pipeline="numbers") == 2
    assert value("miclip_cached_stages_total", pipeline="numbers", kind="selftest") == 2, "its second run had no work"
    assert value("miclip_stages", pipeline="numbers", state="published") == 2
    assert value("miclip_run_status", pipeline="numbers", status="DONE") == 1
    assert value("miclip_run_status", pipeline="broken", status="FAILED") == 1
    assert value("miclip_run_status", pipeline="broken", status="DONE") == 0
    # 250 rows in shards of 100: the first and third shard are done for both variants, the second raised
    assert value("miclip_shards_total", pipeline="broken", kind="selftest", state="done") == 2
    assert value("miclip_shards_total", pipeline="broken", kind="selftest", state="failed") == 1
    assert value("miclip_items_total", pipeline="broken", kind="selftest") == 150
    assert value("miclip_stages", pipeline="broken", state="failed") == 2
    assert value("miclip_store_up") == 1


def test_the_last_success_is_that_of_the_newest_run_that_is_done_and_no_trial(lake: Store) -> None:
    families = text_string_to_metric_families(to_text(StoreMetrics(lake).read()))
    (success,) = [f for f in families if f.name == "miclip_last_success_timestamp_seconds"]
    assert {s.labels["pipeline"]: s.value for s in success.samples} == {"numbers": 1001.0, "broken": 1002.0}


def test_reading_on_while_a_run_goes_gives_what_reading_it_at_the_end_gives(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    source = run_spec(store, SPEC).state.run
    events = read_events(store, source)
    run = new_run(store, "slow", "name: slow")
    save_state(
        store, load_state(store, source).model_copy(update={"run": run, "pipeline": "slow", "status": "RUNNING"})
    )
    metrics, segments, seen = StoreMetrics(store), StoreEvents(store, run), []
    for event in events:
        segments(event)
        segments.flush()
        seen.append(values(metrics.read(), SHARDS).get(("slow", "selftest", "done"), 0))
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 4
    assert [s for s in metrics.read() if "slow" in s.labels] == [
        s for s in StoreMetrics(store).read() if "slow" in s.labels
    ]


def test_of_runs_that_have_ended_only_the_newest_is_remembered_with_its_stages_and_of_dropped_ones_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(str(tmp_path))
    nights = [
        load_state(store, run_spec(store, SPEC).state.run).model_copy(update={"status": "FAILED"}) for _ in range(3)
    ]
    other = run_spec(store, FAILING, "error_shards=[]").state.run
    for night in nights:
        save_state(store, night)
    metrics = StoreMetrics(store)
    metrics.read()

    def remembered() -> dict[str, int]:
        """How many stages of a run are in memory."""
        runs = {run: len(state.parts) for run, state in metrics._ended.items()}
        return runs | {state.run: len(state.parts) for state in metrics._newest.values()}

    assert remembered() == {nights[0].run: 0, nights[1].run: 0, nights[2].run: 2, other: 2}
    with monkeypatch.context() as context:
        context.setattr("cluster.metrics.find_state", None)  # nothing is read again
        metrics.read()
    for dropped in (nights[2].run, other):
        for key in store.list(f"runs/{dropped}"):
            store.delete(key)
    assert metrics.read() == StoreMetrics(store).read()  # of one that is the newest again, with its stages
    assert remembered() == {nights[0].run: 0, nights[1].run: 2} and set(metrics._runs) == {"numbers"}


def test_a_state_that_ends_later_is_seen(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    run = run_spec(store, SPEC).state.run
    done = load_state(store, run)
    save_state(store, done.model_copy(update={"status": "RUNNING"}))
    metrics = StoreMetrics(store)
    assert 'status="RUNNING"} 1' in to_text(metrics.read())
    save_state(store, done)
    assert 'status="RUNNING"} 0' in to_text(metrics.read())
    assert 'status="DONE"} 1' in to_text(metrics.read())


def test_a_run_that_was_interrupted_and_is_then_cancelled_is_seen_so(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    state = load_state(store, run_spec(store, SPEC).state.run)
    metrics = StoreMetrics(store)
    for status in ("INTERRUPTED", "CANCELLED"):
        save_state(store, state.model_copy(update={"status": status}))
        assert values(metrics.read(), STATUS)["numbers", status] == 1


def test_a_run_that_goes_on_or_was_killed_has_taken_the_time_until_its_last_sign(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    state = load_state(store, run_spec(store, SPEC).state.run)
    save_state(store, state.model_copy(update={"status": "RUNNING", "began": 1000.0, "seconds": 2.0}))
    for sign, took in ((1001.0, 2.0), (1063.0, 63.0)):
        ended_at(store, state.run, sign)
        assert values(StoreMetrics(store).read(), RUN_SECONDS) == {("numbers",): took}


def test_cells_that_cannot_be_planned_count_as_stages_that_failed(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    state = load_state(store, run_spec(store, SPEC).state.run)
    gone = UnplannedCell(cell="acts/m", kind="extract", subject="m", state="failed", error="nothing at /m")
    save_state(store, state.model_copy(update={"status": "FAILED", "unplanned": (gone,)}))
    assert values(StoreMetrics(store).read(), STAGES) == {
        ("numbers", "published"): 2, ("numbers", "to do"): 0, ("numbers", "failed"): 1,
    }  # fmt: skip


def test_only_a_try_that_is_repeated_is_a_retry() -> None:
    bad = {"event": "shard_lost", "kind": "extract", "seconds": {}, "final": False}
    assert list(changes("zoo", bad)) == [
        Sample(SHARDS, ("zoo", "extract", "lost"), 1),
        Sample(RETRIES, ("zoo", "extract"), 1),
    ]
    assert list(changes("zoo", bad | {"final": True})) == [Sample(SHARDS, ("zoo", "extract", "lost"), 1)]
    good = {"event": "shard_done", "kind": "extract", "seconds": {"store": 0.5}, "items": 10, "rows": 20}
    assert [(s.metric, s.value) for s in changes("zoo", good)] == [(SHARDS, 1), (SECONDS, 0.5), (ITEMS, 10), (ROWS, 20)]
    assert list(changes("zoo", {"event": "planned", "kind": "extract"})) == []


def test_every_event_of_a_run_is_understood(lake: Store) -> None:
    for event in read_events(lake, "broken-00002"):
        assert all(len(s.labels) == len(s.metric.labels) for s in changes("broken", event))


def test_names_follow_the_rules_of_prometheus() -> None:
    assert len({metric.exposed for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert not metric.name.endswith("_total") and metric.name.startswith("miclip_")


def test_a_label_may_hold_anything() -> None:
    odd = 'a "b" \\ c\nd'
    (family,) = text_string_to_metric_families(to_text([Sample(ITEMS, ("zoo", odd), 0.1 + 0.2)]))
    assert family.samples[0].labels["kind"] == odd
    assert family.samples[0].value == pytest.approx(0.3, abs=1e-15)


def test_a_listener_that_is_added_hears_what_comes_after() -> None:
    first: list[str] = []
    later: list[str] = []
    log = EventLog(lambda event: first.append(event["event"]))
    log.emit("cached")
    log.add(lambda event: later.append(event["event"]))
    log.emit("planned")
    assert (first, later) == (["cached", "planned"], ["planned"])


# ---------------------------------------------------------------- served


@pytest.fixture
def page(lake: Store) -> Iterator[str]:
    with MetricsServer(StoreMetrics(lake), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_served_page_is_the_printed_one(page: str, lake: Store) -> None:
    with urllib.request.urlopen(f"{page}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert answer.read().decode() == to_text(StoreMetrics(lake).read())
    assert urllib.request.urlopen(f"{page}/healthz").read() == b"ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{page}/")


# ---------------------------------------------------------------- the verb


def test_the_verb_prints_or_replaces_a_file_that_everyone_may_read(lake: Store, tmp_path: Path) -> None:
    to = tmp_path / "miclip.prom"
    to.write_text("old")
    done = CliRunner().invoke(app, ["metrics", "--store", lake.uri, "--to", str(to)])
    assert done.exit_code == 0, done.output
    assert to.read_text() == CliRunner().invoke(app, ["metrics", "--store", lake.uri]).stdout
    assert to.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [to]
    rows = json.loads(CliRunner().invoke(app, ["metrics", "--store", lake.uri, "--json"]).stdout)
    assert {"metric": "miclip_run_number", "pipeline": "numbers", "value": 2} in rows


def test_a_store_that_does_not_answer_is_down_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "0.2")
    to = tmp_path / "miclip.prom"
    done = CliRunner().invoke(app, ["metrics", "--store", "s3://lab/lake", "--to", str(to)])
    assert done.exit_code == 3 and "cannot be read" in done.output
    assert [line for line in to.read_text().splitlines() if line[0] != "#"] == ["miclip_store_up 0"]


def test_a_port_that_is_taken_is_said_so(page: str, lake: Store) -> None:
    done = CliRunner().invoke(app, ["metrics", "--store", lake.uri, "--serve", page.rpartition(":")[2]])
    assert done.exit_code == 2 and "choose another --serve" in done.output
