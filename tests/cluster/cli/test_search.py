"""`miclip search`: what is found by a query, what is filtered, and what there is where nothing is found."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.stores.base import Store, make_store
from jobs.explained import about
from jobs.files import hash_tree
from jobs.map_explanations.plan import make_plans
from jobs.protocol import Cell, Known
from miclip_core.zoo.load import inspect_model
from schemas.explain_specs import MapExplanationsSpec
from schemas.plans import Plan, StageSpec
from schemas.refs import ModelRef
from schemas.tables import TABLES
from tests.made_up_descriptions import publish_rows, run_plans
from tests.made_up_explanations import MODEL, RANDOM, SAE, SITE, STEERING, TOPK, VLM, publish_summary, publish_texts
from tests.made_up_saes import save_run
from tests.miclip_core.evaluate.tiny_sentences import make_sentence_encoder
from tests.published import publish_numbers

CLIP, OTHER = "demo:clip-p8", "demo:clip-p8-b"
EARLIER = "resid_post.1@patch"
SHAPES = {0: "a red circle", 1: "a circle", 2: "a square", 3: "a red circle", 4: "a blue square", 5: None}
COLOURS = {0: "a red object", 1: "a green object", 2: "a blue object"}


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(autouse=True)
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICLIP_STORE", raising=False)


def make_map(store: Store, read: list[Plan], clip: str = CLIP, files: Mapping[str, str] = {}, **spec: Any) -> Plan:
    """The only map of a stage that reads these, published. files: folder -> sha256, if the spec names one."""
    reads = {f"stage{n}": (one,) for n, one in enumerate(read)}
    known = Known({model: inspect_model(ModelRef.parse(model)) for model in (MODEL, clip)}, {}, files)
    cell = Cell("map", MapExplanationsSpec(reads=tuple(reads), **spec), MODEL, clip=clip, reads=reads)
    (plan,) = make_plans(cell, known)
    assert not run_plans(store, [plan]).board.failed
    return plan


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one pipeline: the later one has a map of all texts at one site, of chosen ones and of all at another."""
    folder = tmp_path_factory.mktemp("search")
    store = make_store(str(folder))
    steered, shown = publish_texts(store, STEERING, SHAPES), publish_texts(store, TOPK, COLOURS)
    control = publish_texts(store, RANDOM, {0: "a red circle", 1: "a red circle"})
    scored = [
        (0, STEERING, "", "a red circle", 0.5),
        (3, STEERING, "", "a red circle", 0.1),
        (0, TOPK, "", "a red object", 0.3),
    ]
    summary = publish_summary(store, [steered, shown], [], scored)
    old = make_map(store, [publish_texts(store, STEERING, {9: "an old red circle"}, sae="0" * 20)], texts="all")
    early = [publish_texts(store, one, {7: "a star"}, site=EARLIER, sae="ea" * 10) for one in (STEERING,)]
    chosen = publish_summary(store, early, [(7, STEERING, "masks", "a star", 0.9)])
    maps = [
        make_map(store, [steered, shown, control], texts="all"),
        make_map(store, [chosen]),
        make_map(store, early, texts="all"),
    ]
    save_run(store, "demo-00001", [old.stage])
    save_run(store, "demo-00002", [p.stage for p in (steered, shown, control, summary, chosen, *early, *maps)])
    return folder


