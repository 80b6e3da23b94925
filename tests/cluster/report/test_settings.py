"""What differs in its seed alone is one thing to a report, and what differs in anything else never is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.report.data import ReportData, load_report
from cluster.report.sections.attention import load_maps
from cluster.report.sections.by_class import load_classes
from cluster.report.sections.effects import Setting, load_effects
from cluster.report.sections.judged import Judgements, pairs_once
from cluster.report.sections.places import Place
from cluster.report.sections.settings import Settings
from cluster.report.sections.variants import Variants, is_truth
from cluster.stores import Store, make_store
from schemas.intervene import Change
from schemas.plans import StageSpec
from tests.made_up_saes import publish_rows, save_run, stage_of
from tests.made_up_units import MODELS, SITE, Tables, make_effects, make_maps, make_names, make_scores, reading
from tests.pages import Checker, check_page, render

NEURONS = Place(MODELS[0], SITE, None)
OURS, OTHER = "miclip in+out", "netdissect"
KEYS = {"model": MODELS[0], "site": SITE, "sae": None, "unit_kind": "neurons"}
REMOVE = Change(beta=0.0)


class Made:
    """Stages that are published one by one, and then the report of them."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = make_store(str(folder / "lake"))
        self.stages: list[StageSpec] = []

    def add(self, kind: str, tables: Tables, inputs: Mapping[str, str] = {}, **params: Any) -> str:
        """The digest of a new stage."""
        self.stages.append(reading(stage_of(kind, kind, site=SITE, **params), inputs))
        return publish_rows(self.store, self.stages[-1], tables)

    def describe(self, seed: int | None = 0, variant: str = OURS, **params: Any) -> str:
        keys = {**KEYS, "variant": variant, "seed": seed}
        return self.add("describe", make_names(keys, 8), variant=variant, seed=seed, **params)

    def intervene(
        self, dacc: float, units: str, seed: int | None = 0, variant: str = OURS, labels: str = "", **params: Any
    ) -> str:
        """One with this effect of removal."""
        tables = make_effects({**KEYS, "variant": variant, "seed": seed})
        for row in tables["intervention_summary"]:
            row["dacc"] = dacc
        return self.add(
            "intervene", tables, {"units": units, "labels": labels}, variant=variant, seed=seed, **{"tau": 5, **params}
        )

    def report(self) -> ReportData:
        save_run(self.store, "made-00001", self.stages)
        return load_report(self.store)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def removed(made: Made) -> dict[str, tuple[float, int]]:
    """Method -> effect of removal and seeds, of the one setting that there is."""
    ((effects, _),) = load_effects(made.report()).values()
    return {name: (of[REMOVE].on.value, of[REMOVE].seeds) for name, of in effects.items()}


# ---------------------------------------------------------------- interventions


def test_seeds_of_one_method_are_averaged(made: Made) -> None:
    for seed, dacc in ((0, -10.0), (1, -30.0)):
        made.intervene(dacc, made.describe(seed), seed)
    assert removed(made) == {OURS: (-20.0, 2)}


def test_units_of_lists_of_two_lengths_are_two_methods_of_one_colour(made: Made) -> None:
    units = made.describe()
    for tau, dacc in ((1, -10.0), (5, -30.0)):
        made.intervene(dacc, units, tau=tau)
    assert removed(made) == {f"{OURS} · tau 1": (-10.0, 1), f"{OURS} · tau 5": (-30.0, 1)}
    variants = Variants(made.report())
    assert {variants.colour(name) for name in removed_names(made)} == {variants.colour(OURS)}
    assert not any(map(is_truth, removed_names(made)))


def removed_names(made: Made) -> list[str]:
    return [name for effects, _ in load_effects(load_report(made.store)).values() for name in effects]


def test_what_is_read_tells_methods_apart_and_their_seeds_stay_together(made: Made) -> None:
    for template, dacc in (("a {}", -10.0), ("the {}", -30.0)):
        for seed in (0, 1):
            made.intervene(dacc - seed, made.describe(seed, templates=[template]), seed)
    assert removed(made) == {f"{OURS} · templates a {{}}": (-10.5, 2), f"{OURS} · templates the {{}}": (-30.5, 2)}


def test_seeds_of_two_stages_that_differ_are_no_seeds_of_one(made: Made) -> None:
    for seed, tau in ((0, 1), (1, 5)):
        made.intervene(-10.0 * tau, made.describe(seed), seed, tau=tau)
    assert removed(made) == {f"{OURS} · tau 1": (-10.0, 1), f"{OURS} · tau 5": (-50.0, 1)}


