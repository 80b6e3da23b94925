"""The folder of the explorer: what site.json says, which files there are, renewing it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.catalog import Scope, open_catalog
from cluster.changes import Change, Changes, save_changes
from cluster.explore.pages import write_pages
from cluster.explore.site import make_site
from cluster.runs import UnplannedCell, load_state, save_state
from cluster.stores.base import Store, make_store
from schemas.errors import DamagedPart, UnknownTable, UsageError
from schemas.layout import alive_key
from tests.made_up_explorer import SAE, explorer_stage, publish_units
from tests.made_up_saes import save_run
from tests.published import publish_numbers

MODEL, OTHER = "demo:clip-p8", "demo:siglip-p8"
UNITS = 700


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """700 features of one model in two parts, and 20 neurons of another."""
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    stages = [
        publish_units(store, explorer_stage(MODEL), UNITS),
        publish_units(store, explorer_stage(OTHER, "mlp_act.3@patch", None, has_map=False), 20),
    ]
    save_run(store, "pages-00001", stages)
    change = Change(subject=OTHER, change="new", cells=("pages",), why=("it was not there",))
    save_changes(store, Changes(run="pages-00001", before="pages-00000", unchanged=1, subjects=(change,)))
    return store


def write(store: Store, to: Path, **options: Any) -> dict[str, Any]:
    write_pages(open_catalog(store), to, **options)
    return json.loads((to / "site.json").read_text())


def test_sets_of_units_are_told_with_their_parts_in_order(store: Store, tmp_path: Path) -> None:
    site = write(store, tmp_path)
    assert [(s["model"], s["kind"], s["units"], s["sae"], s["map"]) for s in site["sets"]] == [
        (MODEL, "features", UNITS, f"sae:{SAE}", True),
        (OTHER, "neurons", 20, None, False),
    ]
    first = site["sets"][0]
    assert [part["rows"] for part in first["features"]] == [512, UNITS - 512]
    rows = [unit for part in first["features"] for unit in pq.read_table(tmp_path / part["url"])["unit"].to_pylist()]
    assert rows == list(range(UNITS))
    assert all((tmp_path / part["url"]).stat().st_size == part["bytes"] for part in first["features"])
    (index,) = first["index"]
    assert pq.read_table(tmp_path / index["url"])["unit"].to_pylist() == list(range(UNITS))


def test_a_set_keeps_its_address_when_what_else_its_stage_read_changes(store: Store, tmp_path: Path) -> None:
    ids = {s["id"]: s["stage"] for s in write(store, tmp_path / "pages")["sets"]}
    assert list(ids) == [f"{MODEL}/resid_post.3@patch/{SAE[:12]}", f"{OTHER}/mlp_act.3@patch/neurons"]
    changed = make_store(str(tmp_path / "lake"))
    stages = [explorer_stage(MODEL, shared="s"), explorer_stage(OTHER, "mlp_act.3@patch", None, False, shared="s")]
    save_run(changed, "pages-00001", [publish_units(changed, stage, 2) for stage in stages])
    again = {s["id"]: s["stage"] for s in write(changed, tmp_path / "again")["sets"]}
    assert list(again) == list(ids) and set(again.values()).isdisjoint(ids.values())


def test_of_two_sets_of_the_same_units_the_later_is_told_apart_night_after_night(tmp_path: Path) -> None:
    store, units = make_store(str(tmp_path / "lake")), f"{MODEL}/resid_post.3@patch/{SAE[:12]}"
    first, other = units, f"{units}/trial/explorer/{MODEL}/f"
    by_night = []
    for night in (1, 2):
        for pipeline in ("pages", "trial"):
            stage = publish_units(store, explorer_stage(MODEL, shared=f"{pipeline} {night}"), 2)
            save_run(store, f"{pipeline}-{night:05}", [stage])
        by_night.append({s["id"]: s["stage"] for s in make_site(open_catalog(store), lambda part: part.key)["sets"]})
    assert [set(ids) for ids in by_night] == [{first, other}] * 2
    everything = make_site(open_catalog(store, Scope(all=True)), lambda part: part.key)["sets"]
    older = {f"{units}/{stage[:12]}": stage for stage in by_night[0].values()}
    assert {s["id"]: s["stage"] for s in everything} == {**by_night[1], **older}


def test_row_groups_are_small_and_a_footer_is_shorter_than_what_pages_fetch_at_first(
    store: Store, tmp_path: Path
) -> None:
    part = tmp_path / write(store, tmp_path)["sets"][0]["features"][0]["url"]
    footer = pq.ParquetFile(part).metadata
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [16] * 32
    assert footer.serialized_size < 1 << 16


def test_models_and_runs_are_told(store: Store, tmp_path: Path) -> None:
    site = write(store, tmp_path)
    assert [m["model"] for m in site["models"]] == [MODEL, OTHER]
    (run,) = site["runs"]
    assert (run["run"], run["status"], run["stands"], len(run["stages"])) == ("pages-00001", "DONE", True, 2)
    assert (run["changes"]["before"], run["changes"]["subjects"][0]["change"]) == ("pages-00000", "new")
    assert "store" not in json.dumps(site) and str(tmp_path.parent.parent) not in json.dumps(site)


def test_cells_that_cannot_be_planned_are_told_among_stages_and_a_run_that_goes_on_with_its_time(
    tmp_path: Path,
) -> None:
    store = make_store(str(tmp_path / "lake"))
    save_run(store, "pages-00001", [publish_units(store, explorer_stage(MODEL), 20)])
    gone = UnplannedCell(cell="acts/m", kind="extract", subject="m", state="failed", error="nothing at /m\nbut others")
    state = load_state(store, "pages-00001").model_copy(update={"status": "RUNNING", "unplanned": (gone,)})
    save_state(store, state.model_copy(update={"seconds": 1.0, "began": 1000.0}))
    store.replace(alive_key("pages-00001"), json.dumps({"time": 1063.0}).encode())
    (run,) = write(store, tmp_path / "pages")["runs"]
    assert run["seconds"] == 63.0
    told = [(stage["cell"], stage["state"], stage["error"]) for stage in run["stages"]]
    assert told[-1] == ("acts/m", "failed", "nothing at /m")


def test_a_second_time_copies_nothing_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    catalog = open_catalog(store)
    one = write_pages(catalog, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    two = write_pages(catalog, tmp_path)
    assert one.units == two.units == UNITS + 20
    assert one.copied == two.kept > 0 and two.copied == one.kept == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_cut_copy_is_copied_again(store: Store, tmp_path: Path) -> None:
    part = tmp_path / write(store, tmp_path)["sets"][0]["features"][0]["url"]
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    write(store, tmp_path)
    assert part.read_bytes() == whole


def test_with_a_base_url_parts_are_read_where_they_are_and_its_host_alone_is_allowed(
    store: Store, tmp_path: Path
) -> None:
    site = write(store, tmp_path, base_url="https://data.example.org/lake/")
    urls = [part["url"] for s in site["sets"] for part in s["features"] + s["index"]]
    assert all(url.startswith("https://data.example.org/lake/tables/explorer_") for url in urls)
    assert all(store.size(url.removeprefix("https://data.example.org/lake/")) > 0 for url in urls)
    assert not (tmp_path / "data").exists()
    page = (tmp_path / "index.html").read_text()
    assert "connect-src 'self' https://data.example.org\"" in page
    write(store, tmp_path)
    assert "connect-src 'self' \"" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    "url", ["data.example.org", "ftp://x/y", "https://me:word@x/y", "https://x/y?token=1", "https://x'; script-src *"]
)
def test_a_base_url_that_is_none_is_refused(store: Store, tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="base-url"):
        write(store, tmp_path / "pages", base_url=url)


def test_the_page_has_no_address_of_others_and_no_code_in_it(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".js", ".css", ".html") and path.name != "hyparquet.js":
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text and "https:" not in text, path
    page = (tmp_path / "index.html").read_text()
    assert page.count("<script") == 1 and "<style" not in page and " style=" not in page
    assert "MIT" in (tmp_path / "vendor" / "LICENSES.txt").read_text()


def test_a_store_without_pages_says_which_stage_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UnknownTable, match="kind explorer"):
        make_site(open_catalog(publish_numbers(tmp_path)), lambda part: part.key)


def test_a_part_that_is_not_what_was_published_is_never_copied(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    stage = publish_units(store, explorer_stage(MODEL), 5)
    save_run(store, "pages-00001", [stage])
    (part,) = open_catalog(store).parts("explorer_index")
    path = tmp_path / "lake" / part.key
    path.chmod(0o644)
    path.write_bytes(b"x" * part.bytes)
    with pytest.raises(DamagedPart):
        write(store, tmp_path / "pages")


def test_a_folder_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        write(store, tmp_path / "file")
