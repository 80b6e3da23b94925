"""Whole pages: rendered from a real store, well formed, self-contained, honest about what is missing or failed."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from cluster.catalog import Scope, open_catalog
from cluster.report.data import load_report
from cluster.report.html import script_json, tag
from cluster.runs import RunState, StageState, UnplannedCell, load_state, save_state
from cluster.stores import Store, make_store
from schemas.errors import UnknownRun
from tests.made_up_saes import make_features, publish_rows, publish_sweep, save_run, stage_of
from tests.pages import EXTRACT, Checker, check_page, copy_of, dump_dom, images_of, render
from tests.published import SPEC, publish_numbers, run_spec

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model, 24 images and the moments of one site; copied by tests that add to it."""
    folder = tmp_path_factory.mktemp("base")
    assert run_spec(make_store(str(folder)), EXTRACT).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def lake(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same with a made-up sweep of 4 SAEs of 20 latents, described."""
    store = copy_of(base, tmp_path_factory.mktemp("lake") / "lake")
    save_run(store, "saes-00001", publish_sweep(store, images_of(store), latents=20, steps=40, seeds=1))
    return store


@pytest.fixture(scope="module")
def page(lake: Store) -> str:
    return render(lake)


# ---------------------------------------------------------------- the file itself


def test_the_page_is_well_formed_every_link_leads_somewhere_and_everything_that_can_be_used_has_a_name(
    page: str,
) -> None:
    check_page(page)


def test_nothing_is_asked_of_a_network(page: str) -> None:
    found = Checker(page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "src" not in {name for _, attributes in found.elements for name in attributes}
    assert "url(" not in page and "@import" not in page and "fetch(" not in page and "XMLHttp" not in page
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    policy = next(a["content"] for n, a in found.elements if n == "meta" and "http-equiv" in a)
    assert script is not None and policy is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_equal_data_give_equal_bytes(lake: Store, page: str) -> None:
    assert render(lake) == page


def test_the_page_of_a_sweep_has_every_section_and_a_card_for_each_chosen_feature(page: str) -> None:
    found = Checker(page)
    sections = [a["id"] for n, a in found.elements if n == "section"]
    assert sections == ["runs", "models", "extract", "saes", "densities", "concepts", "features"]
    cards = [a for n, a in found.elements if n == "article"]
    assert len(cards) == 4 * 18  # 20 latents, two of them dead
    assert len([1 for n, _ in found.elements if n == "canvas"]) == 4 * 18 * 9
    assert "topk k 8" in found.words and "batchtopk k 16" in found.words
    assert "2 of 20 never fire" in found.words
    assert "loss recovered over mean" in found.words and "93.5 %" in found.words


def test_concepts_are_counted_per_sae_from_the_best_latent_of_each(lake: Store, page: str) -> None:
    rows = load_report(lake).table("sae_selectivity", ["stage", "concept", "auroc"]).to_pylist()
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        best[row["stage"], row["concept"]] = max(best.get((row["stage"], row["concept"]), 0.0), row["auroc"])
    for stage in {stage for stage, _ in best}:
        found = sum(value > 0.9 for (s, _), value in best.items() if s == stage)
        assert f'data-sort="4">4</td><td class="number" data-sort="{found}">{found}</td>' in page


# ---------------------------------------------------------------- names that would do harm


def test_hostile_names_stay_text(base: Path, tmp_path: Path) -> None:
    store = copy_of(base, tmp_path / "lake")
    images = [{**image, "uri": HOSTILE} for image in images_of(store)]
    described = stage_of("sae_features", "features", HOSTILE)
    tables = make_features(HOSTILE, 12, images, 0)
    for row in tables["sae_selectivity"]:
        row["concept"] = HOSTILE
    for rows in tables.values():
        for row in rows:
            row["model"] = row["site"] = HOSTILE
    publish_rows(store, described, tables)
    save_run(store, "hostile-00001", [described], message=HOSTILE)
    text = render(store, "hostile-00001")
    found = Checker(text)
    assert not [n for n, a in found.elements if n == "img" or any(name.startswith("on") for name in a)]
    assert len([1 for n, a in found.elements if n == "script" and a.get("type") is None]) == 1
    assert "alert(1)" in found.words  # it is told all the same, as text


def test_a_value_is_escaped_wherever_it_stands() -> None:
    assert tag("p", "<b>", title='"&') == '<p title="&quot;&amp;">&lt;b&gt;</p>'
    assert tag("p", tag("b", "x"), None, ["<", 1]) == "<p><b>x</b>&lt;1</p>"
    assert "</script" not in script_json({"x": "</script>"})[:-9]


# ---------------------------------------------------------------- what is missing, failed or damaged


def test_a_run_without_models_or_saes_has_a_page_that_says_what_is_not_there(tmp_path: Path) -> None:
    words = Checker(render(publish_numbers(tmp_path / "lake"))).words
    assert "DONE" in words and "selftest_summary" in words
    assert "nothing was published for it: Models (no rows in models)" in words
    assert "Sparse autoencoders (no rows in sae_summary)" in words


def test_a_store_without_a_finished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    assert "No run has finished in this store yet." in Checker(render(make_store(str(tmp_path / "lake")))).words


def test_a_failed_run_says_so_and_shows_its_traceback(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    assert run_spec(store, SPEC, "error_shards=[1]").exit_code == 1
    found = Checker(render(store, "numbers-00001"))
    assert "FAILED. This run failed for" in found.words
    assert "shard 1 was told to fail" in found.words and "Traceback (most recent call last)" in found.words
    assert [a for _, a in found.elements if a.get("role") == "alert"]


def test_a_cell_that_cannot_be_planned_is_counted_and_says_why(tmp_path: Path) -> None:
    store = publish_numbers(tmp_path / "lake")
    state = load_state(store, "numbers-00001")
    gone = UnplannedCell(cell="acts/m", kind="extract", subject="m", state="failed", error="nothing at /m")
    cached = tuple(stage.model_copy(update={"state": "cached"}) for stage in state.stages)
    save_state(store, state.model_copy(update={"status": "FAILED", "stages": cached, "unplanned": (gone,)}))
    words = Checker(render(store, "numbers-00001")).words
    assert "FAILED. This run failed for 1 stage of 3." in words and "2 of 3, 2 cached" in words
    assert "acts/m" in words and "nothing at /m" in words


def test_a_run_that_has_not_ended_shows_what_it_has_published(tmp_path: Path) -> None:
    store = publish_numbers(tmp_path / "lake")
    state = load_state(store, "numbers-00001")
    left = StageState(
        digest="0" * 20, cell="numbers/c", kind="selftest", subject="c", output="selftest", state="to do", shards=3
    )
    save_state(
        store, RunState(**{**dict(state), "run": "numbers-00002", "status": "RUNNING", "stages": (*state.stages, left)})
    )
    words = Checker(render(store, "numbers-00002")).words
    assert "RUNNING. This run had not ended when the page was written." in words
    assert "2 of 3" in words and "numbers/c" in words and "0/3" in words
    rows = words.partition("first error")[2]
    assert rows.index("to do") < rows.index("published")  # what is left comes first


def test_an_unknown_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownRun, match="nope"):
        load_report(publish_numbers(tmp_path / "lake"), "nope-00001")


def test_a_lost_part_is_told_in_its_section_and_the_others_stand(lake: Store, tmp_path: Path) -> None:
    store = copy_of(Path(lake.uri), tmp_path / "lake")
    part = open_catalog(store, Scope(run="saes-00001")).parts("sae_metrics")[0]
    (tmp_path / "lake" / part.key).unlink()
    words = Checker(render(store)).words
    assert words.count("This part could not be read.") == 1 and part.key in words
    assert "How often latents fire" in words


def test_an_sae_whose_latents_are_all_dead_has_charts_that_say_nothing_fires(base: Path, tmp_path: Path) -> None:
    store = copy_of(base, tmp_path / "lake")
    tables = make_features("sae:dead", 10, images_of(store), 0)
    tables["sae_features"] = [{**row, "feature": i} for i, row in enumerate([tables["sae_features"][9]] * 10)]
    described = stage_of("sae_features", "features")
    publish_rows(store, described, {**tables, "sae_top_images": [], "sae_selectivity": []})
    save_run(store, "dead-00001", [described])
    found = Checker(render(store, "dead-00001"))
    assert "Nothing to count." in found.words and "No latent is ever active." in found.words
    assert not [n for n, _ in found.elements if n == "article"]


# ---------------------------------------------------------------- in a browser


@pytest.mark.browser
def test_a_browser_runs_the_page_without_an_error(page: str, tmp_path: Path) -> None:
    dom = dump_dom(page, tmp_path)
    assert '<span class="found" role="status">18 of 72</span>' in dom
    assert dom.count('class="card"') == 72
    assert len(re.findall(r'<article [^>]*hidden=""', dom)) == 60  # twelve are shown, the button has the others
