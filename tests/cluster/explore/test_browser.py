"""The explorer's pages in headless Chromium: every page, search, keys, pictures, and how much is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cluster.catalog import open_catalog
from cluster.changes import Change, Changes, save_changes
from cluster.explore.pages import write_pages
from cluster.stores.base import make_store
from tests.cluster.explore.browser import Request, act
from tests.made_up_explorer import SAE, explorer_stage, publish_units
from tests.made_up_saes import save_run

pytestmark = pytest.mark.browser

MODEL, OTHER, THIRD = "demo:clip-p8", "demo:siglip-p8", "demo:clip-rn"
NEURONS = "mlp_act.3@patch"
UNITS = 600


def partner(model: str, unit: int, r: float) -> dict[str, Any]:
    return {"model": model, "sae": None, "site": NEURONS, "unit": unit, "r": r}


PARTNERS = {n: [partner(OTHER, 3, 0.9), partner(OTHER, 4, 0.8), partner(THIRD, 5, 0.7)] for n in (1, 20, 40)}
FEATURES = explorer_stage(MODEL)
ADDRESS = quote(f"{MODEL}/{FEATURES.params['site']}/{SAE[:12]}", safe="")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 features of one model, of which some have partners among 16 neurons each of two others."""
    folder = tmp_path_factory.mktemp("explorer")
    store = make_store(str(folder / "lake"))
    stages = [publish_units(store, FEATURES, UNITS, PARTNERS)]
    stages += [publish_units(store, explorer_stage(m, NEURONS, None, has_map=False), 16) for m in (OTHER, THIRD)]
    save_run(store, "pages-00001", stages)
    change = Change(subject=OTHER, change="new", cells=("pages",), why=("it was not there",))
    save_changes(store, Changes(run="pages-00001", before="pages-00000", unchanged=1, subjects=(change,)))
    write_pages(open_catalog(store), folder / "pages")
    return folder / "pages"


def data(requests: Any) -> list[Request]:
    return [request for request in requests if request.path.startswith("/data/")]


def test_every_page_opens_without_a_word_on_the_console_and_asks_for_its_own_files_alone(pages: Path) -> None:
    hashes = ["#/", f"#/model/{MODEL}", f"#/set/{ADDRESS}", f"#/unit/{ADDRESS}/1", f"#/unit/{ADDRESS}/9",
              "#/search", "#/map", "#/runs", "#/runs/pages-00001", "#/set/0123", "#/nothing"]  # fmt: skip
    seen = act(
        pages,
        f"await until(() => $('h1')); const titles = []; for (const hash of {hashes}) titles.push(await visit(hash)); return titles;",
    )
    titles = [" ".join(title.split()) for title in seen.value]
    assert titles[:5] == ["Zoo", MODEL, f"resid_post.3@patch {UNITS} SAE features", f"a blue star #1 of {UNITS} SAE features",
                          f"Feature 9 never active · #9 of {UNITS} SAE features"]  # fmt: skip
    assert titles[5:] == [
        "All units",
        f"Map of explanations {MODEL} · resid_post.3@patch",
        "Runs",
        "pages-00001 DONE",
        "Not here",
        "Not here",
    ]
    assert seen.console == []
    files = {f"/{path.relative_to(pages)}" for path in pages.rglob("*") if path.is_file()}
    assert {request.path for request in seen.requests} <= files


def test_addresses_by_the_digest_of_a_stage_lead_to_its_set(pages: Path) -> None:
    old = FEATURES.digest[:12]
    seen = act(pages, f"""
        await until(() => $('h1'));
        const titles = [];
        for (const hash of ['#/set/{FEATURES.digest}', '#/set/{old}', '#/unit/{old}/1', '#/map/{old}']) titles.push(await visit(hash));
        const link = $('h1 a').hash;
        return [titles, link, await visit(link)];""")  # fmt: skip
    titles, link, again = seen.value
    listed, _, unit, mapped = [" ".join(title.split()) for title in titles]
    assert listed == f"resid_post.3@patch {UNITS} SAE features" and unit.startswith("a blue star #1")
    assert mapped.startswith(f"Map of explanations {MODEL}")
    assert link == f"#/set/{ADDRESS}" and [*titles[:2]] == [again] * 2


