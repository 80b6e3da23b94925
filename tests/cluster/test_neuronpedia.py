"""Features of an SAE as JSON lines: every feature once, its images as patches, its names by all methods with scores."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner, Result

from cluster.catalog import Catalog, Scope, open_catalog
from cluster.cli.app import app
from cluster.neuronpedia import BATCH, Exported, export_features
from cluster.stores import make_store
from schemas.errors import BadRef, UnknownTable, UsageError
from tests.made_up_lake import SITE, STEERED, WAY, A, publish, row

FEATURES = BATCH + 1
"""One more than a file takes."""


class Place(NamedTuple):
    catalog: Catalog
    sae: str
    stage: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An SAE all of whose features are dead but 0, which has images and names, and the last, which has an image without a grid."""
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    values = {"model": A, "site": SITE}
    sae = "sae:" + publish(store, "train_sae", A, SITE, sae_summary=[row("sae_summary", **values, sae="sae:x")])
    values["sae"] = sae
    dead = {"is_dead": True, "density": 0.0, "max": None, "mean": None, "histogram": [0] * 64}
    about = {"neighbours": [2, 3, 4], "neighbour_cos": [0.5, 0.25, 0.125]}
    features = [row("sae_features", **values, feature=n, **dead, **about) for n in range(FEATURES)]
    histogram = [0] * 64
    histogram[32], histogram[34] = 3, 1  # from 1 and from 2 on
    live = {"is_dead": False, "density": 0.25, "max": 2.5, "mean": 1.5, "histogram": histogram}
    features[0] |= live
    grid = {"grid_h": 2, "grid_w": 2, "map": [0.0, 0.5, 2.5, 0.0]}
    none = {"grid_h": None, "grid_w": None, "map": None}
    seen = {"image_id": "i0", "uri": "/a.png", "rank": 0, "token": 2}
    stage = publish(store, "sae_features", A, SITE, sae_features=features, sae_top_images=[
        row("sae_top_images", **values, **seen, feature=0, value=2.5, **grid),
        row("sae_top_images", **values, **seen, feature=FEATURES - 1, value=1.0, **none),
    ], sae_selectivity=[
        row("sae_selectivity", **values, feature=0, level="image", concept="colour=red", auroc=0.75, rank_in_feature=0),
        row("sae_selectivity", **values, feature=0, level="image", concept="colour=pink", auroc=0.5, rank_in_feature=3),
        row("sae_selectivity", **values, feature=1, level="image", concept="colour=blue", auroc=0.5, rank_in_feature=None),
    ])  # fmt: skip
    named = {
        **values,
        "unit_kind": "features",
        "method": "miclip",
        "variant": "miclip in",
        "direction": "describe",
        "is_dead": False,
    }
    publish(store, "describe", A, SITE, unit_concepts=[
        row("unit_concepts", **named, unit=FEATURES - 1, concept="ring", rank=0, score=0.5, seed=0),
        row("unit_concepts", **named, unit=FEATURES - 1, concept="ring", rank=1, score=0.25, seed=1),
        row("unit_concepts", **{**named, "direction": "localise"}, unit=0, concept="ring", rank=0, score=0.5, seed=0),
        row("unit_concepts", **{**named, "sae": "sae:other"}, unit=0, concept="ring", rank=0, score=0.5, seed=0),
    ])  # fmt: skip
    publish(store, "explain", A, SITE, explanations=[
        row("explanations", **values, **WAY, feature=0, status="ok", text="a red thing"),
        row("explanations", **values, **STEERED, feature=0, status="ok", text="röt"),
        row("explanations", **values, **{**WAY, "direction": "random"}, feature=0, status="ok", text="noise"),
    ])  # fmt: skip
    publish(store, "score_explanations", A, SITE, explanation_scores=[
        row("explanation_scores", **values, **WAY, feature=0, status="ok", text="a red thing", iou=0.5, clip=None, synthetic=2.0, auroc=None),
    ])  # fmt: skip
    return Place(open_catalog(store, Scope(all=True)), sae, stage)