def test_other_images_are_another_setting_with_its_own_classes(made: Made) -> None:
    images = [
        StageSpec(kind="index_images", method=1, subject=f"world:seed={s}", output="images", params={}) for s in (1, 2)
    ]
    units = made.describe()
    for index, dacc in zip(images, (-10.0, -30.0), strict=True):
        publish_rows(made.store, index, {"images": []})
        made.stages.append(index)
        made.intervene(dacc, units, labels=index.digest)
    data = made.report()
    found = load_effects(data)
    assert {s.words: of[OURS][REMOVE].on.value for s, (of, _) in found.items()} == {
        ", changed at all tokens, labels world:seed=1": -10.0,
        ", changed at all tokens, labels world:seed=2": -30.0,
    }
    ((effects, _), _) = found.values()
    (stage,) = effects[OURS][REMOVE].stages
    classes = load_classes(data, {stage: OURS})
    assert {c.images for c in classes} == {20} and classes[0].effects.keys() == {REMOVE, Change(beta=2.0)}
    text = render(made.store)
    check_page(text)
    assert text.count("Class by class (8)") == 2 and "This part could not be read" not in text


def test_a_setting_says_where_units_were_changed_if_they_were_found_elsewhere() -> None:
    def words(site: str, positions: str) -> str:
        return Setting(Place(MODELS[0], site, None), "keep", positions).words

    assert words("resid_post.3@patch:mean", "all") == ", changed at all tokens"
    assert words("resid_post.3@patch:mean", "patch") == words("stage.3@map", "all") == ""
    assert words("resid_post.3@patch", "cls") == ", changed at cls tokens"


def test_without_a_difference_that_can_be_said_names_of_the_spec_tell_apart_and_then_digests(made: Made) -> None:
    stages = [made.add("intervene", {"intervention_eval": []}, {"units": letter * 20}) for letter in "ab"]
    assert Settings(made.report()).tell(stages) == [f"intervene, {stage[:8]}" for stage in stages]


# ---------------------------------------------------------------- judgements


def judge(made: Made, tables: Tables, read: list[str], **params: Any) -> str:
    return made.add("evaluate", tables, {f"intervene.{n}": stage for n, stage in enumerate(read)}, **params)


def test_each_evaluate_stage_judges_what_it_read(made: Made) -> None:
    lists = [[made.intervene(-10.0, made.describe(0, v), 0, v, tau=tau) for v in (OURS, OTHER)] for tau in (1, 5)]
    real, unclear = make_scores(KEYS), make_scores(KEYS)
    for row in unclear["method_tests"]:
        row["p_holm"] = 1.0
    judges = [judge(made, tables, read) for tables, read in zip((unclear, real), lists, strict=True)]
    tests = Judgements(made.report())
    assert [tests.judge_of(read) for read in lists] == judges and tests.judge_of(["nobody"]) is None
    contests = [tests.contest(j, NEURONS, "dacc x0 keep", OURS, "less") for j in judges]
    assert [c.beats for c in contests] == [(), (OTHER,)] and [len(c.against) for c in contests] == [3, 3]
    assert tests.contest(judges[1], NEURONS, "dacc x0 keep", OURS).beaten_by == (OTHER,)
    assert len(pairs_once(tests.rows)) == len(tests.rows) == len(real["method_tests"]) * 2


def test_of_several_judges_of_the_same_the_one_that_compared_most(made: Made) -> None:
    units = made.describe()
    read = [made.intervene(-10.0, units, tau=tau) for tau in (1, 2, 3)]
    judges = [judge(made, make_scores(KEYS), read[:n]) for n in (1, 2, 3)]
    tests = Judgements(made.report())
    assert tests.judge_of(read[:1]) == judges[2]


def test_two_evaluate_stages_have_their_own_tables_and_titles(made: Made) -> None:
    units = [made.describe(0, variant) for variant in (OURS, OTHER)]
    for min_truth, added in ((0.8, 0.0), (0.95, -0.3)):
        tables = make_scores(KEYS)
        for row in tables["method_scores"]:
            row["value"] += added
        judge(made, tables, units, min_truth=min_truth)
    made.report()
    text = render(made.store)
    check_page(text)
    part = text[text.index('<section id="methods"') :].partition("</section>")[0]
    assert re.findall(r"<h3>([^<]*)</h3>", part)[:2] == [
        f"{MODELS[0]} {SITE} · neurons · min truth {least}" for least in (0.8, 0.95)
    ]
    assert re.findall(r"<b>([\d.]+) ★</b>", part) == ["0.900", "0.855", "0.540", "0.600", "0.555", "0.240"]
    assert "2 seeds" not in Checker(f"{part}</section>").words


# ---------------------------------------------------------------- maps


def test_maps_of_two_lists_are_not_mixed(made: Made) -> None:
    images = [{"image_id": f"{i:032x}", "image_index": i, "uri": f"world:{i}"} for i in range(4)]
    for tau in (1, 5):
        rows = make_maps({**KEYS, "variant": OURS, "seed": 0}, images)
        made.add("attention_maps", {"attention_maps": [{**row, "units": [tau]} for row in rows]}, tau=tau)
    maps = load_maps(made.report())
    assert [(of.variant, {tuple(row["units"]) for row in of.rows("model")}) for of in maps] == [
        (f"{OURS} · tau 1", {(1,)}),
        (f"{OURS} · tau 5", {(5,)}),
    ]