def hits(lake: Path, *words: object) -> list[dict[str, Any]]:
    result = miclip("search", *words, "--store", lake, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["hits"]


def refusal(lake: Path, *words: object) -> str:
    result = miclip("search", *words, "--store", lake)
    assert result.exit_code == 2 and not result.stdout, result.output
    return result.stderr


@pytest.mark.parametrize("text", ["a red circle", "a green object", "a star"])
def test_a_stored_text_finds_itself_first_with_cosine_one(lake: Path, text: str) -> None:
    first, *others = hits(lake, text)
    assert first["text"] == text and first["score"] == pytest.approx(1, abs=1e-5)
    assert all(one["score"] <= first["score"] + 1e-6 for one in others)


def test_hits_say_what_they_are_and_controls_and_earlier_runs_are_not_searched(lake: Path) -> None:
    found = json.loads(miclip("search", "a red circle", "--top", 100, "--store", lake, "--json").stdout)
    assert (found["query"], found["encoder"], found["texts"], len(found["hits"])) == ("a red circle", CLIP, 9, 9)
    first, second = found["hits"][:2]
    assert [(one["feature"], one["iou"]) for one in (first, second)] == [(0, 0.5), (3, 0.1)]
    expected = {"model": MODEL, "site": SITE, "sae": f"sae:{SAE}", "vlm": VLM, "method": "steering", "direction": "sae"}
    assert expected.items() <= first.items() and "red" in first["topic"]
    assert {one["iou"] for one in found["hits"] if one["text"] == "a circle"} == {None}
    assert [one["text"] for one in hits(lake, "red", "--all", "--top", 100)].count("an old red circle") == 1


def test_people_see_a_table_and_what_embedded_the_texts(lake: Path) -> None:
    text = miclip("search", "a red circle", "--store", lake, "--top", 3).stdout
    (line,) = [line for line in text.splitlines() if "1.000" in line and "0.50" in line]
    assert all(word in line for word in (MODEL, SITE, "steering", "a red circle"))
    assert "among 9 texts" in text and CLIP in text
    assert len([line for line in text.splitlines() if MODEL in line and SITE in line]) == 3


@pytest.mark.parametrize(
    ("words", "features"),
    [
        (("--method", "topk"), {0, 1, 2}),
        (("--site", EARLIER), {7}),
        (("--site", "resid_post.1"), {7}),
        (("--sae", SAE[:8]), {0, 1, 2, 3, 4}),
        (("--min-iou", 0.3), {0, 7}),
        (("--min-iou", 0.4, "--method", "steering", "--site", SITE), {0}),
        (("--model", MODEL, "--vlm", VLM, "--method", "steering", "--site", SITE), {0, 1, 2, 3, 4}),
    ],
)
def test_filters_leave_what_they_name(lake: Path, words: tuple[object, ...], features: set[int]) -> None:
    assert {one["feature"] for one in hits(lake, "a red circle", "--top", 100, *words)} == features


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "demo:clip-p16"), f"there are {MODEL}"),
        (("--site", "resid_post.2"), f"there are {EARLIER}, {SITE}"),
        (("--sae", "sae:ffff"), f"sae:{SAE}"),
        (("--method", "guessing"), "there are steering, topk"),
        (("--vlm", "hf:somebody/else"), f"there are {VLM}"),
        (("--site", SITE, "--min-iou", "0.95"), "the best IoU is 0.500"),
        (("--encoder", "demo:clip-p16"), f"neither an encoder of a map nor a folder; there are {CLIP}"),
    ],
)
def test_a_filter_that_names_nothing_says_what_there_is(lake: Path, words: tuple[object, ...], said: str) -> None:
    assert said in refusal(lake, "a red circle", *words)
    assert all("give words to look for" in refusal(lake, nothing) for nothing in (" ", "!!!"))


def test_words_that_the_encoder_does_not_know_are_named(lake: Path) -> None:
    result = miclip("search", "a Zebra in the red qwerty", "--store", lake, "--json")
    found = json.loads(result.stdout)
    assert found["unknown"] == ["Zebra", "qwerty"] and found["hits"]
    assert f"{CLIP} does not know Zebra, qwerty" in " ".join(result.stderr.split())
    for known in ("a red circle", "the background, in a circle"):
        result = miclip("search", known, "--store", lake, "--json")
        assert (json.loads(result.stdout)["unknown"], result.stderr) == ([], "")


def test_a_query_without_any_word_that_the_encoder_knows_is_refused_and_words_of_texts_are_offered(lake: Path) -> None:
    for query, unknown in (("zebra", "zebra"), ("in the zebra-like qwerty", "zebra, like, qwerty")):
        said = " ".join(refusal(lake, query).split())
        assert f"{CLIP}, which embedded the texts, does not know {unknown}, and" in said
        assert "it knows, such as circle, object, red, " in said and "sentences: file:/folder" in said


def test_maps_of_one_encoder_are_searched_together_wherever_its_files_lay(tmp_path: Path) -> None:
    files = inspect_model(ModelRef.parse(CLIP)).files_sha256
    store, east = make_store(str(tmp_path / "lake")), [1.0] + [0.0] * 95
    made = []
    for sae, name in (("a" * 20, CLIP), ("b" * 20, "open_clip:ViT-B-32@file:/gone")):
        params = {"site": SITE, "encoder": files}
        made.append(
            StageSpec(
                kind="map_explanations", method=1, subject=MODEL, output="map", params=params, inputs={"sae": sae}
            )
        )
        of_text = {
            **about(made[-1]),
            **STEERING._asdict(),
            "feature": 0,
            "sequence": 0,
            "text": f"text of {sae}",
            "encoder": name,
        }
        row = {**of_text, "encoder_revision": None, "cluster": 0, "x": 0.0, "y": 0.0, "embedding": east}
        of_cluster = {**about(made[-1]), "cluster": 0, "topic": "all", "size": 1, "sample": [], "sample_texts": []}
        publish_rows(store, made[-1], {"explanation_map": [row], "explanation_clusters": [of_cluster]})
    save_run(store, "demo-00001", made)
    assert {hit["sae"] for hit in hits(tmp_path / "lake", "red", "--encoder", CLIP)} == {
        "sae:" + "a" * 20,
        "sae:" + "b" * 20,
    }
    assert gc.isenabled()


