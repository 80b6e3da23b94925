"""Images that are files: texts are found by CLIPSeg, drawn by diffusion, labelled by a model that is asked, and name classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from jobs.files import hash_tree
from miclip_core.dissect.segment import MaskDecoder
from miclip_core.explain.labellers import AskedLabels
from miclip_core.explain.vlm import load_vlm
from miclip_core.images import decode
from schemas.plans import Plan
from tests.jobs.score_explanations.lake_of_texts import STEERING, TOPK, TextLake, texts_of
from tests.lakes import export
from tests.miclip_core.dissect import tiny_models
from tests.miclip_core.explain import vlms

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("photos"), 32)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, images: Path) -> TextLake:
    folder = tmp_path_factory.mktemp("texts") / "lake"
    return TextLake(
        folder, f"folder:{images}/images", f"file:{images}/labels.parquet", min_positives=2, on_changed="quarantine"
    )


@pytest.fixture(scope="module")
def explained(lake: TextLake) -> list[Plan]:
    return [lake.explain(TOPK, texts_of(TOPK)), lake.explain(STEERING, texts_of(STEERING))]


def test_masks_are_those_of_clipseg_on_what_the_model_sees(
    lake: TextLake, explained: list[Plan], tmp_path: Path
) -> None:
    folder = tmp_path / "clipseg"
    tiny_models.clipseg(folder)
    files = {str(folder): hash_tree(folder)}
    plans = lake.plans(explained, files=files, metrics=["iou"], segmenter=f"file:{folder}", top=2)
    assert not lake.score(plans).board.failed
    rows = lake.rows(plans, "explanation_iou")
    decoder = MaskDecoder(folder)
    texts = {(str(p.stage.params["method"]), f): t for p, of in zip(explained, (TOPK, STEERING), strict=True)
             for f, t in texts_of(of).items()}  # fmt: skip
    tops = {(r["feature"], r["image_index"]): r for r in lake.rows([lake.scored], "sae_top_images")}
    assert len(rows) == 2 * 2 * len({row["feature"] for row in rows}) and any(row["n_masks"] for row in rows)
    for row in rows[::7]:
        top = tops[row["feature"], row["image_index"]]
        image = decode(Path(top["uri"].removeprefix("file:")).read_bytes(), "upright")
        pixels = torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
        text = texts[row["method"], row["feature"]]
        mask = (decoder.probabilities(decoder.states(pixels[None]), decoder.embed([text]))[0] > 0.5).float()
        at = torch.arange(224)
        found = mask[at * len(mask) // 224][:, at * len(mask) // 224] > 0
        active = (torch.tensor(top["map"]).view(8, 8) > 0)[at * 8 // 224][:, at * 8 // 224]
        expected = (found & active).sum() / max(1, int((found | active).sum()))
        assert row["iou"] == pytest.approx(float(expected), abs=1e-6) and row["n_masks"] == int(mask.any())


def test_names_are_words_where_images_are_not_of_the_demo_world(lake: TextLake) -> None:
    best = {
        row["feature"]: row["concept"]
        for row in lake.rows([lake.scored], "sae_selectivity")
        if row["level"] == "image" and row["rank_in_feature"] == 0
    }
    assert len(best) > 10
    texts = {f: f"Photos of {c.partition('=')[2].upper()}s" if f % 2 else "A cloud" for f, c in best.items()}
    plans = lake.plans([lake.explain(TOPK, texts)], metrics=["naming"], naming_level="image", least_auroc=0.5)
    assert not lake.score(plans).board.failed
    rows = lake.rows(plans, "explanation_naming")
    assert {row["feature"]: row["named"] for row in rows} == {feature: bool(feature % 2) for feature in best}
    assert all((row["level"], row["concept"]) == ("image", best[row["feature"]]) for row in rows)
    assert all((row["share_named"] > 0) == row["named"] for row in rows)


def test_without_labels_naming_is_of_none_and_says_so(lake: TextLake, explained: list[Plan]) -> None:
    plans = [p for p in lake.plans(explained, metrics=["naming"]) if p.stage.output == "naming"]
    ran = lake.score(plans)
    assert not lake.rows(plans, "explanation_naming")
    assert any("no feature tells any concept of level patch" in str(event) for event in ran.events)


def test_images_that_are_gone_are_counted_in_one_note(lake: TextLake, explained: list[Plan]) -> None:
    tops = lake.rows([lake.scored], "sae_top_images")
    gone = sorted({Path(row["uri"].removeprefix("file:")) for row in tops if row["feature"] == 1 and row["rank"] < 2})
    for path in gone:
        path.rename(path.with_suffix(".gone"))
    try:
        ran = lake.score([p for p in lake.plans(explained, metrics=["clip"], top=2) if p.stage.output == "clip"])
    finally:
        for path in gone:
            path.with_suffix(".gone").rename(path)
    assert not ran.board.failed
    assert len(gone) == 2 and [
        str(event).count("images left out") for event in ran.events if "left out" in str(event)
    ] == [1]


def test_a_model_that_is_asked_gives_labels(lake: TextLake, explained: list[Plan], tmp_path: Path) -> None:
    words = (
        *vlms.WORDS,
        "low",
        "high",
        "level",
        "animal",
        "background",
        "other",
        "object",
        "striped",
        "star",
        "dotted",
    )
    ref = vlms.save("internvl", tmp_path, seed=2, words=words)
    plans = lake.plans(explained, metrics=["clip"], labels=f"vlm:{ref}")
    assert not lake.score(plans).board.failed
    rows, asked = lake.rows(plans, "explanation_scores"), AskedLabels(load_vlm(ref))
    texts = [row["text"] for row in rows]
    assert len(rows) == 24 and [row["abstraction"] for row in rows] == asked.abstraction(texts)
    assert [row["context"] for row in rows] == asked.context(texts)


def test_a_model_that_does_not_read_texts_gives_no_labels(lake: TextLake, explained: list[Plan]) -> None:
    plans = lake.plans(explained, metrics=["clip"], labels="vlm:demo:llava-p8")
    failed = lake.score(plans).board.failed
    assert failed and all("leaves the text away" in str(outcome) for outcome in failed.values())


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers")
def test_images_are_made_by_diffusion(lake: TextLake, explained: list[Plan], tmp_path: Path) -> None:
    from miclip_core.explain.makers import DiffusionMaker
    from tests.miclip_core.explain.diffusion import SIZE, stable_diffusion

    stable_diffusion(tmp_path / "maker")
    files = {str(tmp_path / "maker"): hash_tree(tmp_path / "maker")}
    spec = {"maker": f"file:{tmp_path}/maker", "maker_steps": 2, "maker_size": SIZE, "metrics": ["synthetic"]}
    plans = lake.plans(explained, files=files, **spec)
    assert not lake.score(plans).board.failed
    rows = lake.rows(plans, "explanation_synthetic", "synthetic")
    black = DiffusionMaker(tmp_path / "maker", steps=2, size=SIZE).make(["A red object"], [3]).max() == 0
    assert len(rows) == 48 and {row["is_black"] for row in rows} == {bool(black)}
