"""The sections about zoos of models on a whole page: matrices, layers, universality, cliques, dictionary; also of half a run."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.report.data import load_report
from cluster.report.sections.entries import Entry, Size, Unit, fitting
from cluster.report.sections.zoo_layers import weighted_r
from cluster.report.sections.zoos import Member, short_models
from cluster.stores import Store
from jobs.shown import pool_map
from tests.made_up_saes import publish_rows, publish_sweep, save_run, stage_of
from tests.made_up_units import make_names
from tests.made_up_zoo import DEPTHS, SITES, Of, make_exemplars, make_png, models, publish_inversions, publish_zoo
from tests.pages import EXTRACT, Checker, check_page, copy_of, dump_dom, images_of, make_store, render
from tests.published import run_spec

ABOUT_ZOOS = ["zoo", "layers", "universality", "dictionary"]
NAMED = {"miclip in+out": 3, "netdissect": 3}
UNITS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of the demo world."""
    folder = tmp_path_factory.mktemp("base")
    assert run_spec(make_store(str(folder)), EXTRACT).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def members() -> list[Of]:
    sae = stage_of("train_sae", "sae", arch="topk", latents=24, k=8, seed=0, site="resid_post.3@patch")
    return [*models(3), ("demo:clip-p8", sae.digest)]


