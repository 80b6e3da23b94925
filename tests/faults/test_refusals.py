"""What is refused before any work, with one clear sentence and nothing written; and secrets, which are written nowhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.stores.base import make_store
from schemas import layout
from schemas.errors import Infeasible, UnsafeName
from schemas.plans import Resources, Shard, StageSpec
from schemas.selftest_specs import SelftestSpec
from tests.faultproxy import Rule
from tests.faults import victim
from tests.faults.conftest import Place
from tests.lakes import Lake, export, make_extract
from tests.made_up_explorer import explorer_stage, publish_units
from tests.made_up_saes import save_run

GOOD = """\
kind: pipeline
name: zoo
images: {ref: "folder:/data/photos"}
matrix: {model: ["demo:clip-rn"]}
stages:
  acts:
    kind: extract
    outputs: [embeddings]
"""


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command keeps its logs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


# -- typing mistakes


@pytest.mark.parametrize(
    ("right", "wrong", "place", "hint"),
    [
        ("outputs", "ouptuts", "spec.yaml:8:5", "did you mean 'outputs'"),
        ("kind: extract", "kind: extrakt", "spec.yaml:7:5", "did you mean 'extract'"),
        ("[embeddings]", "[embeddings]\n    batch_size: lots", "spec.yaml:9:5", "expected a whole number"),
        ("[embeddings]", "[embeddings]\n    shard_rows: -1", "spec.yaml:9:5", "expected greater than or equal to 1"),
        ("[embeddings]", "[activations]", "spec.yaml:6:3", "need sites"),
        ("matrix", "matirx", "spec.yaml:4:1", "did you mean 'matrix'"),
    ],
)
def test_a_mistake_in_a_spec_is_code_2_with_its_line_and_schedules_nothing(
    right: str, wrong: str, place: str, hint: str, tmp_path: Path, own_state: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD.replace(right, wrong, 1))
    result = miclip("run", path, "--store", tmp_path / "lake")
    assert result.exit_code == 2 and result.stdout == ""
    assert place in result.stderr and hint in result.stderr, result.stderr
    assert not (tmp_path / "lake").exists() and not own_state.exists()


# -- names that would leave the store


BAD_NAMES = ["../../x", "/etc/x", "a/../../x", "..", "x\0y", "x\ny", ".hidden", "a\\..\\x"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_would_leave_the_store_is_refused_wherever_a_spec_may_hold_one(
    name: str, tmp_path: Path, own_state: Path
) -> None:
    lines = [
        GOOD.replace("name: zoo", f"name: {json.dumps(name)}"),
        GOOD.replace("  acts:", f"  {json.dumps(name)}:"),
        GOOD.replace("demo:clip-rn", json.dumps(f"demo:{name}")[1:-1]),
        GOOD.replace("demo:clip-rn", json.dumps(f"open_clip:x@file:/data/../{name}")[1:-1]),
        f"kind: selftest\nsubject: {json.dumps(name)}\n",
        f"kind: selftest\nvariants: [{json.dumps(name)}]\n",
    ]
    path = tmp_path / "spec.yaml"
    for text in lines:
        path.write_text(text)
        result = miclip("run", path, "--store", tmp_path / "lake", "--executor", "serial")
        assert result.exit_code == 2, (text, result.output)
        assert "spec.yaml" in result.stderr and "Traceback" not in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spec.yaml"]


@pytest.mark.parametrize("name", ["../../x", "..", "/etc/passwd", "x/../../y", "x\ny"])
@pytest.mark.parametrize("verb", [["retry"], ["status"], ["logs"], ["sql", "SELECT 1", "--run"], ["verify", "--run"]])
def test_a_run_that_is_a_path_is_no_run(verb: list[str], name: str, tmp_path: Path, own_state: Path) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "state.json").write_text("{}")
    result = miclip(*verb, name, "--store", tmp_path / "lake")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and not list((tmp_path / "lake").iterdir())


def test_refs_become_keys_that_stay_below_their_table() -> None:
    """Whatever a model or image set is called, its slug has no separator and no leading dot."""
    for subject in (*BAD_NAMES, "file:/../../..", "日本語", "a" * 500, "~/x", "C:\\x"):
        stage = StageSpec(kind="k", method=1, subject=subject, output="o", params={})
        key = layout.part_key("images", stage, Shard(number=0, round=0, start=0, stop=1), 0)
        parts = key.split("/")
        assert len(parts) == 5 and parts[:2] == ["tables", "images"], key
        assert not any(part.startswith(".") or len(part) > 200 for part in parts)


def test_an_artifact_or_image_named_like_a_path_is_refused_before_any_write(place: Place, tmp_path: Path) -> None:
    store = make_store(place.store("lake"))
    for name in BAD_NAMES:
        with pytest.raises(UnsafeName):
            layout.artifact_key("d" * 20, 0, name)
        with pytest.raises(UnsafeName):
            store.create(f"tables/{name}/part.parquet", b"x")
        with pytest.raises(UnsafeName):
            store.get(f"tables/{name}/part.parquet")
    assert store.list("") == []


def test_a_store_whose_folder_was_turned_into_a_link_outwards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "tables").symlink_to(tmp_path / "outside")
    report = Lake(tmp_path / "lake").run(SelftestSpec(rows=4))
    assert report.exit_code == 1 and "leads out of the store; remove that link" in report.failures[0]
    assert not list((tmp_path / "outside").iterdir())


# -- too few resources


def test_gpus_that_are_not_there_are_refused_before_models_and_images_are_looked_at(
    place: Place, tmp_path: Path
) -> None:
    world = export(tmp_path / "world", 8)
    lake = Lake(place.store("lake"))
    spec = make_extract(
        world, ("demo:clip-rn",), sites=[], outputs=["embeddings"], resources=Resources(gpus=2).model_dump()
    )
    with pytest.raises(Infeasible, match=r"acts/demo:clip-rn: resources\.gpus is 2\.0, the serial executor has none"):
        lake.run(spec)
    assert not [key for key in lake.store.list("") if key.startswith(("tables", "stages"))]


@pytest.mark.slow
def test_gpus_that_the_cluster_lacks_are_code_2_with_both_numbers_and_nothing_is_computed(
    tmp_path: Path, own_state: Path
) -> None:
    world = export(tmp_path / "world", 8)
    path = tmp_path / "spec.yaml"
    path.write_text(
        GOOD.replace("/data/photos", f"{world}/images").replace(
            "[embeddings]", "[embeddings]\n    resources: {gpus: 2}"
        )
    )
    command = [sys.executable, "-m", "cluster.cli", "run", str(path), "--store", str(tmp_path / "lake"), "--cpus", "1"]
    done = subprocess.run(command, cwd=victim.ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2, done.stderr
    assert "resources.gpus 2 asked for each worker, the largest machine of the cluster has 0" in done.stderr
    assert not (tmp_path / "lake" / "stages").exists()


# -- secrets

SECRET = "PLANTED9c1e"
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-key",
    "AWS_SESSION_TOKEN": f"{SECRET}-session",
    "HF_TOKEN": f"hf_{SECRET}",
    "MY_DATABASE_PASSWORD": SECRET,
}


def files_with_secret(*folders: Path) -> list[Path]:
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in found if SECRET.encode() in path.read_bytes()]


def objects_with_secret(uri: str) -> list[str]:
    store = make_store(uri)
    return [key for key in store.list("") if SECRET.encode() in store.get(key)]


def write_spec(path: Path) -> Path:
    """Some shards fail with tracebacks, which are kept."""
    path.write_text("kind: selftest\nname: numbers\nrows: 40\nshard_rows: 10\nvariants: [a, b]\nerror_shards: [2]\n")
    return path


def run_command(*words: str, cwd: Path = victim.ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500)


def test_a_secret_of_the_environment_is_in_no_object_no_log_and_no_message(
    bucket: Place, tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing run, a refused one and a store that is away, all with tracebacks and all with secrets around."""
    assert bucket.proxy is not None
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    spec = write_spec(tmp_path / "spec.yaml")
    store = bucket.store("lake")
    run = ("run", str(spec), "--store", store, "--executor", "serial")
    failed = run_command(*run)
    assert failed.returncode == 1 and "told to fail" in failed.stderr
    logs = run_command("logs", "numbers-00001", "--failed", "--store", store)
    assert "Traceback" in logs.stdout
    with bucket.proxy.breaking(Rule("status", times=1e9, status=403, code="SignatureDoesNotMatch")):
        denied = run_command("--debug", *run)
    assert denied.returncode != 0 and "SignatureDoesNotMatch" in denied.stderr
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "2")
    with bucket.proxy.breaking(Rule("reset", times=1e9)):
        away = run_command("--debug", *run)
    assert away.returncode != 0 and "no usable answer" in away.stderr
    said = "".join(r.stdout + r.stderr for r in (failed, logs, denied, away))
    assert SECRET not in said
    assert objects_with_secret(store) == [] and len(make_store(store).list("")) > 10
    assert files_with_secret(tmp_path) == [] and list(own_state.rglob("*.log"))


