"""Pages that are renewed, in a folder and in a bucket: what is written last, what goes, what is not ours, and after a night."""

from __future__ import annotations

import errno
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.catalog import open_catalog
from cluster.cli.app import app
from cluster.explore.pages import MARKER, check_place, renew_pages, write_pages
from cluster.explore.place import make_place
from cluster.nightly import conclude
from cluster.stores.base import Store, make_store
from schemas.errors import StoreMissing, UsageError
from tests.faultproxy import FaultProxy
from tests.made_up_explorer import explorer_stage, publish_units
from tests.made_up_saes import save_run
from tests.paces import fast
from tests.published import run_spec
from tests.servers import plain_client

MODEL = "demo:clip-p8"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One model with 20 units."""
    store = make_store(str(tmp_path / "lake"))
    night(store, 1)
    return store


def night(store: Store, number: int) -> None:
    """A run whose units are of another site than the night before."""
    stage = publish_units(store, explorer_stage(MODEL, f"resid_post.{number}@patch"), 20)
    save_run(store, f"pages-{number:05}", [stage])


def parts(pages: Path) -> set[str]:
    return {path.name for path in (pages / "data").iterdir()}


def named(pages: Path) -> set[str]:
    (units,) = json.loads((pages / "site.json").read_text())["sets"]
    return {Path(part["url"]).name for part in units["features"] + units["index"]}


# ---------------------------------------------------------------- a bucket


def test_pages_in_a_bucket_have_their_types_and_can_be_read_by_a_browser(
    store: Store, moto_bucket: str, moto_url: str
) -> None:
    to = f"s3://{moto_bucket}/lab/pages"
    done = CliRunner().invoke(app, ["explore", "--store", store.uri, "--to", to, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["folder"] == to
    client = plain_client(moto_url)
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=moto_bucket)["Contents"]]
    told = {key.removeprefix("lab/pages/"): client.head_object(Bucket=moto_bucket, Key=key) for key in keys}
    types = {Path(name).suffix: head["ContentType"].partition(";")[0] for name, head in told.items()}
    assert types == {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json",
                     ".txt": "text/plain", ".md": "text/plain", ".parquet": "application/octet-stream"}  # fmt: skip
    kept = {name: "immutable" in head["CacheControl"] for name, head in told.items()}
    assert all(immutable == name.endswith(".parquet") for name, immutable in kept.items())
    (units,) = json.loads(make_place(to).read("site.json") or "")["sets"]
    part = units["features"][0]
    request = urllib.request.Request(
        f"{moto_url}/{moto_bucket}/lab/pages/{part['url']}", headers={"Range": "bytes=0-3"}
    )
    client.put_object_acl(Bucket=moto_bucket, Key=f"lab/pages/{part['url']}", ACL="public-read")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert (answer.status, answer.read()) == (206, b"PAR1")


def test_a_bucket_has_the_same_files_as_a_folder_and_its_index_comes_last(
    store: Store, moto_bucket: str, moto_proxy: FaultProxy, s3_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", moto_proxy.url)
    to = f"s3://{moto_bucket}/pages"
    with moto_proxy.breaking() as proxy:
        first = renew_pages(store, to)
        written = [path.split("?")[0].partition("/pages/")[2] for method, path, _ in proxy.log if method == "PUT"]
    assert written[0] == MARKER and written[-2:] == ["site.json", "index.html"]
    assert {Path(name).suffix for name in written[1:3]} == {".parquet"}
    renew_pages(store, str(tmp_path / "pages"))
    folder, bucket = make_place(str(tmp_path / "pages")), make_place(to)
    assert folder.sizes() == bucket.sizes() and folder.read("site.json") == bucket.read("site.json")
    second = renew_pages(store, to)
    assert first.copied == second.kept > 0 and second.copied == 0


def test_a_bucket_that_is_not_there_is_said_before_anything_else(store: Store, moto_bucket: str) -> None:
    with pytest.raises(StoreMissing, match="no such bucket"):
        renew_pages(store, "s3://bucket-of-nobody/pages")
    with pytest.raises(UsageError, match=r"folder or s3://"):
        renew_pages(store, "https://example.org/pages")


def test_open_serves_folders_only(store: Store) -> None:
    done = CliRunner().invoke(app, ["explore", "--store", store.uri, "--to", "s3://lab/pages", "--open"])
    assert done.exit_code == 2 and "--open serves a folder" in done.stderr


# ---------------------------------------------------------------- what is not ours


@pytest.mark.parametrize("name", ["index.html", "notes.txt", "photos/one.jpg"])
def test_a_folder_with_files_of_somebody_else_is_refused_and_left_alone(
    store: Store, tmp_path: Path, name: str
) -> None:
    theirs = tmp_path / "pages" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(UsageError, match=f"such as {name}; name a place that is empty"):
        renew_pages(store, str(tmp_path / "pages"))
    assert [path.read_text() for path in (tmp_path / "pages").rglob("*") if path.is_file()] == ["mine"]


def test_the_store_itself_is_no_place_for_pages(store: Store, moto_bucket: str) -> None:
    with pytest.raises(UsageError, match="has not made"):
        renew_pages(store, store.uri)
    make_store(f"s3://{moto_bucket}/lake").create("runs/zoo-00001/spec.yaml", b"")
    with pytest.raises(UsageError, match="has not made"):
        renew_pages(store, f"s3://{moto_bucket}/lake")


def test_hidden_files_and_what_somebody_adds_later_stay(store: Store, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    (pages / ".git").mkdir(parents=True)
    (pages / ".git" / "HEAD").write_text("ref")
    renew_pages(store, str(pages))
    (pages / "CNAME").write_text("zoo.example.org")
    (pages / "data" / "notes.parquet").write_text("mine")
    for number in range(2, 7):
        night(store, number)
        renew_pages(store, str(pages))
    assert (pages / ".git" / "HEAD").is_file() and (pages / "CNAME").is_file()
    assert "notes.parquet" in parts(pages)


# ---------------------------------------------------------------- what cannot be read


def test_a_folder_that_cannot_be_used_is_named_whatever_is_asked_of_it(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    place = make_place(str(circle))
    asked = (place.sizes, lambda: place.read("a"), lambda: place.write("a", b""), lambda: place.remove("a"))
    for ask in asked:
        with pytest.raises(UsageError, match=f"pages at {circle}: .* name a folder that can be read and written"):
            ask()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: Not a directory; name a folder"):
        make_place(str(tmp_path / "file")).sizes()


def test_a_folder_that_cannot_be_listed_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        check_place(str(tmp_path))


def test_what_another_renewal_removes_meanwhile_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, walk = make_place(str(tmp_path)), os.walk
    for name in ("data/a", "here", "gone"):
        place.write(name, b"1234")

    def slow_walk(*words: Any, **options: Any) -> Iterator[Any]:
        for found in walk(*words, **options):
            (tmp_path / "gone").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "data", ignore_errors=True)
            yield found

    monkeypatch.setattr(os, "walk", slow_walk)
    assert place.sizes() == {"here": 4}


@pytest.mark.parametrize("name", [MARKER, "site.json"])
def test_files_that_were_cut_are_written_anew(store: Store, tmp_path: Path, name: str) -> None:
    pages = tmp_path / "pages"
    renew_pages(store, str(pages))
    whole = (pages / name).read_bytes()
    for cut in (whole[:-3], whole[:9] + b"\xff", b""):
        (pages / name).write_bytes(cut)
        renew_pages(store, str(pages))
        json.loads((pages / name).read_text())


# ---------------------------------------------------------------- what goes


def test_a_part_stays_for_two_renewals_after_the_last_pages_that_named_it(store: Store, tmp_path: Path) -> None:
    pages, seen, gone = tmp_path / "pages", [], []
    for number in range(1, 6):
        night(store, number)
        gone.append(renew_pages(store, str(pages)).removed)
        seen.append(named(pages))
    assert gone == [0, 0, 0, 2, 2]
    assert parts(pages) == seen[2] | seen[3] | seen[4]


def test_renewals_that_change_no_part_let_nothing_go(store: Store, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    renew_pages(store, str(pages))
    first = named(pages)
    night(store, 2)
    for _ in range(5):
        assert renew_pages(store, str(pages)).removed == 0
    assert first < parts(pages)


def test_a_part_that_is_named_again_stays(store: Store, tmp_path: Path) -> None:
    pages, catalog = tmp_path / "pages", open_catalog(store)  # of the first night
    write_pages(catalog, pages)
    first = named(pages)
    for number in (2, 3):
        night(store, number)
        renew_pages(store, str(pages))
    write_pages(catalog, pages)
    night(store, 4)
    renew_pages(store, str(pages))
    assert first < parts(pages), "it was left out by one renewal since then"


def test_parts_on_their_way_into_pages_of_another_are_not_taken_for_old_ones(store: Store, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    renew_pages(store, str(pages))
    coming = pages / "data" / f"explorer_index-{'a' * 20}.parquet"
    coming.write_bytes(b"PAR1")
    for number in (2, 3):
        night(store, number)
        renew_pages(store, str(pages))
    assert coming.exists()


@pytest.mark.slow
def test_old_parts_of_a_bucket_go_too(store: Store, moto_bucket: str) -> None:
    to = f"s3://{moto_bucket}/pages"
    for number in range(1, 5):
        night(store, number)
        removed = renew_pages(store, to).removed
    assert removed == 2
    assert sum(name.endswith(".parquet") for name in make_place(to).sizes()) == 6


# ---------------------------------------------------------------- after a night

SPEC = "kind: selftest\nname: night\nrows: 30\nshard_rows: 20\n"


def test_a_night_renews_pages_that_tell_of_it(store: Store, tmp_path: Path) -> None:
    run = run_spec(store, SPEC).state.run
    evening = conclude(store, run, None, fast(), str(tmp_path / "pages"))
    assert evening.problems == [] and evening.pages is not None and evening.pages.units == 20
    told = {one["run"]: one for one in json.loads((tmp_path / "pages" / "site.json").read_text())["runs"]}
    assert told[run]["changes"]["subjects"][0]["change"] == "new"


def test_pages_that_cannot_be_renewed_are_a_problem_of_a_night_that_went_well(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    run = run_spec(store, SPEC).state.run
    evening = conclude(store, run, 1, fast(), str(tmp_path / "pages"))
    (problem,) = evening.problems
    assert problem.startswith("pages were not renewed: UnknownTable: no stage in scope has published explorer_features")
    assert evening.changes is not None and evening.swept is not None


def test_a_place_that_is_not_ours_is_refused_before_the_night_begins(store: Store, tmp_path: Path) -> None:
    spec, pages = tmp_path / "night.yaml", tmp_path / "pages"
    spec.write_text(SPEC)
    pages.mkdir()
    (pages / "notes.txt").write_text("mine")
    words = ["nightly", str(spec), "--store", store.uri, "--executor", "serial", "--pages"]
    refused = CliRunner().invoke(app, [*words, str(pages)])
    assert refused.exit_code == 2 and "notes.txt" in refused.stderr
    assert not list((tmp_path / "lake" / "runs").glob("night-*"))
    done = CliRunner().invoke(app, [*words, str(tmp_path / "new")])
    assert done.exit_code == 0 and "pages renewed: 20 units" in done.stdout and (tmp_path / "new/index.html").is_file()