def test_a_page_of_a_feature_reads_three_ranges_once_footers_are_there(pages: Path) -> None:
    """Units 1 and 20 are in different row groups of the same part, and have the same partners' parts."""
    seen = act(pages, f"""
        await until(() => $('h1'));
        const asked = () => performance.getEntriesByType('resource').filter((e) => e.name.includes('/data/')).length;
        await visit('#/unit/{ADDRESS}/1');
        await until(() => $$('.partner .cover canvas').length === 2, 'covers');
        const first = asked(), models = $$('.partner strong').map((e) => e.innerText);
        await visit('#/unit/{ADDRESS}/20');
        await until(() => $$('.partner .cover canvas').length === 2, 'covers again');
        const second = asked();
        await visit('#/unit/{ADDRESS}/21');
        await until(() => $('.tiles canvas'), 'tiles');
        return [first, second - first, asked() - second, models];""")  # fmt: skip
    first, second, third, models = seen.value
    assert first <= 6  # a footer and a range of each of three parts
    assert second <= 3
    assert third == 0  # its neighbour came with it
    assert models == [OTHER, THIRD]
    assert all(request.range for request in data(seen.requests))


def test_a_search_finds_words_over_the_whole_zoo_marks_them_and_is_there_again_on_the_way_back(pages: Path) -> None:
    seen = act(pages, """
        await until(() => $('h1'));
        press('/');
        const inField = document.activeElement === $('#seek input');
        write($('#seek input'), 'red heart');
        await until(() => $('.line'), 'lines');
        const found = $('.found').innerText, title = $('.line .title').innerText, marks = $$('.line .title')[0].querySelectorAll('mark').length;
        const hash = location.hash;
        press('Escape'); $('#content').focus(); press('j'); press('j');
        const at = $('.line.at').dataset.i;
        $('.line.at').click();
        await until(() => $('.tiles canvas'), 'the page of a unit');
        const unit = location.hash;
        history.back();
        await until(() => $('.line') && location.hash === hash, 'the list again');
        await until(() => $('.found').innerText === found, 'the same list');
        write($('#seek input'), 'eckered');
        await until(() => !$('p.none').hidden, 'nothing found');
        return {inField, found, title, marks, hash, at, unit, field: $('#seek input').value};""")  # fmt: skip
    expected = sum(n % 10 != 9 and n % 5 == 0 and n % 7 == 2 for n in range(UNITS))
    value = seen.value
    assert value["inField"] and value["hash"] in ("#/search?q=red+heart", "#/search?q=red%20heart")
    assert (
        value["found"] == f"{expected} of {UNITS + 32} units"
        and value["title"] == "a red heart"
        and value["marks"] == 2
    )
    assert value["at"] == "1" and value["unit"].startswith("#/unit/")
    assert seen.console == []


@pytest.mark.slow
def test_a_list_is_as_long_as_its_set_reads_pictures_of_what_is_in_sight_and_is_ordered_and_narrowed(
    pages: Path,
) -> None:
    seen = act(pages, f"""
        await until(() => $('h1'));
        await visit('#/set/{ADDRESS}');
        await until(() => $('.line .cover canvas'), 'pictures');
        const lines = $$('.line').length, high = $('.lines').offsetHeight;
        scrollTo(0, 64 * 500);
        await until(() => $$('.line').some((e) => e.dataset.i === '500'), 'line 500');
        const narrow = async (label, value) => {{ const s = $(`select[aria-label="${{label}}"]`); s.value = value; s.dispatchEvent(new Event('change')); await sleep(60); return $('.found').innerText; }};
        const alive = await narrow('Which units', 'alive'), shared = await narrow('Which units', 'shared');
        return {{lines, high, alive, shared, hash: location.hash}};""")  # fmt: skip
    assert seen.value["high"] == 64 * UNITS and seen.value["lines"] < 40
    assert seen.value["alive"] == f"540 of {UNITS} units" and seen.value["shared"] == f"3 of {UNITS} units"
    assert seen.value["hash"].endswith("?only=shared")