@pytest.fixture(scope="module")
def written(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    folder = tmp_path_factory.mktemp("out") / "features"
    return folder, export_features(place.catalog, place.sae[:14], folder)


def lines(folder: Path, kind: str, batch: int) -> list[dict[str, Any]]:
    with gzip.open(folder / kind / f"batch-{batch}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_feature_is_written_once_in_files_of_1024(written, place):
    folder, exported = written
    assert exported == Exported(place.sae, A, SITE, place.stage, FEATURES, 2, 4)
    indices = [[line["index"] for line in lines(folder, "features", batch)] for batch in (0, 1)]
    assert indices == [[str(n) for n in range(BATCH)], [str(BATCH)]]
    about = json.loads((folder / "source.json").read_text())
    assert (about["modelId"], about["sourceSetName"], about["features"]) == (A, place.sae, FEATURES)
    assert {line["layer"] for line in lines(folder, "features", 0)} == {about["layer"]} == {f"{SITE}-{place.sae[4:12]}"}


def test_a_feature_has_its_figures_neighbours_after_itself_and_bars_at_the_middle_of_half_octaves(written):
    first, second, *_ = lines(written[0], "features", 0)
    assert (first["maxActApprox"], first["frac_nonzero"], first["is_dead"]) == (2.5, 0.25, False)
    assert first["freq_hist_data_bar_heights"] == [3, 0, 1]
    assert first["freq_hist_data_bar_values"] == pytest.approx([2**0.25, 2**0.75, 2**1.25])
    assert first["topkCosSimIndices"] == [0, 2, 3, 4] and first["topkCosSimValues"] == [1.0, 0.5, 0.25, 0.125]
    assert (second["maxActApprox"], second["freq_hist_data_bar_heights"], second["freq_hist_data_bar_values"]) == (
        0,
        [],
        [],
    )


def test_an_image_is_its_patches_row_by_row_or_one_value(written):
    (first,), (last,) = (lines(written[0], "activations", batch) for batch in (0, 1))
    assert first["tokens"] == ["0,0", "0,1", "1,0", "1,1"] and first["values"] == [0.0, 0.5, 2.5, 0.0]
    assert (first["maxValue"], first["maxValueTokenIndex"], first["minValue"]) == (2.5, 2, 0.0)
    assert (first["dataIndex"], first["dataSource"]) == ("i0", "/a.png")
    assert (last["tokens"], last["values"], last["maxValueTokenIndex"]) == (["image"], [1.0], 0)


def test_names_labels_and_sentences_are_explanations_with_their_scores(written):
    def told(batch: int) -> list[tuple[Any, ...]]:
        return [
            (line["index"], line["typeName"], line["explanationModelName"], line["description"],
             {score["explanationScoreTypeName"]: score["value"] for score in line["scores"]})
            for line in lines(written[0], "explanations", batch)
        ]  # fmt: skip

    assert told(0) == [
        ("0", "label image", None, "colour=red", {"auroc": 0.75}),
        ("0", "steering none all 2 p90 0", "demo:v", "röt", {}),
        ("0", "topk masks none 0 p90 0", "demo:v", "a red thing", {"iou": 0.5, "synthetic": 2.0}),
    ]
    assert told(1) == [(str(BATCH), "miclip in", None, "ring", {"score": 0.5})]


def test_the_same_features_are_the_same_bytes(written, place, tmp_path):
    export_features(place.catalog, place.sae, tmp_path / "again")
    files = sorted(path.relative_to(written[0]) for path in written[0].rglob("*.*"))
    assert len(files) == 7
    assert all((written[0] / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_features_on_other_images_are_told_apart_by_their_stage(tmp_path):
    store = make_store(str(tmp_path / "lake"))
    sae = "sae:" + publish(store, "train_sae", A, SITE, sae_summary=[row("sae_summary", sae="sae:x")])
    stages = [
        publish(store, "sae_features", A, SITE, n, sae_features=[row("sae_features", sae=sae, feature=n)])
        for n in (0, 1)
    ]
    catalog = open_catalog(store, Scope(all=True))
    with pytest.raises(UsageError, match=r"2 stages have published features of sae:.*choose one with --stage"):
        export_features(catalog, sae, tmp_path / "out")
    assert export_features(catalog, sae, tmp_path / "out", stages[1][:9])[3:] == (stages[1], 1, 0, 0)
    assert [line["index"] for line in lines(tmp_path / "out", "features", 0)] == ["1"]
    with pytest.raises(
        UnknownTable, match=r"no stage ffff of kind sae_features has published features of sae:.*there are"
    ):
        export_features(catalog, sae, tmp_path / "more", "ffff")
    with pytest.raises(BadRef, match="no published stage begins so"):
        export_features(catalog, "sae:00000000", tmp_path / "more")
    with pytest.raises(UsageError, match="is there already; nothing was written"):
        export_features(catalog, sae, tmp_path / "out", stages[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "out"]


def test_the_command_line_says_what_was_written(place, tmp_path):
    def miclip(*words: object) -> Result:
        words = ("export", "features", place.sae[:14], *words, "--store", place.catalog.store.uri, "--all")
        return CliRunner().invoke(app, [str(word) for word in words])

    done = miclip("--to", tmp_path / "out")
    assert done.exit_code == 0 and f"1,025 features of {place.sae}, 2 activations, 4 explanations" in done.stdout
    assert json.loads(miclip("--to", tmp_path / "more", "--json").stdout)["stage"] == place.stage
    assert miclip("--to", tmp_path / "out").exit_code == 2
