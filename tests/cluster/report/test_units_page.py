"""The sections about named units on a whole page: search, cards, bars, traces, maps and clouds, also where much is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.report.data import load_report
from cluster.report.sections.choice import PAGE_BYTES, UNIT_BYTES, feature_bytes
from cluster.stores import Store, make_store
from tests.made_up_saes import publish_rows, publish_sweep, save_run, stage_of
from tests.made_up_units import CONCEPTS, METHODS, MODELS, SITE, make_effects, make_names, publish_units, truth_of
from tests.pages import EXTRACT, Checker, check_page, dump_dom, images_of, render
from tests.published import publish_numbers, run_spec

ABOUT_UNITS = ["encoders", "units", "methods", "interventions", "traces", "attention", "geometry"]
PLACE = {"model": MODELS[0], "site": SITE, "sae": None, "unit_kind": "neurons"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """24 images, one described SAE, and units of two models with names, effects, traces, maps, geometry and scores."""
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    assert run_spec(store, EXTRACT).exit_code == 0
    images = images_of(store)
    sae = publish_sweep(store, images, latents=24, steps=10, seeds=1)[:2]
    save_run(store, "units-00001", [*sae, *publish_units(store, images, f"sae:{sae[0].digest}", seeds=2)])
    return store


@pytest.fixture(scope="module")
def page(lake: Store) -> str:
    return render(lake)


def sections(page: str) -> dict[str, str]:
    parts = re.split(r'<section id="(\w+)"', page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def finder(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="finder">(.*?)</script>', page)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


# ---------------------------------------------------------------- the file


def test_the_page_has_every_section_and_is_whole(page: str) -> None:
    check_page(page)
    assert [s for s in sections(page) if s in ABOUT_UNITS] == ABOUT_UNITS
    assert "This part could not be read" not in page
    assert len(page) < 3_000_000


def test_equal_data_give_equal_bytes(lake: Store, page: str) -> None:
    assert render(lake) == page


def test_each_picture_is_stored_once_for_all_sections(page: str) -> None:
    found = re.search(r'<script type="application/json" id="thumbnails">(.*?)</script>', page)
    assert found is not None
    stored = json.loads(found[1])
    assert len(stored) == len(set(stored)) == 24
    used = {int(number) for number in re.findall(r'data-image="(\d+)"', page)}
    assert used == set(range(24))


# ---------------------------------------------------------------- units


def test_a_card_puts_the_names_of_all_methods_side_by_side_and_ticks_the_true_ones(lake: Store, page: str) -> None:
    where = {"direction": "describe", "unit": 0, "rank": 0, "model": MODELS[1]}
    rows = load_report(lake).table("unit_concepts", ["variant", "seed", "concept"], where).to_pylist()
    first = {r["variant"]: r["concept"] for r in rows if not r["seed"]}
    card = re.search(r'<article class="card unit" id="u-2-0".*?</article>', page)
    assert card is not None and set(first) == set(METHODS)
    said = re.findall(
        r'</i><span>([^<]+)<.*?<b class="name[^"]*"[^>]*>([^<✓]+?)(?: ✓)?</b>',
        card[0],
    )
    assert dict(said) == first
    assert first["auroc"] == CONCEPTS[truth_of(0)]
    assert card[0].count(" ✓</b>") == sum(name == first["auroc"] for v, name in first.items() if v != "auroc")


def test_features_leave_room_for_units(lake: Store, tmp_path: Path) -> None:
    assert feature_bytes(load_report(lake)) == PAGE_BYTES - UNIT_BYTES
    assert feature_bytes(load_report(publish_numbers(tmp_path / "lake"))) == PAGE_BYTES


def test_a_unit_that_is_dead_to_all_has_no_card_and_no_place_in_a_list(page: str) -> None:
    assert 'id="u-0-5"' not in page and 'id="u-0-6"' in page
    for by_place in finder(page)["lists"]:
        for by_method in by_place.values():
            assert all(5 not in flat[1::2] for flat in by_method.values())


def test_the_finder_has_the_units_of_every_concept_by_every_method_at_every_place(lake: Store, page: str) -> None:
    told = finder(page)
    assert told["concepts"] == sorted(CONCEPTS) and len(told["places"]) == 3
    assert [m["name"] for m in told["methods"]] == list(METHODS)
    square = told["lists"][told["concepts"].index("square")]
    assert set(square) == {"0", "1", "2"} and set(square["0"]) == {str(m["colour"]) for m in told["methods"]}
    where = {"model": MODELS[0], "variant": "auroc", "concept": "square"}
    rows = (
        load_report(lake)
        .table("unit_concepts", ["sae", "direction", "unit", "rank", "score", "is_dead"], where)
        .to_pylist()
    )
    rows = [r for r in rows if r["sae"] is None]
    auroc = next(str(m["colour"]) for m in told["methods"] if m["name"] == "auroc")
    calls, *flat = square["0"][auroc]
    assert calls == 2  # units 13 and 21; unit 5 is dead
    assert calls == sum(r["direction"] == "describe" and r["rank"] == 0 and not r["is_dead"] for r in rows)
    located = sorted((r for r in rows if r["direction"] == "localise"), key=lambda r: r["rank"])
    assert flat[::2] == [r["unit"] for r in located]
    assert flat[1::2] == pytest.approx([r["score"] for r in located], rel=5e-3)
    assert f"0-{flat[0]}" in told["pictures"]


def test_neurons_show_the_patch_of_their_largest_activation_and_features_the_whole_map(page: str) -> None:
    neuron = re.search(r'id="u-0-0".*?</article>', page)
    feature = re.search(r'id="u-1-0".*?</article>', page)
    assert neuron is not None and feature is not None
    assert 'data-grid="8 8"' in neuron[0] and 'data-grid="8 8"' in feature[0]


# ---------------------------------------------------------------- methods and interventions


def test_the_best_method_is_starred_and_the_words_say_whom_it_beats(page: str) -> None:
    methods = sections(page)["methods"]
    text = Checker(f"<div>{methods[methods.index('>') + 1 : methods.index('</section>')]}</div>").words
    assert (
        "right names: miclip in+out is ahead with 0.900 and better than netdissect; not told apart from clip_dissect soft_wpmi, act_values (p ≥ 0.05 after Holm)."
        in text
    )
    assert "15 of 90 differences stand after correction." in text
    starred = re.findall(r"<b>([\d.]+) ★</b>", methods)
    assert starred == ["0.900", "0.855", "0.540"] * 3


def test_bars_of_interventions_say_who_wins_with_off_class_beside(page: str) -> None:
    part = sections(page)["interventions"]
    assert part.count("★</b>") == 3 * 2  # three places, two changes
    best = re.search(r"<b>(−[\d.]+) ★</b>", part)
    effects = [
        e
        for seed in (0, 1)
        for e in make_effects({**PLACE, "variant": "miclip in+out", "seed": seed})["intervention_summary"]
    ]
    removed = [e["dacc"] for e in effects if e["beta"] == 0]
    assert best is not None and best[1] == f"−{-sum(removed) / 2:.1f}"
    assert part.count('<span class="value">−5.0</span>') == 3 * 2 * 4  # off class, of four methods
    assert "2 seeds" in part and "Class by class (8)" in part
    assert part.count("<figure><figcaption>") == 3 * 8


# ---------------------------------------------------------------- traces, maps, geometry


def test_a_traced_image_has_both_curves_and_its_two_marks(page: str) -> None:
    card = re.search(r'<article class="card trace" id="t-0-0".*?</article>', page)
    assert card is not None
    assert "truth: red" in card[0] and "wrong: blue" in card[0] and "wrong, lost for good" in card[0]
    flags = re.findall(r'<g class="flag"><path d="M([\d.]+) .*?>([12])</text></g>', card[0])
    line = re.search(r'<path d="([^"]+)" class="line"', card[0])
    assert line is not None
    places = re.findall(r"[ML]([\d.]+) ", line[1])  # of layers 0 to 3
    assert flags == [(places[0], "1"), (places[2], "2")]
    assert card[0].count('class="line"') >= 2


def test_crossings_are_shares_of_known_images_for_wrong_and_right_ones(page: str) -> None:
    tips = re.findall(r'data-tip="(\w+ images, layer \d: [\d.]+ %)"', sections(page)["traces"])
    assert "wrong images, layer 2: 50.0 %" in tips and "wrong images, layer 3: 50.0 %" in tips
    alarms = sum(i % 3 != 0 and i % 5 == 1 for i in range(24))
    assert f"right images, layer 2: {100 * alarms / 16:.1f} %" in tips


def test_the_mean_lead_is_over_wrong_and_right_images_apart(page: str) -> None:
    part = sections(page)["traces"]
    figure = part[part.index("Lead of the truth") :]
    told = json.loads(re.search(r'class="hover">(.*?)</script>', figure)[1])  # type: ignore[index]
    values = {line["name"]: [float(v) for v in line["value"]] for line in told["lines"]}
    # of eight wrong images, four lose the lead at layer 2: (4 * -0.1 + 4 * 0.2) / 8
    assert values["wrong images"] == pytest.approx([0.2, 0.2, 0.05, -0.1])
    assert values["right images"][3] != values["wrong images"][3]


def test_maps_stand_beside_the_image_and_the_table_says_what_they_come_to(page: str) -> None:
    part = sections(page)["attention"]
    assert part.count("<article") == len(CONCEPTS)
    assert part.count("<canvas") == len(CONCEPTS) * 2 * 3 and part.count('data-grid="8 8"') == len(CONCEPTS) * 2 * 2
    row = re.search(r"<tbody><tr>.*?</tr>", part)
    assert row is not None and re.findall(r'data-sort="([\d.]+)">[\d.]+ %', row[0])[:3] == [
        "0.20000000298023224",
        "0.25",
        "0.4000000059604645",
    ]


def test_points_of_the_cloud_have_names_and_groups_colours(page: str) -> None:
    part = sections(page)["geometry"]
    assert part.count("<circle") - part.count('cx="9"') == 3 * 23
    assert 'aria-label="star (shape)\nunit #4"' in part and "Without a direction: 1 unit." in part


# ---------------------------------------------------------------- partial runs and hostile names


def test_a_run_with_names_alone_has_cards_without_pictures(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    stage = stage_of("describe", "miclip", concepts=list(CONCEPTS))
    publish_rows(store, stage, make_names({**PLACE, "variant": "miclip in+out", "seed": 0}, 12))
    save_run(store, "names-00001", [stage])
    text = render(store)
    check_page(text)
    assert "This part could not be read" not in text
    assert text.count('class="card unit"') == 11 and "<canvas" not in text
    assert text.count("No pictures: they need output top_images of extract at this site.") == 11
    assert [s for s in sections(text) if s in ABOUT_UNITS] == ["units"]


def test_units_that_are_classes_are_ticked_by_their_class_where_no_method_knows_the_labels(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    keys = {**PLACE, "method": "miclip", "variant": "miclip in+out", "seed": 0}
    names = make_names(keys, 8)
    first = {r["unit"]: r["concept"] for r in names["unit_concepts"] if r["direction"] == "describe" and r["rank"] == 0}
    judged = [
        {**keys, "unit": unit, "truth": first[unit] if unit == 0 else "other", "truth_score": None, "predicted": first[unit], "correct": unit == 0,
         "clip_score": 1.0, "sentence_score": None}
        for unit in (0, 1)
    ]  # fmt: skip
    stages = [stage_of("describe", "miclip", concepts=list(CONCEPTS)), stage_of("evaluate", "scores")]
    for stage, tables in zip(stages, (names, {"description_eval": judged}), strict=True):
        publish_rows(store, stage, tables)
    save_run(store, "classes-00001", stages)
    cards = re.findall(r'<article class="card unit".*?</article>', render(store))
    assert [c.count("✓") for c in cards] == [1] + [0] * 6
    assert "It stands for <b>other</b>." in cards[1] and "It stands for" not in cards[2]


def test_two_lists_of_concepts_at_one_place_are_two_places(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    keys = {**PLACE, "variant": "miclip in+out", "seed": 0}
    stages = [stage_of("describe", "miclip", concepts=names) for names in (list(CONCEPTS), [*CONCEPTS[1:], "red"])]
    for stage in stages:
        publish_rows(store, stage, make_names(keys, 8))
    save_run(store, "twice-00001", stages)
    places = finder(render(store))["places"]
    assert sorted(p.partition("8 concepts from ")[2] for p in places) == ["blue", "red"]


def test_hostile_concepts_stay_text(tmp_path: Path) -> None:
    hostile = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    store = make_store(str(tmp_path / "lake"))
    tables = make_names({**PLACE, "variant": "miclip in+out", "seed": 0}, 8)
    for row in tables["unit_concepts"]:
        row["concept"] = hostile
    stage = stage_of("describe", "miclip", hostile, concepts=[hostile])
    publish_rows(store, stage, tables)
    save_run(store, "hostile-00001", [stage])
    text = render(store)
    check_page(text)
    assert not [n for n, a in Checker(text).elements if n == "img"] and finder(text)["concepts"] == [hostile]


# ---------------------------------------------------------------- in a browser


@pytest.mark.browser
def test_typing_a_concept_shows_its_units_by_place_and_method_and_keeps_the_cards_named_so(
    page: str, tmp_path: Path
) -> None:
    script = """
    const f = document.querySelector('#units .find');
    const type = (text) => { f.value = text; f.dispatchEvent(new Event('input')); };
    type('ed');
    document.body.dataset.inside = document.querySelector('#units .found').textContent;
    type('red');"""
    dom = dump_dom(page, tmp_path, script)
    table = re.search(r'<table class="concept">.*?</table>', dom)
    assert table is not None
    assert re.search(r'data-inside="0 of \d+"', dom)  # a search finds what begins a word
    assert table[0].count("<tr>") == 4 and table[0].count('class="spot"') == len(METHODS)
    assert table[0].count('href="#u-') >= 15 and table[0].count("<canvas") == 15
    shown = [c for c in re.findall(r'<article class="card unit"[^>]*>', dom) if "hidden" not in c]
    named = [c for c in re.findall(r'<article class="card unit"[^>]*>', page) if re.search(r'data-by\d="red"', c)]
    cards = len(re.findall(r'<article class="card unit"', page))
    assert f">{len(named)} of {cards}</span>" in dom and f"Show {len(named) - 12} more</button>" in dom
    assert len(shown) == 12 < len(named) and all(re.search(r'data-by\d="red"', c) for c in shown)
    assert dom.count("name shared asked") + dom.count("name asked") >= len(shown)


@pytest.mark.browser
def test_keys_walk_through_cards_and_through_the_points_of_a_cloud(page: str, tmp_path: Path) -> None:
    script = """
    const press = (target, key) => target.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    document.querySelector('#units .card').focus();
    press(document.activeElement, 'j');
    document.body.dataset.walked = document.activeElement.id;
    const cloud = document.querySelector('#geometry .plot > svg');
    cloud.focus(); press(cloud, 'ArrowRight');
    document.body.dataset.from = document.activeElement.getAttribute('cx');
    press(document.activeElement, 'ArrowRight');
    document.body.dataset.to = document.activeElement.getAttribute('cx');
    document.body.dataset.point = document.activeElement.getAttribute('aria-label');
    document.body.dataset.tip = document.querySelector('#tip').textContent;"""
    dom = dump_dom(page, tmp_path, script)
    walked = re.search(r'data-walked="([^"]*)"', dom)
    point, tip = re.search(r'data-point="([^"]*)"', dom), re.search(r'data-tip="([^"]*\nunit #\d+)"', dom)
    cards = re.findall(r'<article class="card unit" id="([^"]*)"', dom)
    assert walked is not None and walked[1] == cards[1]
    assert point is not None and tip is not None and point[1].count("unit #") == 1
    places = sorted(
        float(x)
        for x in re.findall(r'<circle cx="([\d.]+)"[^>]*data-tip', sections(page)["geometry"].split("<figure")[1])
    )
    walked_x = [float(x) for x in re.findall(r'data-(?:from|to)="([\d.]+)"', dom)]
    assert walked_x == places[:2]


MISSED = """
    const landed = (id) => {
      const room = parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop);
      const end = document.documentElement.scrollHeight - innerHeight;
      const wanted = Math.min(document.getElementById(id).getBoundingClientRect().top + scrollY - room, end);
      return Math.round(Math.abs(scrollY - wanted));
    };"""
"""Defines `landed`: by how many pixels a page that was to scroll to a section missed it."""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 390])
def test_links_to_sections_land_there_at_once_and_stay(page: str, tmp_path: Path, width: int) -> None:
    script = (
        MISSED
        + """
    const names = ['methods', 'geometry', 'traces', 'units'], missed = [];
    names.forEach((name, n) => {
      setTimeout(() => document.querySelector(`nav a[href="#${name}"]`).click(), 400 * n);
      setTimeout(() => {
        missed.push(`${name} ${landed(name)} ${scrollY > 500}`);
        document.body.dataset.missed = missed.join(', ');
      }, 400 * n + 300);
    });"""
    )
    found = re.search(r'data-missed="([^"]*)"', dump_dom(page, tmp_path, script, width))
    assert found is not None
    told = [words.split() for words in found[1].split(", ")]
    assert [name for name, *_ in told] == ["methods", "geometry", "traces", "units"]
    assert all(int(missed) <= 3 and scrolled == "true" for _, missed, scrolled in told), told


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 390])
def test_a_page_that_opens_at_a_section_is_there(page: str, tmp_path: Path, width: int) -> None:
    script = (
        MISSED
        + """
    setTimeout(() => { document.body.dataset.missed = `${landed('methods')} ${scrollY > 500}`; }, 1000);"""
    )
    found = re.search(r'data-missed="(\d+) (\w+)"', dump_dom(page, tmp_path, script, width, "#methods"))
    assert found is not None and int(found[1]) <= 3 and found[2] == "true"


@pytest.mark.browser
def test_a_page_shows_twelve_cards_and_more_by_a_button_by_keys_and_by_links(page: str, tmp_path: Path) -> None:
    script = """
    const cards = () => [...document.querySelectorAll('#units .card')], told = [];
    const tell = () => { const all = cards(); told.push([all.filter((c) => !c.hidden).length, all.indexOf(document.activeElement)].join(' ')); };
    const [earlier, later] = document.querySelectorAll('#units .more-cards');
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    const words = later.textContent;
    tell();
    cards()[11].focus(); press('j'); tell();
    later.click(); tell();
    location.hash = cards()[65].id;
    setTimeout(() => {
      tell();
      told.push(earlier.textContent);
      cards()[60].focus(); press('k'); tell();
      document.body.dataset.told = [cards().length, words, ...told].join(', ');
    }, 300);"""
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script))
    assert found is not None
    total, words, *told = found[1].split(", ")
    assert words == f"Show 24 more of {int(total) - 12}"
    last = min(12, int(total) - 60)
    # at first; the next of the last that is shown; the first behind all that are shown; one that a link names; the one before it
    assert told == ["12 -1", "36 12", "60 36", f"{last} 65", "Show 24 earlier of 60", f"{last + 24} 59"]


@pytest.mark.browser
def test_a_search_for_the_number_of_a_unit_without_a_card_says_where_it_is(page: str, tmp_path: Path) -> None:
    told = finder(page)
    place, unit = next(
        (int(place), unit)
        for lists in told["lists"] for place, of in lists.items() for flat in of.values() for unit in flat[1::2]
        if f'data-number="{unit}"' in page
    )  # fmt: skip
    page = re.sub(rf'<article class="card unit" id="u-{place}-{unit}".*?</article>', "", page)
    script = f"""
    const f = document.querySelector('#units .find');
    const type = (text) => {{ f.value = text; f.dispatchEvent(new Event('input')); }};
    const words = () => document.querySelector('#units .cardless')?.textContent;
    type('#{unit}');
    document.body.dataset.known = words();
    type('#987');
    document.body.dataset.unknown = words();"""
    dom = dump_dom(page, tmp_path, script)
    title = told["places"][place]
    assert f'data-known="Unit {unit} of {title} has no card on this page; the table unit_concepts has it.' in dom
    assert 'data-unknown="Unit 987 has no card on this page and is in no answer of the search' in dom
    assert "No card fits. Cards are a choice of units" in dom


@pytest.mark.browser
def test_a_table_that_is_wider_than_its_place_says_so(page: str, tmp_path: Path) -> None:
    script = """
    const f = document.querySelector('#units .find');
    f.value = 'red'; f.dispatchEvent(new Event('input'));
    setTimeout(() => {
      const region = document.querySelector('#units .answers .scroll'), hint = region.previousElementSibling;
      document.body.dataset.hint = `${hint.className} ${hint.hidden} ${region.classList.contains('beyond')}`;
    }, 500);"""
    assert 'data-hint="sideways false true"' in dump_dom(page, tmp_path, script, 390)
    assert 'data-hint="sideways true false"' in dump_dom(page, tmp_path, script, 1900)