def test_the_overlay_colours_patches_and_the_theme_turns_and_stays(pages: Path) -> None:
    seen = act(pages, f"""
        await until(() => $('h1'));
        await visit('#/unit/{ADDRESS}/1');
        const pixel = (x, y) => {{ const c = $('.tiles canvas'); return [...c.getContext('2d').getImageData(x * c.width | 0, y * c.height | 0, 1, 1).data].slice(0, 3); }};
        await until(() => pixel(.9, .8)[0] > 0, 'the picture');
        const on = pixel(.9, .8), outside = pixel(.9, .05);
        press('o');
        const off = pixel(.9, .8);
        const ground = () => getComputedStyle(document.body).backgroundColor, before = ground();
        press('t');
        const after = ground(), kept = localStorage.getItem('miclip-theme');
        press('?');
        const keys = $('#keys').open;
        $('#keys').close();
        press('j');
        await until(() => $('h1')?.innerText.startsWith('a green heart'), 'the next one');
        return {{on, off, outside, before, after, kept, keys, hash: location.hash}};""")  # fmt: skip
    value = seen.value
    assert max(value["on"]) - min(value["on"]) > 20 and max(value["off"]) - min(value["off"]) <= 4  # tiles are grey
    assert value["outside"] == [0, 0, 0]  # 64 x 48 pixels in a square
    assert value["before"] != value["after"] and value["kept"] == "dark" and value["keys"]
    assert value["hash"].endswith("/2")


def test_the_map_draws_topics_and_is_walked_by_keys(pages: Path) -> None:
    seen = act(pages, """
        await until(() => $('h1'));
        await visit('#/map');
        const canvas = await until(() => $('.plane canvas'), 'the map');
        const colours = () => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data, f = new Set(); for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200) f.add(`${d[i] >> 4} ${d[i + 1] >> 4} ${d[i + 2] >> 4}`); return f.size; };
        await until(() => canvas.width > 300 && colours() > 5, 'points');
        const topics = $$('.legend button').map((b) => b.innerText.split(/\\s+/)[0]);
        press('j');
        const picked = $('.picked').innerText, hash = $('.picked').hash;
        press('+'); press('0');
        write($('.find.here'), 'red star');
        await sleep(60);
        const lit = $('.found').innerText;
        $('.find.here').blur();
        $('#content').focus();
        press('j');
        press('Enter');
        await until(() => $('.tiles canvas'), 'a unit');
        return {topics, picked, hash, lit, title: $('h1').innerText};""")  # fmt: skip
    value = seen.value
    assert set(value["topics"]) == {"red", "blue", "green", "yellow", "pink"}
    assert value["hash"].startswith(f"#/unit/{ADDRESS}/")
    stars = sum(n % 10 != 9 and n % 35 == 15 for n in range(UNITS))
    assert value["lit"] == f"{stars} of 540 points" and value["title"].startswith("a red star")


@pytest.mark.slow
def test_a_part_that_is_gone_is_said_in_its_place(pages: Path, tmp_path: Path) -> None:
    seen = act(pages, """
        await until(() => $('h1'));
        const own = window.fetch;
        window.fetch = (url, ...rest) => (String(url).includes('/data/') || String(url).startsWith('data/') ? Promise.resolve(new Response('', { status: 404, statusText: 'Not Found' })) : own(url, ...rest));
        await visit('#/search');
        await until(() => !$('p.none').hidden);
        return $('p.none').innerText;""")  # fmt: skip
    assert "404" in seen.value and "load them again" in seen.value