def test_where_there_is_no_map_the_way_to_one_is_said(tmp_path: Path, lake: Path) -> None:
    publish_numbers(tmp_path / "lake")
    assert "run a pipeline with a stage of kind map_explanations" in refusal(tmp_path / "lake", "red")
    found = miclip("search", "red", "--store", tmp_path / "nowhere")
    assert found.exit_code == 3 and "expected a store" in found.stderr


def test_maps_of_two_encoders_are_searched_one_at_a_time(lake: Path, tmp_path: Path) -> None:
    shutil.copytree(lake, tmp_path / "lake")
    store = make_store(str(tmp_path / "lake"))
    other = make_map(store, [publish_texts(store, STEERING, {4: "a cross"}, sae="0c" * 10)], OTHER, texts="all")
    save_run(store, "other-00001", [other.stage])
    assert f"2 encoders, whose cosines cannot be compared: {CLIP}, {OTHER}" in refusal(tmp_path / "lake", "a cross")
    (hit,) = hits(tmp_path / "lake", "a cross", "--encoder", OTHER)
    assert (hit["text"], hit["iou"]) == ("a cross", None) and hit["score"] == pytest.approx(1, abs=1e-5)
    assert len(hits(tmp_path / "lake", "a cross", "--pipeline", "demo", "--top", 100)) == 9
    assert "no run in scope has scored" in refusal(tmp_path / "lake", "a cross", "--encoder", OTHER, "--min-iou", 0)


def test_a_folder_that_embedded_the_texts_may_have_moved(tmp_path: Path) -> None:
    folder = make_sentence_encoder(tmp_path)
    store, location = make_store(str(tmp_path / "lake")), f"file:{folder}"
    read, sha256 = [publish_texts(store, STEERING, {0: "red circle", 1: "blue star"})], hash_tree(folder)
    made = make_map(store, read, files={str(folder): sha256}, sentences=location, texts="all")
    save_run(store, "demo-00001", [made.stage])
    assert hits(tmp_path / "lake", "blue star")[0]["text"] == "blue star"
    moved = folder.rename(tmp_path / "moved")
    assert (
        f"{location}: nothing at" in (said := refusal(tmp_path / "lake", "red"))
        and "name its folder with --encoder" in said
    )
    first, second = hits(tmp_path / "lake", "red circle", "--encoder", moved)
    assert (first["text"], second["text"]) == ("red circle", "blue star") and first["score"] == pytest.approx(
        1, abs=1e-5
    )
    (moved / "modules.json").write_text("[]")
    assert f"its files are those of no encoder of a map; there are {location}" in refusal(
        tmp_path / "lake", "red", "--encoder", moved
    )


def test_a_map_from_before_its_rows_had_a_revision_is_searched_too(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lake, tmp_path / "lake")
    store = make_store(str(tmp_path / "lake"))
    now = TABLES["explanation_map"]
    older = dataclasses.replace(now, columns=tuple(c for c in now.columns if c.name != "encoder_revision"))
    files = {"name": CLIP, "files": inspect_model(ModelRef.parse(CLIP)).files_sha256, "revision": None}
    params: dict[str, Any] = {"site": SITE, "encoder": files}
    stage = StageSpec(
        kind="map_explanations", method=1, subject=MODEL, output="map", params=params, inputs={"sae": "a"}
    )
    text = {**about(stage), **STEERING._asdict(), "feature": 0, "sequence": 0, "text": "from long ago", "encoder": CLIP}
    of_cluster = {**about(stage), "cluster": 0, "topic": "all", "size": 1, "sample": [], "sample_texts": []}
    rows = {
        "explanation_map": [{**text, "cluster": 0, "x": 0.0, "y": 0.0, "embedding": [1.0] + [0.0] * 95}],
        "explanation_clusters": [of_cluster],
    }
    with monkeypatch.context() as context:
        context.setitem(TABLES, "explanation_map", older)
        publish_rows(store, stage, rows)
    save_run(store, "old-00001", [stage])
    found = hits(tmp_path / "lake", "a red circle", "--top", 100)
    assert "from long ago" in {hit["text"] for hit in found} and "a red circle" in {hit["text"] for hit in found}
