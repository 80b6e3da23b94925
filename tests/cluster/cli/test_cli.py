"""The command line as a person and as a script see it: what it prints, where, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cluster import pipeline
from cluster.cli.app import app
from cluster.events import EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.pipeline import PipelineRun
from cluster.runs import RunState, UnplannedCell, list_runs, load_options, load_state, new_run, save_state
from cluster.spec_file import parse_spec
from cluster.stores import make_store
from schemas.layout import alive_key
from tests.published import SPEC, publish_numbers, run_spec

VERBS = [
    ["demo"], ["run"], ["retry"], ["submit"], ["watch"], ["cancel"], ["nightly"], ["drift"], ["validate"], ["plan"], ["schema"], ["status"], ["logs"], ["metrics"], ["tables"], ["sql"], ["views"],
    ["verify"], ["gc"], ["search"], ["report"], ["saes"], ["export", "sae"], ["export", "features"], ["export", "iceberg"], ["models"], ["sites"], ["world", "export"], ["doctor"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MICLIP_STORE", raising=False)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lake")
    publish_numbers(folder)
    return str(folder)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.yaml"
    path.write_text(SPEC + "store: lake\n")
    return path


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself_with_an_example(verb: list[str]) -> None:
    result = miclip(*verb, "--help")
    assert result.exit_code == 0
    assert f"Example: miclip {' '.join(verb)}" in " ".join(result.stdout.split())


def test_help_lists_every_verb_and_the_exit_codes() -> None:
    text = miclip("--help").stdout
    assert all(verb[0] in text for verb in VERBS)
    assert "2 bad spec or usage" in text


def test_an_unknown_verb_or_option_is_a_usage_error() -> None:
    assert miclip("rum").exit_code == 2
    assert miclip("run", "x.yaml", "--worker", "3").exit_code == 2


# ---------------------------------------------------------------- before work


def test_validate_says_valid_or_names_every_mistake(spec: Path) -> None:
    assert "valid  numbers: 1 stage (selftest)" in miclip("validate", spec).stdout
    spec.write_text(SPEC.replace("rows", "rosw") + "variant: [a]\n")
    result = miclip("validate", spec)
    assert result.exit_code == 2 and result.stdout == ""
    assert f"{spec}:3:1  rosw: unknown field; did you mean 'rows'?" in result.stderr
    assert f"{spec}:6:1  variant: unknown field; did you mean 'variants'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_are_json_for_machines(spec: Path) -> None:
    result = miclip("validate", spec, "--set", "rows=-1", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["exit_code"], found["error"]) == (2, 2, "BadSpec")
    assert "--set rows  rows: found -1, expected greater than or equal to 0" in found["message"]


def test_plan_shows_what_is_left_and_what_is_cached(spec: Path) -> None:
    first = json.loads(miclip("plan", spec, "--json").stdout)
    total = {"stages": 2, "cached": 0, "to_do": 2, "shards_left": 8, "flops": 0, "bytes": 2 * 250 * 40}
    assert first["total"].items() >= total.items()
    assert [(s["state"], s["shards"], s["shards_left"]) for s in first["stages"]] == [("to do", 4, 4)] * 2
    run_spec(make_store(str(spec.parent / "lake")))
    second = miclip("plan", spec)
    assert "2 stages: 2 cached, 0 to do" in second.stdout and "0/8" in second.stdout


def test_hours_and_money_are_what_past_runs_took_and_unknown_before_the_first(spec: Path) -> None:
    first = json.loads(miclip("plan", spec, "--json", "--cpu-price", "3").stdout)
    assert {s["cpu_hours"] for s in first["stages"]} == {None} and first["cells"]["selftest"]["money"] is None
    assert (first["total"]["unknown"], first["total"]["cpu_hours"]) == (["selftest"], 0)
    assert "selftest: no past run tells how long it takes" in miclip("plan", spec).stdout

    run_spec(make_store(str(spec.parent / "lake")))
    more = ("plan", spec, "--set", "rows=2500000", "--set", "shard_rows=1000")  # more of the same, and so a new stage
    second = json.loads(miclip(*more, "--json", "--cpu-price", "3").stdout)
    total, cell = second["total"], second["cells"]["selftest"]
    assert total["unknown"] == [] and total["rests_on"]["selftest"] > 0
    assert total["cpu_hours"] == cell["cpu_hours"] > 0 and total["money"] == pytest.approx(3 * total["cpu_hours"])
    text = miclip(*more, "--cpu-price", "3").stdout
    assert "CPU-h" in text and "cost" in text and "busy hours are what past runs in this store took" in text
    assert "cost" not in miclip(*more).stdout


def test_what_is_cached_costs_nothing_more(spec: Path) -> None:
    run_spec(make_store(str(spec.parent / "lake")))
    total = json.loads(miclip("plan", spec, "--json", "--cpu-price", "3").stdout)["total"]
    assert (total["cpu_hours"], total["money"], total["unknown"]) == (0, 0, [])


def test_planning_computes_nothing(spec: Path) -> None:
    miclip("plan", spec)
    assert not (spec.parent / "lake" / "stages").exists() and not (spec.parent / "lake" / "runs").exists()


def test_the_schema_is_valid_json(tmp_path: Path) -> None:
    assert json.loads(miclip("schema").stdout)["title"] == "miclip spec"
    assert miclip("schema", "-o", tmp_path / "s.json").exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text())["discriminator"]["propertyName"] == "kind"


# ---------------------------------------------------------------- work


def test_a_run_publishes_says_where_and_the_same_run_again_does_nothing(spec: Path) -> None:
    first = miclip("run", spec, "--executor", "serial")
    assert first.exit_code == 0, first.output
    folder = spec.parent / "lake" / "tables" / "selftest"
    assert str(folder) in first.stdout and folder.is_dir()
    assert "numbers-00001 done" in first.stdout and "500" in first.stdout
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert len(files) == 6
    second = miclip("run", spec, "--executor", "serial")
    assert "numbers-00002 done  2 stages published, all of them before" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == files


def test_json_of_a_run_is_all_that_is_on_stdout(spec: Path) -> None:
    report = json.loads(miclip("run", spec, "--executor", "serial", "--json").stdout)
    assert (report["run"], report["status"], report["exit_code"]) == ("numbers-00001", "DONE", 0)
    assert report["tables"]["selftest"]["rows"] == 500 and report["failures"] == []


def test_the_spec_is_kept_with_its_overrides_and_retry_uses_it(spec: Path) -> None:
    overrides = ("--set", "rows=60", "--set", "error_shards=[0]")
    failed = miclip("run", spec, "--executor", "serial", *overrides)
    assert failed.exit_code == 1
    assert "ValueError: shard 0 was told to fail" in failed.stderr
    assert "miclip retry numbers-00001" in failed.stderr and "miclip logs numbers-00001 --failed" in failed.stderr
    kept = (spec.parent / "lake/runs/numbers-00001/spec.yaml").read_text()
    assert "rows: 60" in kept and "error_shards" in kept
    again = miclip("retry", "numbers-00001", "--executor", "serial", "--store", spec.parent / "lake")
    assert again.exit_code == 1 and "numbers-00002 failed" in again.stdout


def test_retry_works_where_the_run_worked(spec: Path) -> None:
    lake = spec.parent / "lake"
    assert miclip("run", spec, "--executor", "serial", "--workers", "3", "--set", "error_shards=[0]").exit_code == 1
    again = miclip("retry", "numbers-00001", "--store", lake)
    assert again.exit_code == 1 and "starting Ray" not in again.output
    assert load_options(make_store(str(lake)), "numbers-00002").workers == 3
    miclip("retry", "numbers-00002", "--store", lake, "--workers", "1")
    assert load_options(make_store(str(lake)), "numbers-00003").workers == 1


def test_workers_change_no_digest(spec: Path) -> None:
    one = json.loads(miclip("run", spec, "--executor", "serial", "--workers", "1", "--json").stdout)
    many = json.loads(miclip("run", spec, "--executor", "serial", "--workers", "7", "--json").stdout)
    assert [s["digest"] for s in one["stages"]] == [s["digest"] for s in many["stages"]]


def test_progress_off_a_terminal_is_plain_lines_on_stderr(spec: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "run", str(spec), "--executor", "serial"], capture_output=True, text=True
    )
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert lines[0].startswith("run numbers-00001  store ")
    assert lines[1] == "selftest selftest: 250 rows, 2 stages"
    assert lines[2].startswith("selftest selftest: 2 stages published in ")
    assert len(lines) == 3 and "\x1b" not in result.stderr + result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_cleanly_and_the_same_command_goes_on(spec: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "cluster.cli", "run", str(spec), "--executor", "serial", "--set", "shard_rows=5"]
    slow = subprocess.Popen(
        [*command, "--set", "sleep_ms=400"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    shards = spec.parent / "lake" / "stages"
    deadline = time.monotonic() + 240
    while not list(shards.rglob("*.done.json")):
        assert slow.poll() is None and time.monotonic() < deadline, slow.communicate()
        time.sleep(0.05)
    slow.send_signal(number)
    _, stderr = slow.communicate(timeout=240)
    assert slow.returncode == 128 + number, stderr
    assert "interrupted: stopped" in stderr and "Traceback" not in stderr
    store = make_store(str(spec.parent / "lake"))
    assert load_state(store, "numbers-00001").status == "INTERRUPTED"
    done = {path: path.stat().st_mtime_ns for path in shards.rglob("*.done.json")}
    assert 0 < len(done) < 102  # 50 shards and a merge of each stage
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done


# ---------------------------------------------------------------- one clear sentence before any work

EXTRACT = """\
kind: extract
store: lake
model: "demo:clip-p8"
images: {ref: "folder:images"}
outputs: embeddings
"""


def refused(spec: Path, *options: object) -> tuple[int, str]:
    result = miclip("run", spec, "--executor", "serial", *options)
    assert "Traceback" not in result.output and result.stdout == ""
    assert not (spec.parent / "lake" / "stages").exists(), "nothing may be scheduled"
    assert not (spec.parent / "lake" / "runs").exists(), "no run may begin"
    return result.exit_code, result.stderr


def test_an_unknown_demo_model_is_answered_with_those_there_are(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(EXTRACT)
    code, said = refused(spec, "--set", "model=demo:clip-p9", "--set", "images.ref=world:seed=0,n=4")
    assert code == 2 and "demo:clip-p9: no such demo model; there are demo:clip-p16, demo:clip-p8" in said


def test_a_missing_local_checkpoint_names_its_path(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(EXTRACT)
    code, said = refused(
        spec, "--set", "model=open_clip:ViT-B-32@file:/no/such/weights.pt", "--set", "images.ref=world:seed=0,n=4"
    )
    assert code == 2 and "nothing at /no/such/weights.pt" in said


@pytest.mark.parametrize(("there", "said"), [(True, "no files that end in .jpg"), (False, "is not a file or folder")])
def test_an_empty_or_absent_image_set_is_named(tmp_path: Path, there: bool, said: str) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(EXTRACT)
    if there:
        (tmp_path / "images").mkdir()
    code, text = refused(spec)
    assert code == 2 and said in text and str(tmp_path / "images") in text


def test_gpus_that_are_not_there_are_refused_with_the_field(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("kind: selftest\nstore: lake\nresources: {gpus: 1}\n")
    result = miclip("run", spec, "--executor", "serial")
    assert result.exit_code == 2 and "resources.gpus is 1.0, the serial executor has none" in result.stderr


def test_a_spec_without_a_store_says_how_to_give_one(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("kind: selftest\n")
    code, said = refused(spec)
    assert code == 2 and "--store DIR" in said and "MICLIP_STORE" in said


def test_an_unwritable_store_is_code_3_and_one_sentence(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("kind: selftest\n")
    code, said = refused(spec, "--store", "/proc/no/lake")
    assert code == 3 and said.count("\n") == 1 and "/proc/no/lake" in said


def test_missing_credentials_are_code_3_and_name_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    spec = tmp_path / "s.yaml"
    spec.write_text("kind: selftest\n")
    code, said = refused(spec, "--store", "s3://some-bucket/lake")
    assert code == 3 and "AWS_ACCESS_KEY_ID" in said


def test_a_planted_credential_is_found_nowhere_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = "MARKER7f3a"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", marker)
    monkeypatch.setenv("HF_TOKEN", marker)
    spec = tmp_path / "s.yaml"
    spec.write_text("kind: selftest\nstore: lake\nrows: 20\n")
    outputs = [miclip("run", spec, "--executor", "serial").output]
    spec.write_text(f"kind: selftest\nstore: lake\nsecret: {marker}\n")
    outputs.append(miclip("run", spec, "--executor", "serial").output)
    outputs.append(miclip("run", spec, "--executor", "serial", "--store", f"s3://me:{marker}@bucket/x").output)
    assert marker not in "".join(outputs)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != spec:
            assert marker.encode() not in path.read_bytes(), path


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    result = miclip("--debug", "validate", tmp_path / "no.yaml")
    assert type(result.exception).__name__ == "BadSpec"
    assert miclip("validate", tmp_path / "no.yaml").exit_code == 2


# ---------------------------------------------------------------- looking and reading


def test_status_lists_runs_and_the_stages_of_one(lake: str) -> None:
    assert "numbers-00001" in miclip("status", "--store", lake).stdout
    stages = json.loads(miclip("status", "numbers-00001", "--store", lake, "--json").stdout)["stages"]
    assert [(s["state"], s["shards_done"]) for s in stages] == [("published", 4)] * 2
    missing = miclip("status", "numbers-00007", "--store", lake)
    assert missing.exit_code == 2 and "there are numbers-00001" in missing.stderr


def test_a_cell_that_cannot_be_planned_is_a_failure_of_its_run_like_any_other(tmp_path: Path) -> None:
    store = publish_numbers(tmp_path)
    state, more = load_state(store, "numbers-00001"), "nothing at /m\nthere are others"
    gone = UnplannedCell(cell="acts/m", kind="extract", subject="m", state="failed", error=more)
    save_state(store, state.model_copy(update={"status": "FAILED", "unplanned": (gone,)}))
    assert "2/3" in miclip("status", "--store", tmp_path).stdout
    one = miclip("status", "numbers-00001", "--store", tmp_path).stdout
    assert "acts/m" in one and "cannot be planned: nothing at /m" in one and "--failed; go on" in one
    told = miclip("logs", "numbers-00001", "--failed", "--store", tmp_path).stdout
    assert told == "acts/m  cannot be planned\n  nothing at /m\n  there are others\n\n"
    (row,) = json.loads(miclip("logs", "numbers-00001", "--failed", "--store", tmp_path, "--json").stdout)
    assert row == {"cell": "acts/m", "stage": None, "message": more}
    assert miclip("logs", "numbers-00001", "--failed", "--stage", "acts/m", "--store", tmp_path).stdout == told
    other = miclip("logs", "numbers-00001", "--failed", "--stage", "selftest", "--store", tmp_path).stdout
    assert "no shard of this run" in other
    assert miclip("gc", "--store", tmp_path).exit_code == 0


def test_a_run_in_which_nothing_failed_is_not_said_to_have_tracebacks(tmp_path: Path) -> None:
    """As one that was refused before any work."""
    store = publish_numbers(tmp_path)
    state = load_state(store, "numbers-00001")
    left = tuple(stage.model_copy(update={"state": "to do"}) for stage in state.stages)
    save_state(store, state.model_copy(update={"status": "STOPPED", "message": "no GPU", "stages": left}))
    one = miclip("status", "numbers-00001", "--store", tmp_path).stdout
    assert "go on: miclip retry numbers-00001" in one and "--failed" not in one


def test_what_is_cached_is_said_so_for_machines_and_people(spec: Path) -> None:
    for state, words in (("published", "2 stages published, "), ("cached", "2 stages published, all of them before, ")):
        ran = miclip("run", spec, "--executor", "serial")
        assert ran.exit_code == 0 and words in ran.stdout
        run = list_runs(make_store(str(spec.parent / "lake")))[-1]
        stages = json.loads(miclip("status", run, "--store", spec.parent / "lake", "--json").stdout)["stages"]
        assert [stage["state"] for stage in stages] == [state] * 2


def test_status_in_the_middle_of_a_stage_tells_shards_and_the_time_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its driver is gone: what was done by then, and the seconds until its last sign of life."""
    monkeypatch.setattr(pipeline, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "SAVE_SHARE", 0.0)
    store = make_store(str(tmp_path))
    file = parse_spec(SPEC, "test.yaml")
    run = new_run(store, file.pipeline.name, file.text)
    seen: list[str] = []

    def look(event: dict[str, object]) -> None:
        if event["event"] != "shard_done":
            return
        for age, word in ((0.0, "RUNNING"), (4000.0, "LOST")):
            sign = time.time() - age
            store.replace(alive_key(run), json.dumps({"time": sign}).encode())
            save_state(store, load_state(store, run).model_copy(update={"began": sign - 61.0}))
            for words in (("status", run), ("status",)):
                shown = miclip(*words, "--store", tmp_path).stdout
                assert word in shown and "1m01s" in shown
                seen.append(re.search(r"\S+ of 8 shards done", shown)[0])

    PipelineRun(file.pipeline, run, store, SerialExecutor(store.uri), EventLog(look), StopFlag()).run()
    assert seen == [f"{done} of 8 shards done" for done in (0, 2, 4, 6) for _ in range(4)]