@pytest.mark.slow
def test_a_secret_of_the_environment_is_on_no_page_in_no_figure_and_told_to_nobody_after_a_night(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that fails and cannot tell its webhook, and every page that is made of its store."""
    for name, value in {**PLANTED, "MICLIP_WEBHOOK": f"http://127.0.0.1:1/{SECRET}"}.items():
        monkeypatch.setenv(name, value)
    uri, pages = str(tmp_path / "lake"), tmp_path / "pages"
    night = run_command(
        "nightly", str(write_spec(tmp_path / "spec.yaml")), "--store", uri, "--executor", "serial", "--keep-runs", "1"
    )
    assert night.returncode == 1 and "the webhook at 127.0.0.1 was not told" in " ".join(night.stderr.split())
    store = make_store(uri)
    save_run(store, "units-00001", [publish_units(store, explorer_stage("demo:clip-p8"), 20)])
    made = [
        run_command("report", "numbers-00001", "--store", uri, "--to", str(tmp_path / "report.html")),
        run_command("explore", "--store", uri, "--to", str(pages)),
        run_command("metrics", "--store", uri, "--to", str(tmp_path / "figures.prom")),
        run_command("drift", "numbers-00001", "--against", "numbers-00001", "--store", uri),
    ]
    assert [r.returncode for r in made] == [0, 0, 0, 0], [r.stderr for r in made]
    assert (tmp_path / "report.html").stat().st_size > 10_000 and (pages / "site.json").exists()
    assert SECRET not in "".join(r.stdout + r.stderr for r in (night, *made))
    assert files_with_secret(tmp_path) == [] and list(own_state.rglob("*.log"))


@pytest.mark.parametrize("field", ["aws_secret_access_key", "password", "hf_token", "api_key"])
def test_a_secret_in_a_spec_is_refused_unrepeated_and_kept_nowhere(field: str, tmp_path: Path, own_state: Path) -> None:
    path = tmp_path / "secrets" / "spec.yaml"
    path.parent.mkdir()
    path.write_text(f"kind: selftest\n{field}: {SECRET}\n")
    store = str(tmp_path / "lake")
    for words in (["run", path, "--store", store], ["run", path, "--store", f"s3://user:{SECRET}@bucket/x"]):
        result = miclip(*words)
        assert result.exit_code == 2 and SECRET not in result.output
    path.write_text("kind: selftest\n")
    result = miclip("run", path, "--store", store, "--set", f"{field}={SECRET}")
    assert result.exit_code == 2 and SECRET not in result.output
    assert not (tmp_path / "lake").exists() and not files_with_secret(tmp_path)


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray keeps sockets here, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_secret_of_the_environment_is_in_no_log_of_ray_either(
    bucket: Place, tmp_path: Path, own_state: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    store = bucket.store("lake")
    failed = run_command("run", str(write_spec(tmp_path / "spec.yaml")), "--store", store, "--cpus", "2")
    assert failed.returncode == 1 and "told to fail" in failed.stderr, failed.stderr
    assert SECRET not in failed.stdout + failed.stderr
    logs = list(ray_folder.rglob("*.log"))
    assert len(logs) > 3, list(ray_folder.rglob("*"))
    assert files_with_secret(ray_folder, tmp_path) == [] and objects_with_secret(store) == []
    assert os.environ["HF_TOKEN"] == f"hf_{SECRET}"
