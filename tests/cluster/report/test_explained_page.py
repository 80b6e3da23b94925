"""The sections about explanations on a whole page: scores and tests in words, cards of features, the map; also where much is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.report.data import load_report
from cluster.report.sections import explain_features, explain_map
from cluster.report.sections.explain_tests import Contests
from cluster.report.sections.explained import load_explained
from cluster.report.sections.texts import Chosen, choose_features
from cluster.report.sections.ways import Ways, is_control
from cluster.stores import Store, make_store
from schemas.plans import StageSpec
from tests.made_up_saes import publish_rows, publish_sweep, save_run
from tests.made_up_texts import WAYS, name_of, publish_texts_of
from tests.pages import EXTRACT, Checker, check_page, copy_of, dump_dom, images_of, render
from tests.published import publish_numbers, run_spec

LATENTS = 40
TOPK, HEATMAPS, STEERING, INFORMED, _, RANDOM = WAYS


class Made:
    """A store with one described SAE whose living features are explained, and the stages of these texts."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = make_store(str(folder))
        assert run_spec(self.store, EXTRACT).exit_code == 0
        images = images_of(self.store)
        self.sae = publish_sweep(self.store, images, latents=LATENTS, steps=10, seeds=1)[:2]
        self.features = [feature for feature in range(LATENTS) if feature % 10 != 9]
        shown = {f: [images[(f * 5 + rank * 3) % len(images)]["image_id"] for rank in range(5)] for f in self.features}
        self.stages = publish_texts_of(self.store, self.sae[0].digest, self.sae[1].digest, self.features, shown)
        save_run(self.store, "texts-00001", [*self.sae, *self.stages])

    def without(self, folder: Path, *outputs: str) -> Store:
        """A copy whose run stands for all stages but those of some outputs."""
        store = copy_of(Path(self.store.uri), folder)
        left: list[StageSpec] = [stage for stage in self.stages if stage.output not in outputs]
        save_run(store, "less-00001", [*self.sae, *left])
        return store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made") / "lake")


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return render(made.store)