def test_status_shows_the_newest_runs_of_every_pipeline_and_says_how_many_are_older(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    for name, number in [("aa", 1), ("zz", 1), ("zz", 2), ("zz", 3)]:
        run = f"{name}-{number:05d}"
        assert new_run(store, name, "kind: selftest") == run
        save_state(store, RunState(run=run, pipeline=name, number=number, status="DONE"))
    shown = miclip("status", "--store", tmp_path, "--newest", 2).stdout
    assert [run for run in ("aa-00001", "zz-00001", "zz-00002", "zz-00003") if run in shown] == [
        "aa-00001",
        "zz-00002",
        "zz-00003",
    ]
    assert "and 1 older: --newest N, --pipeline NAME" in shown
    one = json.loads(miclip("status", "--store", tmp_path, "--pipeline", "zz", "--json").stdout)
    assert [state["run"] for state in one] == ["zz-00001", "zz-00002", "zz-00003"]


def test_logs_show_events_in_order_and_filter_by_shard(lake: str) -> None:
    events = [
        json.loads(line) for line in miclip("logs", "numbers-00001", "--store", lake, "--json").stdout.splitlines()
    ]
    assert [e["event"] for e in events] == ["planned", *["shard_done"] * 4, "published", "published", "finished"]
    shard = miclip("logs", "numbers-00001", "--store", lake, "--shard", "2").stdout.splitlines()
    assert len(shard) == 1 and "shard=2" in shard[0]
    assert miclip("logs", "numbers-00001", "--store", lake, "-f").exit_code == 0


def test_logs_failed_shows_the_traceback_of_each_missing_shard_once(tmp_path: Path) -> None:
    run_spec(make_store(str(tmp_path)), SPEC, "error_shards=[1]")
    text = miclip("logs", "numbers-00001", "--failed", "--store", tmp_path).stdout
    assert text.count("ValueError: shard 1 was told to fail") == 1 and "Traceback" in text


def test_sql_prints_tables_json_csv_and_parquet(lake: str, tmp_path: Path) -> None:
    query = "SELECT row, vector FROM selftest WHERE row < 2 ORDER BY row, stage"
    assert "row" in miclip("sql", query, "--store", lake).stdout
    as_json = json.loads(miclip("sql", query, "--store", lake, "--json").stdout)
    assert [row["row"] for row in as_json] == [0, 0, 1, 1] and len(as_json[0]["vector"]) == 4
    as_csv = list(csv.DictReader(io.StringIO(miclip("sql", query, "--store", lake, "--csv").stdout)))
    assert [json.loads(row["vector"]) for row in as_csv] == [row["vector"] for row in as_json]
    assert miclip("sql", query, "--store", lake, "--parquet", tmp_path / "a.parquet").exit_code == 0
    assert pq.read_table(tmp_path / "a.parquet")["vector"].to_pylist() == [row["vector"] for row in as_json]


def test_long_answers_are_cut_for_people_and_say_so(lake: str) -> None:
    assert "100 of 500 rows" in miclip("sql", "SELECT row FROM selftest", "--store", lake).stdout


def test_a_wrong_query_is_code_2_with_the_columns(lake: str) -> None:
    result = miclip("sql", "SELECT nothing FROM selftest", "--store", lake)
    assert result.exit_code == 2 and "columns of selftest: stage, row, value, vector" in result.stderr


def test_the_store_may_come_from_the_environment(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICLIP_STORE", lake)
    assert json.loads(miclip("sql", "SELECT count(*) AS n FROM selftest", "--json").stdout) == [{"n": 500}]


def test_a_store_that_is_not_there_is_code_3(tmp_path: Path) -> None:
    result = miclip("sql", "SELECT 1", "--store", tmp_path / "none")
    assert result.exit_code == 3 and "is not there" in result.stderr


def test_tables_documents_every_column(lake: str) -> None:
    assert "500" in miclip("tables", "--store", lake).stdout
    columns = json.loads(miclip("tables", "top_images", "--json").stdout)["columns"]
    assert {
        "name": "rank",
        "type": "int32",
        "null": False,
        "meaning": "0 is the strongest; ties by image_id",
        "unit": "",
    } in columns
    assert miclip("tables", "nothing").exit_code == 2


def test_views_are_printed_for_each_engine(lake: str) -> None:
    for engine in ("duckdb", "spark", "trino", "polars", "datafusion"):
        result = miclip("views", "--engine", engine, "--store", lake)
        assert result.exit_code == 0 and "selftest" in result.stdout


def test_verify_is_code_1_and_names_the_damaged_object(tmp_path: Path) -> None:
    publish_numbers(tmp_path)
    assert "8 objects of 2 stages" in miclip("verify", "--store", tmp_path).stdout
    part = sorted((tmp_path / "tables" / "selftest").rglob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-4])
    result = miclip("verify", "--store", tmp_path)
    assert result.exit_code == 1 and str(part.relative_to(tmp_path)) in result.stdout and "1 damaged" in result.stdout


def test_verify_lists_files_that_no_stage_names_without_calling_them_damage(tmp_path: Path) -> None:
    publish_numbers(tmp_path)
    part = sorted((tmp_path / "tables" / "selftest").rglob("*.parquet"))[0]
    part.with_suffix(".a1.parquet").write_bytes(part.read_bytes())
    result = miclip("verify", "--store", tmp_path)
    assert result.exit_code == 0 and "whole" in result.stdout
    assert f"unnamed  {part.with_suffix('.a1.parquet').relative_to(tmp_path)}" in result.stdout


def test_a_run_whose_driver_was_killed_is_lost_and_not_running(tmp_path: Path) -> None:
    store = publish_numbers(tmp_path)
    state = load_state(store, "numbers-00001").model_copy(update={"status": "RUNNING"})
    save_state(store, state)
    for age, word in ((10, "RUNNING"), (4000, "LOST")):
        store.replace(alive_key("numbers-00001"), json.dumps({"time": time.time() - age}).encode())
        assert json.loads(miclip("status", "--store", tmp_path, "--json").stdout)[0]["status"] == word
        (row,) = [line for line in miclip("status", "--store", tmp_path).stdout.splitlines() if word in line]
        assert f"last sign of life: {'1' if age == 10 else '1h0'}" in row  # which is what the word is guessed from
        one = miclip("status", "numbers-00001", "--store", tmp_path).stdout
        assert f"numbers-00001 {word}" in one and "ago, if its clock and ours agree" in one
        # for a driver whose clock is behind may live, and `watch` waits for a sign of it
        assert ("miclip watch numbers-00001" in one) == (word == "LOST") and "miclip retry" not in one


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_looking_at_a_spec_writes_nothing(tmp_path: Path, verb: str) -> None:
    """Not even the folder of a store whose name was mistyped."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    spec = tmp_path / "s.yaml"
    spec.write_text(EXTRACT)
    result = miclip(verb, spec)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "s.yaml"]


def test_a_trial_says_that_the_whole_image_set_is_indexed(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(EXTRACT.replace("folder:images", "world:seed=0,n=6"))
    said = "the image set is indexed in whole first"
    assert said in miclip("plan", spec, "--limit", 2).stdout and said not in miclip("plan", spec).stdout


def test_models_lists_the_demo_zoo_and_how_to_name_others() -> None:
    text = miclip("models").stdout
    assert "demo:clip-p8" in text and "open_clip:ARCH/TAG" in text and "/random(SEED)" in text


def test_doctor_probes_the_store_by_writing(tmp_path: Path) -> None:
    found = json.loads(miclip("doctor", "--store", tmp_path, "--json").stdout)["findings"]
    checks = {f["what"]: f["ok"] for f in found}
    assert checks["store: create-only race"] is True and checks["torchvision import"] is True
    assert "python" in checks and "ray" in checks