@pytest.fixture(scope="module")
def lake(base: Path, members: list[Of], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three models and an SAE of the first, compared; two methods have names for units of the first."""
    store = copy_of(base, tmp_path_factory.mktemp("lake") / "lake")
    images = images_of(store)
    saes = publish_sweep(store, images, latents=24, steps=10, seeds=1)[:2]
    stages = publish_zoo(store, images, members)
    keys = {"model": members[0][0], "site": SITES[2], "sae": None, "unit_kind": "neurons", "seed": None}
    for variant in NAMED:
        stages.append(stage_of("describe", variant.partition(" ")[0], members[0][0], variant=variant))
        publish_rows(
            store, stages[-1], {"unit_concepts": make_names({**keys, "variant": variant}, UNITS)["unit_concepts"]}
        )
    save_run(store, "zoo-00001", [*saes, *stages])
    return store


@pytest.fixture(scope="module")
def page(lake: Store) -> str:
    return render(lake)


def sections(page: str) -> dict[str, str]:
    parts = re.split(r'<section id="(\w+)"', page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def words(part: str) -> str:
    return Checker(f"<div>{part[part.index('>') + 1 : part.index('</section>')]}</div>").words


def figures(part: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r'class="matrices">(.*?)</script>', part)]


def cells(figure: dict[str, Any], choice: str) -> dict[tuple[int, int], tuple[float, str, int]]:
    """(row, column) -> value, words, marked."""
    matrix = next(m for m in figure["matrices"] if m["choice"] == choice)
    numbers = np.array(matrix["cells"]).reshape(-1, 5)
    return {(int(r), int(c)): (float(v), figure["words"][int(w)], int(m)) for r, c, v, w, m in numbers}


def axes(figure: dict[str, Any], choice: str) -> tuple[list[str], list[str]]:
    matrix = next(m for m in figure["matrices"] if m["choice"] == choice)
    return figure["axes"][matrix["rows"]], figure["axes"][matrix["columns"]]


def card(page: str, entry: int) -> str:
    found = re.search(rf'<article class="card entry" id="d-0-{entry}".*?</article>', page, re.DOTALL)
    assert found is not None
    return found[0]


def name_of(members: list[Of], variant: str, unit: int) -> str:
    """What a method calls a unit of the first model first."""
    keys = {
        "model": members[0][0],
        "site": SITES[2],
        "sae": None,
        "unit_kind": "neurons",
        "seed": None,
        "variant": variant,
    }
    rows = make_names(keys, UNITS)["unit_concepts"]
    return next(str(r["concept"]) for r in rows if (r["direction"], r["unit"], r["rank"]) == ("describe", unit, 0))


def publish(base: Path, folder: Path, members: list[Of], **changes: Any) -> str:
    """The page of a zoo of these members alone."""
    store = copy_of(base, folder / "lake")
    save_run(store, "zoo-00001", publish_zoo(store, images_of(store), members, **changes))
    return render(store)


# ---------------------------------------------------------------- the page


def test_the_page_has_every_section_and_is_whole(page: str) -> None:
    check_page(page)
    assert [s for s in sections(page) if s in ABOUT_ZOOS] == ABOUT_ZOOS
    assert "This part could not be read" not in page


def test_equal_data_give_equal_bytes(lake: Store, page: str) -> None:
    assert render(lake) == page


# ---------------------------------------------------------------- matrices


def test_matrices_have_buddies_over_the_smaller_number_of_units_and_r_over_chance(page: str) -> None:
    shares, likeness = figures(sections(page)["zoo"])
    names = ["clip-p8", "vit-p8", "network-2", "clip-p8 SAE topk"]
    assert axes(shares, "5") == (names, names)
    of = cells(shares, "5")  # 36 and 42 units, 108 buddies of which 72 are above chance, which gives 36
    assert {(r, c): v for (r, c), (v, *_) in of.items()} == {
        (r, c): 2.0 if r < c else 1.0 for r in range(4) for c in range(4) if r != c
    }
    assert "72 buddies above chance, 2 per unit of the smaller; 108 in all, 36 by chance" in of[0, 1][1]
    assert cells(shares, "1")[0, 1][0] == 0.5 and cells(shares, "1")[1, 0][0] == 1.0
    alike = cells(likeness, "5")
    assert alike[0, 1][0] == pytest.approx(0.8) and alike[0, 2][0] == pytest.approx(0.7) and alike[1, 0][0] == 0.31
    assert alike[0, 1][1] == of[0, 1][1] == of[1, 0][1]  # the same is said of a pair wherever it is pointed at


def test_pairs_that_share_training_targets_are_told(base: Path, page: str, tmp_path: Path) -> None:
    zoo = sections(page)["zoo"]
    assert (
        "All pairs share training targets. Models that share training targets agree more than independent ones would."
        in words(zoo)
    )
    assert not any(
        m for figure in figures(zoo) for *_, m in cells(figure, "5").values()
    )  # a mark on all tells nothing apart
    none = sections(publish(base, tmp_path / "none", models(2), shares_training=False))["zoo"]
    assert "No two models share training targets." in words(none) and "agree more" not in words(none)
    unknown = sections(publish(base, tmp_path / "unknown", models(2), shares_training=None))["zoo"]
    assert "Of 1 pair it is not known whether they share training targets." in words(unknown)


def test_some_pairs_that_share_training_targets_are_marked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.made_up_zoo as made_up

    whole = made_up.make_pairs
    monkeypatch.setattr(made_up, "make_pairs", lambda a, b, units, number, _: whole(a, b, units, number, number == 1))
    zoo = sections(publish(base, tmp_path, models(3)))["zoo"]
    assert "1 of 3 pairs shares training targets." in words(zoo)
    for figure in figures(zoo):
        assert {at for at, (*_, marked) in cells(figure, "5").items() if marked} == {(0, 2), (2, 0)}


def test_short_names_tell_models_apart() -> None:
    names = short_models(["hf:facebook/dinov2-base", "hf:other/dinov2-base", "open_clip:ViT-B-32/laion2b", "timm:resnet50.a1_in1k",
                          "demo:clip-p8", "demo:clip-p8/random(3)", "demo:vit@main"])  # fmt: skip
    assert names == {
        "hf:facebook/dinov2-base": "facebook/dinov2-base", "hf:other/dinov2-base": "other/dinov2-base",
        "open_clip:ViT-B-32/laion2b": "ViT-B-32", "timm:resnet50.a1_in1k": "resnet50.a1_in1k",
        "demo:clip-p8": "clip-p8", "demo:clip-p8/random(3)": "clip-p8 random(3)", "demo:vit@main": "vit",
    }  # fmt: skip


def test_a_generator_is_told_from_models_that_see(base: Path, tmp_path: Path) -> None:
    store = copy_of(base, tmp_path / "lake")
    (row,) = load_report(store).table("models").to_pylist()
    inspected = stage_of("inspect", "models", "demo:generator")
    publish_rows(
        store,
        inspected,
        {"models": [{**row, "model": "demo:generator", "family": "generator", "stage": inspected.digest}]},
    )
    save_run(
        store, "zoo-00001", [inspected, *publish_zoo(store, images_of(store), [("demo:generator", None), *models(1)])]
    )
    assert axes(figures(sections(render(store))["zoo"])[0], "5")[0] == ["generator (draws)", "clip-p8"]


def test_hostile_names_stay_text(base: Path, tmp_path: Path) -> None:
    hostile = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    page = publish(base, tmp_path, [(hostile, None), *models(1)])
    check_page(page)
    found = Checker(page)
    assert not [n for n, a in found.elements if n == "img" or any(name.startswith("on") for name in a)]
    assert len([1 for n, a in found.elements if n == "script" and a.get("type") is None]) == 1
    assert "This part could not be read" not in page and "alert(1)" in found.words


def test_two_models_are_a_zoo(base: Path, tmp_path: Path) -> None:
    page = publish(base, tmp_path, models(2))
    check_page(page)
    assert cells(figures(sections(page)["zoo"])[0], "5").keys() == {(0, 1), (1, 0)}
    assert "This part could not be read" not in page


@pytest.mark.slow
def test_forty_models_are_a_zoo(base: Path, tmp_path: Path) -> None:
    page = publish(base, tmp_path, models(40))
    check_page(page)
    assert len(cells(figures(sections(page)["zoo"])[0], "1")) == 40 * 39
    assert len(page) < 4_000_000 and "This part could not be read" not in page


# ---------------------------------------------------------------- layers


def test_layers_show_one_pair_at_a_time_and_all_pairs_by_depth(page: str) -> None:
    sites, depths = figures(sections(page)["layers"])
    assert {m["choice"] for m in sites["matrices"]} == {
        f"{i}-{j}|{k}" for i in range(4) for j in range(i + 1, 4) for k in (5, 1)
    }
    assert axes(sites, "0-3|5") == (list(SITES), list(SITES))
    of = {at: value for at, (value, *_) in cells(sites, "0-3|5").items()}
    assert of == {(0, 0): 60, (1, 1): 60, (2, 2): 60, (0, 1): 2, (1, 0): 1, (1, 2): 2, (2, 1): 1}
    everywhere = {at: value for at, (value, *_) in cells(depths, "5").items()}  # six pairs, both ways round
    assert everywhere == {(0, 0): 720, (5, 5): 720, (9, 9): 720, (0, 5): 18, (5, 0): 18, (5, 9): 18, (9, 5): 18}


def test_depths_that_agree_have_a_large_r(page: str) -> None:
    a, b = (
        np.repeat([DEPTHS[n] for n in order], [60, 60, 60, 2, 1, 2, 1])
        for order in ((0, 1, 2, 0, 1, 1, 2), (0, 1, 2, 1, 0, 2, 1))
    )
    row = re.search(r'<td>clip-p8</td><td>vit-p8</td><td class="number">5</td>(.*?)</tr>', sections(page)["layers"])
    assert row is not None
    assert f">{np.corrcoef(a, b)[0, 1]:.3f}</td>" in row[1] and f">{np.abs(a - b).mean():.4f}</td>" in row[1]
    generator = np.random.default_rng(0)
    x, y, n = generator.random(9), generator.random(9), generator.integers(1, 5, 9)
    assert weighted_r(x, y, n) == pytest.approx(np.corrcoef(np.repeat(x, n), np.repeat(y, n))[0, 1])
    assert weighted_r(np.ones(3), np.arange(3.0), np.ones(3)) is None


# ---------------------------------------------------------------- universality and cliques


def test_degrees_are_shares_of_the_units_at_a_depth(page: str) -> None:
    (degrees,) = figures(sections(page)["universality"])
    assert axes(degrees, "|5")[0] == ["3", "2", "1", "0"]
    of = {
        at: value for at, (value, *_) in cells(degrees, "|5").items()
    }  # units 0, 1 and 2 of 12 have fewer buddies than 3
    assert of[0, 0] == pytest.approx(9 / 12, rel=1e-3) and of[3, 5] == pytest.approx(1 / 12, rel=1e-3)
    assert {c for _, c in of} == {0, 5, 9} and sum(v for (_, c), v in of.items() if c == 9) == pytest.approx(
        1, rel=1e-3
    )
    one = cells(degrees, "2|1")
    assert one[1, 0][1] == "depth 0.0 to 0.1: 2 of 12 units are shared with 2 of 3 other models"


def test_shares_and_kurtosis_of_every_member_stand_in_a_table(page: str) -> None:
    part = sections(page)["universality"]
    rows = re.findall(
        r'<tr><td>(clip-p8|network-2|vit-p8|clip-p8 SAE topk)</td><td class="number">(\d)</td>(.*?)</tr>', part
    )
    assert len(rows) == 8
    by = {row[:2]: row[2] for row in rows}
    told = Checker(f"<div><table><tr>{by['clip-p8', '5']}</tr></table></div>").words
    # 36 units, 11 of 12 shared, 9 of 12 with all; medians of 41..51 and of 2, plus 3
    assert told == "36 91.7 % 75.0 % 2.50 46 2 5.0 % 40.0 %"


def test_cliques_are_counted_by_size(page: str) -> None:
    part = sections(page)["universality"]
    table = part[part.index("Cliques by size") :]
    rows = [
        Checker(f"<div><table><tr>{row}</tr></table></div>").words
        for row in re.findall(r"<tr>(<td>\d model.*?)</tr>", table)
    ]
    assert rows == ["4 models 4 ★ 0.615 0.500 1 0.600 0.500".replace(" ★", ""), "2 models 6 0.665 0.500 – – –"]


# ---------------------------------------------------------------- dictionary


def test_a_card_shows_the_images_and_under_each_the_maps_of_all_units(
    lake: Store, members: list[Of], page: str
) -> None:
    text = card(page, 2)
    sheet = re.search(r'class="sheet" data-images="([^"]*)"', text)
    assert sheet is not None and len(sheet[1].split()) == 3
    strips = re.findall(r'<div class="strip"[^>]*>', text)
    assert len(strips) == 5  # the images themselves, and four units
    rows = [row for row in make_exemplars(members, 4, 3, 8, images_of(lake)) if row["entry"] == 2]
    for n, of in enumerate(members):
        mine = [
            np.clip(row["map"], 0, None)
            for row in rows
            if row["model"] == of[0] and (row["sae"] or "")[4:] == (of[1] or "")
        ]
        maps = re.search(r'data-maps="([^"]*)"', strips[n + 1])
        assert maps is not None and 'data-grid="8 8"' in strips[n + 1]
        for packed, expected in zip(maps[1].split(), mine, strict=True):
            found = np.frombuffer(base64.b64decode(packed), np.uint8)
            assert found == pytest.approx(expected / np.max(mine) * 255, abs=0.51)


def test_a_card_says_whose_units_they_are_which_represents_them_and_what_methods_call_them(
    members: list[Of], page: str
) -> None:
    text = Checker(card(page, 3)).words
    assert (
        "Entry 3" in text and "4 models" in text and "training targets" not in text
    )  # those of all entries are said above
    assert re.search(r"vit-p8 ★ mlp_act\.3@patch #3 r 0\.700", text)
    first = [name_of(members, variant, 3) for variant in NAMED]
    assert f"clip-p8 mlp_act.3@patch #3 r 0.600 miclip in+out {first[0]} netdissect {first[1]} vit-p8" in text
    assert "clip-p8 SAE topk" in text and text.count("★") == 1
    assert "3 models" in Checker(card(page, 1)).words and "SAE" not in card(page, 1)


def test_entries_are_found_by_name_model_and_unit(members: list[Of], page: str) -> None:
    said = re.search(r'data-words="([^"]*)"[^>]*><header', card(page, 3))
    assert said is not None
    assert {
        "vit-p8",
        "hf:some-laboratory/network-2",
        "mlp_act.3@patch",
        "sae",
        name_of(members, "netdissect", 3),
    } <= set(said[1].split())
    assert 'data-numbers="3"' in card(page, 3)


def test_of_a_large_entry_every_member_is_shown(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.made_up_zoo as made_up

    first, second = models(2)
    unit = {"entry": 0, "origin": "cluster of demo:clip-p8", "models": 2, "size": 31, "unit_kind": "neurons", "site": SITES[0],
            "shares_training": None}  # fmt: skip
    many = [
        {**unit, "model": first[0], "sae": None, "unit": u, "mean_r": 0.9 - u / 100, "is_representative": u == 0}
        for u in range(30)
    ]
    weak = {**unit, "model": second[0], "sae": None, "unit": 77, "mean_r": 0.1, "is_representative": False}
    monkeypatch.setattr(made_up, "make_entries", lambda *_: [*many, weak])
    page = publish(base, tmp_path, [first, second], outputs=["zoo"])
    text = Checker(card(page, 0)).words
    shown = [int(n) for n in re.findall(r"#(\d+) r", text)]
    assert shown == [*range(11), 77]
    assert "19 units less like the others not shown" in text


def test_zoos_of_one_name_go_by_their_pipelines(base: Path, tmp_path: Path) -> None:
    store = copy_of(base, tmp_path / "lake")
    images = images_of(store)
    save_run(store, "one-00001", publish_zoo(store, images, models(2)))
    save_run(store, "two-00001", publish_zoo(store, images, models(3)))
    page = render(store)
    check_page(page)
    assert "one shared: 2 members" in words(sections(page)["zoo"]) and "two shared: 3 members" in words(
        sections(page)["zoo"]
    )


def test_as_many_entries_are_shown_as_fit() -> None:
    unit = Unit(Member("demo:a", None), "s", 0, 0.5, False)
    entries = [Entry(n, "clique", 9, 9, None, (unit,) * 9) for n in range(300)]
    assert fitting(entries[:200], Size(5, 14 * 14, 1000), 7_000_000) == 200
    assert 200 < fitting(entries, Size(5, 14 * 14, 100_000), 7_000_000) < 300
    assert fitting(entries, Size(5, 14 * 14, 1000), 10) == 1


def test_a_fine_map_is_averaged() -> None:
    fine = np.arange(32 * 20, dtype=float).reshape(32, 20)
    pooled = pool_map(fine, 16)
    assert pooled.shape == (16, 16)
    assert pooled[0, 0] == fine[:2, :1].mean() and pooled[-1, -1] == fine[-2:, -1:].mean()
    assert np.array_equal(pool_map(fine[:16, :16], 16), fine[:16, :16])


@pytest.mark.slow
def test_two_hundred_entries_of_nine_models_stay_one_page(base: Path, tmp_path: Path) -> None:
    page = publish(base, tmp_path, models(9), entries=200, exemplars=5, grid=14)
    assert len(re.findall('<article class="card entry"', page)) == 200 and len(page) < 7_000_000


# ---------------------------------------------------------------- inversions


def test_inversions_are_compared_and_shown_beside_the_image(base: Path, tmp_path: Path) -> None:
    store = copy_of(base, tmp_path / "lake")
    save_run(store, "invert-00001", publish_inversions(store, images_of(store)))
    page = render(store)
    check_page(page)
    part = sections(page)["inversions"]
    rows = [
        Checker(f"<div><table><tr>{row}</tr></table></div>").words
        for row in re.findall(r"<tr>(<td>generator.*?)</tr>", part)
    ]
    assert rows == ["generator inversion · activation 0 2 2 30 20 19 0.500 0.100 0.500", "generator inversion · activation 1 2 2 30 20 20 0.500 0.100 0.600",
                    "generator zoom 2 1 1 30 20 19 0.500 0.100 0.600"]  # fmt: skip
    first, second = re.findall(r'<article class="card inversion".*?</article>', part, re.DOTALL)
    assert len(re.findall("<canvas", first)) == 6 and len(re.findall("<canvas", second)) == 5
    assert first.index("start 1") < first.index("start 0")  # the best of an inversion comes first
    stored = re.search(r'id="thumbnails">(.*?)</script>', page)
    assert stored is not None
    pictures = json.loads(stored[1])
    used = [int(number) for number in re.findall(r'data-image="(\d+)"', first)]
    assert pictures[used[1]] == base64.b64encode(make_png(1)).decode() and len(set(used)) == 6


# ---------------------------------------------------------------- half a run


@pytest.mark.parametrize(
    ("outputs", "shown"),
    [(["units"], []), (["units", "pair"], ["zoo"]), (["units", "pair", "zoo"], ABOUT_ZOOS), (["zoo"], ABOUT_ZOOS[1:])],
)
def test_half_a_run_shows_what_it_has(base: Path, tmp_path: Path, outputs: list[str], shown: list[str]) -> None:
    page = publish(base, tmp_path, models(3), outputs=outputs)
    check_page(page)
    found = sections(page)
    assert [s for s in found if s in ABOUT_ZOOS] == shown
    assert "This part could not be read" not in page
    if shown == ["zoo"]:
        assert "pairs without a graph yet: 3 members" in words(found["zoo"])
    if "dictionary" in shown:
        assert "Entries without pictures have none yet" in words(found["dictionary"])
        assert "#2 r 0.700" in Checker(card(page, 2)).words


def test_a_zoo_without_any_buddy_says_so(base: Path, tmp_path: Path) -> None:
    store = copy_of(base, tmp_path / "lake")
    stages = publish_zoo(store, images_of(store), models(2), outputs=["units", "pair"])
    zoo = stage_of(
        "mine_rosetta",
        "zoo",
        "zoo-none",
        members=[{"model": m, "sae": None, "unit_kind": "neurons"} for m, _ in models(2)],
    )
    nothing = {"k": 5, "degree": 0, "models": 1, "best_r": None, "kurtosis": None, "active": 0.0, "depth": 0.5}
    units = [{"model": "demo:clip-p8", "sae": None, "unit_kind": "neurons", "site": SITES[0], "unit": 0, **nothing}]
    publish_rows(
        store, zoo, {"rosetta_universality": units, "rosetta_layers": [], "rosetta_cliques": [], "rosetta_entries": []}
    )
    save_run(store, "zoo-00001", [*stages, zoo])
    page = render(store)
    check_page(page)
    assert "This part could not be read" not in page
    part = words(sections(page)["universality"])
    assert "There is no clique of so many models as were asked for." in part and "No unit varies." in part


# ---------------------------------------------------------------- in a browser


@pytest.mark.browser
def test_matrices_tell_their_cells_to_arrow_keys_and_switch_together(page: str, tmp_path: Path) -> None:
    script = """
    setTimeout(() => {
      const [first, second] = document.querySelectorAll('#zoo .heatmap'), told = [];
      const plot = () => first.querySelector('.plot svg');
      const press = (key) => plot().dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
      ['ArrowRight', 'ArrowRight'].forEach(press);
      told.push(document.getElementById('tip').innerText.split('\\n').slice(0, 3).join(' / '));
      told.push(plot().querySelectorAll('rect:not(.nothing):not(.at)').length);
      const choose = first.querySelector('select');
      choose.value = '1';
      choose.dispatchEvent(new Event('input'));
      told.push(second.querySelector('select').value, first.querySelector('.most').textContent);
      document.body.dataset.told = told.join(' | ');
    }, 500);"""
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script))
    assert found is not None
    assert found[1].split(" | ") == [
        "clip-p8 · vit-p8 / demo:clip-p8 with demo:vit-p8, k = 5 / 72 buddies above chance, 2 per unit of the smaller; 108 in all, 36 by chance",
        "12", "1", "1.00",
    ]  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 390])
def test_a_card_that_comes_into_view_gets_its_pictures(
    members: list[Of], page: str, tmp_path: Path, width: int
) -> None:
    script = (
        f"const NAME = '{name_of(members, 'netdissect', 3)}';"
        + """
    document.querySelector('#d-0-1').scrollIntoView();
    const f = document.querySelector('#dictionary .find');
    setTimeout(() => {
      const tiles = document.querySelectorAll('#d-0-1 canvas.tile');
      const told = [tiles.length, [...tiles].filter((t) => t.dataset.map).length, document.documentElement.scrollWidth <= innerWidth];
      for (const text of ['network-2 #2', NAME]) {
        f.value = text; f.dispatchEvent(new Event('input'));
        told.push([...document.querySelectorAll('#dictionary .card:not([hidden])')].map((c) => c.id).join('+'));
      }
      document.body.dataset.told = told.join(', ');
    }, 900);"""
    )
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script, width))
    assert found is not None
    tiles, maps, fits, by_unit, by_name = found[1].split(", ")
    assert (tiles, maps, fits, by_unit) == ("12", "9", "true", "d-0-2") and "d-0-3" in by_name