def test_what_a_model_shares_is_told_for_every_two_kinds_of_units(pages: Path, tmp_path: Path) -> None:
    shutil.copytree(pages, tmp_path / "pages")
    site = json.loads((tmp_path / "pages" / "site.json").read_text())
    sae = {"model": MODEL, "site": NEURONS, "sae": "sae:ab", "arch": "topk", "latents": 32, "k": 4, "fvu": 0.5, "dead_fraction": 0.0, "l0": 4,
           "recovered_zero": None, "top1_spliced": None, "top1_original": None}  # fmt: skip
    pair = {"model_a": OTHER, "model_b": MODEL, "k": 1, "above_null": 3, "share_a": 0.25, "share_b": 0.5, "r_p50": 0.7}
    site["saes"] = [sae]
    site["pairs"] = [{**pair, "sae_a": None, "sae_b": ref} for ref in (None, "sae:ab")]
    (tmp_path / "pages" / "site.json").write_text(json.dumps(site))
    seen = act(
        tmp_path / "pages",
        f"""await until(() => $('h1')); await visit('#/model/{MODEL}');
        return $$('tr').filter((row) => row.innerText.includes('{OTHER}')).map((row) => [...row.children].map((cell) => cell.innerText));""",
    )
    assert seen.value == [
        [OTHER, "neurons", "1", "50.0 %", "25.0 %", "3", "0.700"],
        [OTHER, f"32 features at {NEURONS} – neurons", "1", "50.0 %", "25.0 %", "3", "0.700"],
    ]
    assert seen.console == []


@pytest.mark.slow
def test_pages_fit_a_phone(pages: Path) -> None:
    seen = act(pages, f"""
        await until(() => $('h1'));
        const wide = [];
        for (const hash of ['#/', '#/set/{ADDRESS}', '#/unit/{ADDRESS}/1', '#/search?q=red', '#/map', '#/runs']) {{ await visit(hash); wide.push(document.documentElement.scrollWidth - document.documentElement.clientWidth); }}
        return wide;""", width=500)  # fmt: skip
    assert seen.value == [0] * 6


@pytest.mark.slow
def test_a_hundred_thousand_features_are_listed_searched_and_mapped(tmp_path: Path) -> None:
    store, n = make_store(str(tmp_path / "lake")), 100_000
    save_run(store, "pages-00001", [publish_units(store, FEATURES, n)])
    write_pages(open_catalog(store), tmp_path / "pages")
    seen = act(tmp_path / "pages", f"""
        await until(() => $('h1'));
        await visit('#/set/{ADDRESS}');
        await until(() => $('.line .cover canvas'), 'the list');
        scrollTo(0, 64 * 70000);
        await until(() => $$('.line').some((e) => e.dataset.i === '70000'), 'line 70,000');
        await until(() => $$('.line').some((e) => e.dataset.i === '70000' && e.querySelector('canvas')), 'its pictures');
        await visit('#/search?q=pink%20ring');
        await until(() => $('.line'), 'found');
        const found = $('.found').innerText;
        await visit('#/map');
        await until(() => $('.plane canvas')?.width > 300, 'the map');
        const points = $('.found').innerText;
        const before = performance.getEntriesByType('resource').length;
        await visit('#/unit/{ADDRESS}/99998');
        await until(() => $('.tiles canvas'), 'the last unit that is alive');
        return [found, points, performance.getEntriesByType('resource').length - before, $('h1').innerText.split('\\n')[0]];""")  # fmt: skip
    found, points, reads, title = seen.value
    assert found == f"{sum(i % 10 != 9 and i % 35 == 4 for i in range(n)):,} of 100,000 units"
    assert points == "90,000 points" and reads == 2 and title == "a yellow ring"
    assert seen.console == []