def sections(page: str) -> dict[str, str]:
    parts = re.split(r'<section id="(\w+)"', page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def words(part: str) -> str:
    return Checker(f"<div>{part[part.index('>') + 1 : part.index('</section>')]}</div>").words


def card(page: str, feature: int) -> str:
    found = re.search(rf'<article class="card explained-card" id="x-0-{feature}".*?</article>', page)
    assert found is not None
    return found[0]


# ---------------------------------------------------------------- the file


def test_the_page_has_the_three_sections_and_is_whole(page: str) -> None:
    check_page(page)
    assert [s for s in sections(page) if s in ("explained", "explanations", "textmap")] == [
        "explained",
        "explanations",
        "textmap",
    ]
    assert "This part could not be read" not in page


def test_equal_data_give_equal_bytes(made: Made, page: str) -> None:
    assert render(made.store) == page


# ---------------------------------------------------------------- scores


def test_every_way_has_a_row_of_means_with_interval_and_n_and_controls_are_last(made: Made, page: str) -> None:
    part = sections(page)["explained"]
    table = part[part.index("explained-scores") : part.index("</table>")]
    rows = re.findall(r'<tr><td data-sort="([^"]*)".*?</tr>', table, re.DOTALL)
    assert rows == ["Top-k masks", "Steering", "Informed masks", "Top-k heatmaps", "Informed heatmaps", "Steering, random direction"]  # fmt: skip
    where = {"metric": ["iou"], "method": ["topk"], "masking": ["masks"]}
    (row,) = load_report(made.store, "texts-00001").table("explanation_summary", None, where).to_pylist()
    assert f"{row['low']:.3f} to {row['high']:.3f}, n {len(made.features)}" in table
    assert table.count(" control</span>") == 1 and " control</span>" in table.rpartition("<tr>")[2]


def test_the_best_is_starred_and_no_control_ever_is(made: Made, page: str) -> None:
    part = sections(page)["explained"]
    table = part[part.index("explained-scores") : part.index("</table>")]
    starred = {re.findall(r'data-sort="([^"]*)"', row)[0]: row.count("★") for row in table.split("<tr>")[2:]}
    rows = load_report(made.store, "texts-00001").table("explanation_summary").to_pylist()
    for metric in ("iou", "clip"):
        of = {
            (r["method"], r["masking"]): r["value"] for r in rows if r["metric"] == metric and r["direction"] == "sae"
        }
        assert max(of, key=lambda key: of[key]) == ("informed", "masks")  # they were made so
    assert starred["Informed masks"] >= 2 and sum(starred.values()) == 6
    assert starred["Steering, random direction"] == 0


def test_tests_are_told_in_words_by_the_paired_test_after_correction(made: Made, page: str) -> None:
    rows = load_report(made.store, "texts-00001").table("explanation_tests").to_pylist()
    found = {
        r["method_a"]: r
        for r in rows
        if (r["test"], r["metric"], r["masking"], r["method_b"]) == ("wilcoxon", "clip", "masks", "informed")
    }
    assert found["topk"]["p_holm"] < 0.001 and found["steering"]["p_holm"] < 0.001
    assert "CLIP (masks): Informed beats Top-k (p < 0.001) and Steering (p < 0.001)" in words(
        sections(page)["explained"]
    )


def test_who_has_more_is_said_by_the_unpaired_test_and_whether_it_is_real_by_the_corrected_paired_one() -> None:
    def row(test: str, a: str, b: str, p: float | None, p_holm: float | None) -> dict[str, Any]:
        return {
            "masking": "masks",
            "metric": "iou",
            "test": test,
            "method_a": a,
            "method_b": b,
            "p": p,
            "p_holm": p_holm,
        }

    unpaired = [
        ("topk", "steering", 0.98),
        ("steering", "topk", 0.02),
        ("topk", "informed", 0.9),
        ("informed", "topk", 0.1),
    ]
    unpaired += [("steering", "informed", 0.3), ("informed", "steering", 0.7)]
    paired = [row("wilcoxon", "topk", "steering", 0.001, 0.003), row("wilcoxon", "topk", "informed", 0.03, 0.06)]
    few = row("wilcoxon", "steering", "informed", None, None)
    found = Contests([*(row("mann_whitney", a, b, p, p) for a, b, p in unpaired), *paired, few])
    assert found.groups == [("masks", "iou")]
    assert found.verdict("masks", "iou") == (
        "Steering beats Top-k (p = 0.003); Informed and Top-k are not told apart (p = 0.06); "
        "Steering and Informed are not told apart (too few features)."
    )


def test_the_chosen_alpha_is_a_dot_on_its_line_and_said_beside_its_name(page: str) -> None:
    part = sections(page)["explained"]
    chart = part[part.index("IoU against alpha") :].partition("</figure>")[0]
    line = re.search(r'<path d="([^"]*)" class="line"[^>]*></path><circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert line is not None
    points = re.findall(r"([\d.]+) ([\d.]+)", line[1])
    assert points[2] == (line[2], line[3])  # of five alphas the third was chosen
    assert min(points, key=lambda p: float(p[1])) == points[2]  # the largest IoU is drawn highest
    assert chart.count("alpha 1</span>") == 3


def test_two_choices_of_an_alpha_for_one_way_are_told_apart_by_what_the_spec_says(made: Made, tmp_path: Path) -> None:
    store = copy_of(Path(made.store.uri), tmp_path / "lake")
    choice = next(s for s in made.stages if s.output == "alphas" and s.params["method"] == "steering")
    rows = (
        load_report(made.store, "texts-00001").table("explanation_alphas", None, {"stage": choice.digest}).to_pylist()
    )
    other = StageSpec(**{**choice.model_dump(), "params": {**choice.params, "validation": 7}})
    publish_rows(store, other, {"explanation_alphas": [{**row, "stage": other.digest} for row in rows]})
    save_run(store, "two-00001", [*made.sae, *made.stages, other])
    part = sections(render(store, "two-00001"))["explained"]
    chart = part[part.index("IoU against alpha") :].partition("</figure>")[0]
    names = [line["name"] for line in json.loads(re.search(r'class="hover">(.*?)</script>', chart)[1])["lines"]]  # type: ignore[index]
    assert len(names) == 4 == len(set(names)), names
    assert "Steering, validation 7" in names
    assert "validation 7" in part[part.index("All alphas that were tried") :]


def test_agreement_has_a_curve_per_method_and_says_how_many_features_are_left(made: Made, page: str) -> None:
    part = sections(page)["explained"]
    chart = part[part.index("Features left, masks") :].partition("</figure>")[0]
    told = json.loads(re.search(r'class="hover">(.*?)</script>', chart)[1])  # type: ignore[index]
    assert [line["name"] for line in told["lines"]] == ["Top-k masks", "Steering", "Informed masks"]
    assert told["lines"][0]["value"][:2] == [str(len(made.features)), str(len(made.features) * 7 // 8)]


def test_texts_that_nobody_scored_say_so_and_still_have_alphas_and_cards(made: Made, tmp_path: Path) -> None:
    page = render(made.without(tmp_path / "lake", "summary", "map"), "less-00001")
    check_page(page)
    told = words(sections(page)["explained"])
    assert "Nobody has scored these texts yet" in told and "IoU against alpha" in told
    first = card(page, 0)
    assert "A red object" in first and "★" not in first and "IoU" not in first and "passed" not in first
    assert "Explanations: map (no rows in explanation_map)" in Checker(page).words


# ---------------------------------------------------------------- cards


def test_a_card_has_the_texts_of_all_ways_with_scores_and_stars_at_the_chosen_ones(made: Made, page: str) -> None:
    first = card(page, 8)
    shape, colour = name_of(8)
    said = re.findall(r'<li(?: class="(\w+)")?><span><span class="method.*?<span class="text">([^<]*)', first)
    assert [text for _, text in said] == [
        f"A {colour} object",
        f"Is a {shape}",
        f"A {colour} {shape}",
        f"A {colour} object",
        f"A {colour} {shape}",
        "A grey background",
    ]
    data = load_report(made.store, "texts-00001")
    chosen = data.table("selected_explanations", None, {"feature": [8]}).to_pylist()
    assert [kind for kind, _ in said].count("chosen") == len({(r["method"], r["masking"]) for r in chosen})
    assert said[-1][0] == "control"
    (score,) = data.table("explanation_scores", None, {"feature": [8], "method": ["informed"], "masking": ["masks"]}).to_pylist()  # fmt: skip
    assert f"IoU <b>{score['iou']:.3f}</b>" in first
    assert f'data-passed="{"yes" if any(r["passed"] for r in chosen) else "no"}"' in first


def test_a_tie_is_called_one_at_its_star_and_is_no_win_of_a_method(page: str) -> None:
    """Every sixteenth choice was drawn among equals."""
    tied, won = card(page, 16), card(page, 8)
    assert (
        'data-method="tie"' in tied
        and "★<" in tied
        and "> tie among masks" in tied
        and "a tie: others have the same" in tied
    )
    assert 'data-method="tie"' not in won and " tie among" not in won and "★<" in won
    assert '<option value="tie">chosen: a tie</option>' in page


def test_a_text_has_its_labels_below_it_where_somebody_gave_them(made: Made, page: str, tmp_path: Path) -> None:
    first = card(page, 8)
    told = re.findall(r'<span class="text">([^<]*).*?</li>', first)
    of = dict(zip(told, re.findall(r'<span class="text">.*?</li>', first), strict=True))
    low, high = (
        "abstraction: low-level visual feature, context: other",
        "abstraction: high-level visual feature, context: background",
    )
    assert low in of[told[0]] and high in of[told[1]]
    assert 'class="labels"' not in of["A grey background"]  # a control, whose labels are null
    note = "Abstraction and context are labels of the text alone"
    assert note in words(sections(page)["explanations"])
    unscored = render(made.without(tmp_path / "lake", "summary", "map"), "less-00001")
    assert 'class="labels"' not in unscored and note not in unscored


def test_a_feature_without_a_text_says_why(page: str) -> None:
    assert card(page, 6).count("no text: refused") == 2  # steering and its control
    assert card(page, 8).count("no text") == 0


def test_a_card_shows_the_images_with_maps_the_best_concept_and_where_it_lies_among_all(made: Made, page: str) -> None:
    first = card(page, 8)
    assert first.count("<canvas") == 5 and first.count('data-grid="8 8"') == 5
    data = load_report(made.store, "texts-00001")
    rows = data.table("sae_selectivity", None, {"stage": made.sae[1].digest, "feature": [8]}).to_pylist()
    best = max(rows, key=lambda row: row["auroc"])
    assert f"<b>{best['concept']}</b> best: AUROC {best['auroc']:.3f}" in first
    alive = data.table("sae_features", ["feature", "density"], {"stage": made.sae[1].digest, "is_dead": [False]}).to_pylist()  # fmt: skip
    density = {row["feature"]: row["density"] for row in alive}
    less = sum(value < density[8] for value in density.values()) / len(density)
    assert f"more than {100 * less:.1f} % of features" in first
    assert "decoder norm" not in first  # all are alike


def test_filters_are_those_that_keep_some_and_not_all(page: str) -> None:
    part = sections(page)["explanations"]
    assert re.findall(r'data-filter="(\w+)"', part) == ["method", "passed", "cluster"]
    assert "red object" in re.search(r'data-filter="cluster">(.*?)</select>', part)[1]  # type: ignore[index]


def test_of_many_features_half_of_the_cards_have_the_best_texts_and_the_search_knows_the_others(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_features, "PLANS", ((10, 2),))
    page = render(made.store, "texts-00001")
    cards = {int(n) for n in re.findall(r'id="x-0-(\d+)"', page)}
    rows = load_report(made.store, "texts-00001").table("selected_explanations", ["feature", "iou"]).to_pylist()
    best = list(dict.fromkeys(r["feature"] for r in sorted(rows, key=lambda r: (-r["iou"], r["feature"]))))[:5]
    assert len(cards) == 10 and set(best) <= cards
    told = json.loads(re.search(r'id="cardless-texts">(.*?)</script>', page)[1])  # type: ignore[index]
    assert {row[1] for row in told["rows"]} == set(made.features) - cards and told["missing"] == 0
    assert f"{len(made.features)} explained features, 10 with a card." in words(sections(page)["explanations"])
    monkeypatch.setattr(explain_features, "INDEX_BYTES", 100)
    told = json.loads(re.search(r'id="cardless-texts">(.*?)</script>', render(made.store, "texts-00001"))[1])  # type: ignore[index]
    assert told["missing"] == len(made.features) - 10 - len(told["rows"]) > 0


def test_features_are_chosen_without_repeats_and_the_same_every_time() -> None:
    chosen = [Chosen(f, vote, TOPK, 0, "a", f / 100, True) for f in range(100) for vote in ("masks", "heatmaps")]
    kept = choose_features(range(100), chosen, 20)
    assert kept == sorted(set(kept)) and len(kept) == 20 and set(range(90, 100)) <= set(kept)
    assert kept == choose_features(range(100), chosen, 20)
    assert choose_features(range(5), chosen, 20) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- ways


def test_names_say_what_sets_ways_apart_and_controls_keep_the_colour_of_their_method() -> None:
    strong = STEERING._replace(alpha_asked="4")
    ways = Ways([STEERING, strong, RANDOM, TOPK])
    assert [ways.name(way) for way in ways.ways] == [
        "Top-k masks",
        "Steering, alpha 4",
        "Steering, alpha auto",
        "Steering, random direction",
    ]
    assert ways.colour(RANDOM) % 8 == ways.colour(STEERING) % 8 != ways.colour(TOPK)
    assert len({ways.colour(way) for way in ways.ways}) == 4
    assert ["hollow" in ways.label(way) for way in ways.ways] == [False, False, False, True]
    assert is_control(STEERING._replace(alpha_asked="0")) and not is_control(TOPK)


def test_summaries_of_the_same_texts_are_told_apart(made: Made, tmp_path: Path) -> None:
    store = copy_of(Path(made.store.uri), tmp_path / "lake")
    summary = next(stage for stage in made.stages if stage.output == "summary")
    other = StageSpec(**{**summary.model_dump(), "params": {**summary.params, "min_iou": 0.4}})
    publish_rows(store, other, {"explanation_summary": []})
    save_run(store, "two-00001", [*made.sae, *made.stages, other])
    found = load_explained(load_report(store, "two-00001"))
    assert sorted(one.title.rpartition(" · ")[2] for one in found) == ["min iou 0.2", "min iou 0.4"]
    told = words(sections(render(store, "two-00001"))["explained"])
    assert "No feature was scored." in told


# ---------------------------------------------------------------- the map


def textmap(page: str) -> dict[str, Any]:
    found = re.search(r'class="texts">(.*?)</script>', page)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


def test_the_map_draws_every_text_in_the_colour_of_its_cluster_with_sizes_in_the_legend(made: Made, page: str) -> None:
    told, part = textmap(page), sections(page)["textmap"]
    points = load_report(made.store, "texts-00001").table("explanation_map").to_pylist()
    drawn = {
        (cluster["topic"], flat[i + 2], told["texts"][flat[i + 3]])
        for cluster in told["clusters"]
        for flat in [cluster["points"]]
        for i in range(0, len(flat), 5)
    }
    assert drawn == {(f"{name_of(p['feature'])[1]} object", p["feature"], p["text"]) for p in points}
    paths = re.findall(r'<g class="s(\d)" data-series="(\d)"><path d="([^"]*)" class="spots"', part)
    assert [path.count("h0") for *_, path in paths] == [len(c["points"]) // 5 for c in told["clusters"]]
    assert [colour for colour, *_ in paths] == ["0", "1", "2", "3"]
    sizes = re.findall(r'([\w ]+)<span class="remark">(\d+)</span></button>', part)
    assert sizes == [(c["topic"], str(len(c["points"]) // 5)) for c in told["clusters"]]
    left = {flat[0] for cluster in told["clusters"] for flat in [cluster["points"]]}
    assert all(0 <= x <= explain_map.WIDE for x in left)


def test_a_map_of_more_points_than_a_page_holds_is_thinned_and_says_so(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(len(c["points"]) for c in textmap(render(made.store, "texts-00001"))["clusters"]) // 5
    monkeypatch.setattr(explain_map, "MAP_BYTES", 600)
    page = render(made.store, "texts-00001")
    drawn = sum(len(c["points"]) for c in textmap(page)["clusters"]) // 5
    every = re.search(r"One of (\d+) points is drawn", page)
    assert every is not None and whole / int(every[1]) <= drawn <= whole / int(every[1]) + 4 and drawn < whole


def test_labels_over_the_map_do_not_cover_each_other() -> None:
    xs, ys = np.array([100.0, 101.0]), np.array([52.0, 53.0])
    labels = explain_map._labels([(0, "small", xs, ys), (1, "large", np.tile(xs, 3), np.full(6, 50.0)), (2, "far", xs, ys + 200)])  # fmt: skip
    assert [re.findall(r">(\w+)</text></g>", label) for label in labels] == [["large"], ["far"]]


def test_a_page_without_explanations_has_none_of_it(tmp_path: Path) -> None:
    page = render(publish_numbers(tmp_path / "lake"))
    assert "Explanations: features (no rows in explanations)" in Checker(page).words
    assert "textmap" not in page


# ---------------------------------------------------------------- in a browser


@pytest.mark.browser
def test_a_search_looks_at_what_one_way_says_and_filters_keep_what_was_chosen(page: str, tmp_path: Path) -> None:
    script = """
    const root = $('#explanations .browser'), told = [];
    const set = (selector, value) => { const f = $(selector, root); f.value = value; f.dispatchEvent(new Event('input')); };
    const found = () => told.push($('.found', root).textContent);
    set('.find', 'circle'); found();
    set('[data-within]', 'by1'); found();
    set('[data-within]', 'by0'); found();
    set('[data-within]', 'words'); set('.find', '#8'); found();
    set('.find', ''); set('[data-filter=method]', 'steering'); found();
    document.body.dataset.told = told.join(', ');"""
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script))
    assert found is not None
    every, steering, topk, one, chosen = (text.split()[0] for text in found[1].split(", "))
    circles = [f for f in range(LATENTS) if f % 10 != 9 and f % 4 == 0]
    assert int(every) == len(circles) and int(topk) == 0 and one == "1"
    assert int(steering) == len([f for f in circles if f % 7 != 6])
    assert int(chosen) == len(re.findall(r'data-method="[^"]*steering', page))


@pytest.mark.browser
def test_a_point_says_its_text_and_a_click_or_the_keyboard_leads_to_its_card(page: str, tmp_path: Path) -> None:
    script = """
    const svg = $('.textmap .plot > svg'), told = [];
    const [x, y, feature] = JSON.parse($('.textmap script.texts').textContent).clusters[0].points;
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const at = { clientX: box.left + x * scale + 1, clientY: box.top + y * scale, bubbles: true };
    svg.dispatchEvent(new PointerEvent('pointermove', at));
    told.push($('#tip').textContent.replaceAll('\\n', ' '));
    svg.dispatchEvent(new MouseEvent('click', at));
    setTimeout(() => {
      told.push(location.hash, document.activeElement.id);
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
      told.push($('#tip b').textContent.trim());
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
      setTimeout(() => { told.push(location.hash); document.body.dataset.told = told.join('|'); }, 300);
    }, 300);"""
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script))
    assert found is not None
    said, hash_, focused, walked, entered = found[1].split("|")
    feature = textmap(page)["clusters"][0]["points"][2]
    assert said.startswith(f"#{feature} ") and "object" in said
    assert hash_ == f"#x-0-{feature}" and focused == f"x-0-{feature}"
    assert walked != f"#{feature}" and entered == f"#x-0-{walked.removeprefix('#')}"


@pytest.mark.browser
def test_a_feature_without_a_card_is_found_by_its_text_and_from_the_map(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_features, "PLANS", ((4, 1),))
    page = render(made.store, "texts-00001")
    told = json.loads(re.search(r'id="cardless-texts">(.*?)</script>', page)[1])  # type: ignore[index]
    feature, text = next((row[1], told["texts"][row[2]]) for row in told["rows"])
    script = f"""
    const f = $('#explanations .find');
    f.value = '#{feature}'; f.dispatchEvent(new Event('input'));
    const rows = $$('#explanations .cardless-texts tbody tr');
    document.body.dataset.told = [rows.length, rows[0].textContent, $('#explanations .cardless-texts details').open].join('|');"""
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script))
    assert found is not None
    n, row, is_open = found[1].split("|")
    assert n == "1" and row.startswith(f"#{feature}{text}") and is_open == "true"


@pytest.mark.browser
def test_masks_cover_what_the_feature_is_not_active_on(page: str, tmp_path: Path) -> None:
    script = """
    const tile = $('#explanations .card:not([hidden]) canvas.tile');
    const black = () => { const { data } = tile.getContext('2d').getImageData(0, 0, tile.width, tile.height); let n = 0; for (let i = 0; i < data.length; i += 4) n += data[i] + data[i + 1] + data[i + 2] === 0; return n / (data.length / 4); };
    tile.scrollIntoView();
    setTimeout(() => {
      $('#explanations .as-masks').click();
      setTimeout(() => {
        const zero = [...mapOf(tile)].filter((value) => value === 0).length / mapOf(tile).length;
        document.body.dataset.told = [black(), zero, $('.as-masks').getAttribute('aria-pressed')].join('|');
      }, 400);
    }, 700);"""
    found = re.search(r'data-told="([^"]*)"', dump_dom(page, tmp_path, script))
    assert found is not None
    after, zero, pressed = found[1].split("|")
    assert 0.5 < float(zero) < 1 and abs(float(after) - float(zero)) < 0.05 and pressed == "true"
