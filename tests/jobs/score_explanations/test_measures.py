"""Every row of every measure against what can be counted, drawn or computed for it alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.score_explanations.recent import Recent
from jobs.score_explanations.synthetic import image_seed
from miclip_core.explain.makers import WorldMaker
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import (
    BACKGROUNDS,
    COLOURS,
    CONCEPTS,
    HELD_OUT_INDICES,
    SHAPES,
    TEXTURES,
    World,
    attributes,
)
from miclip_core.zoo.load import load_model
from schemas.refs import ModelRef
from tests.jobs.sae_features.lake_of_saes import CANONICAL, MODEL, make_sae
from tests.jobs.score_explanations.conftest import World as Texts
from tests.jobs.score_explanations.lake_of_texts import CLIP, LATENTS, SAE_SEED, SPEC
from tests.made_up_descriptions import Row

SHARED = 15
"""The one image of world:seed=1,n=48 that is in world:seed=0,n=40 as well: a plain background."""
VALUES = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES, "background": BACKGROUNDS}


def top_images(world: Texts) -> dict[int, list[Row]]:
    """The three strongest images of each feature, without the shared one."""
    rows = world.read(world.lake.scored, "sae_top_images")
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["feature"], row["rank"])):
        if row["image_index"] != SHARED and len(found.setdefault(row["feature"], [])) < SPEC["top"]:
            found[row["feature"]].append(row)
    return found


def ok_texts(world: Texts) -> list[Row]:
    return [row for row in world.texts() if row["status"] == "ok"]


def key_of(row: Row) -> tuple[object, ...]:
    names = ("method", "masking", "direction", "positions", "alpha_asked", "alpha_unit", "feature", "sequence")
    return tuple(row[name] for name in names)


def pixel_masks(text: str, number: int) -> list[np.ndarray]:
    """For each phrase what of the image it is true of, bool [64, 64]; phrases that nothing fits have none."""
    scene = attributes(World(seed=1), [HELD_OUT_INDICES.start + number])
    labels = render_scenes(scene)[1][0]
    if "background" in text:
        word = next(word for word in text.lower().split() if word in BACKGROUNDS)
        masks = [labels == 0] if scene.background[0] == BACKGROUNDS.index(word) and " and " not in text else []
        text = text.partition(" and ")[2]
    else:
        masks = []
    for phrase in text.split(" and ") if text else []:
        found = np.zeros_like(labels, bool)
        for word in phrase.lower().split():
            for category in ("shape", "colour", "texture"):
                if word in VALUES[category]:
                    for k in range(scene.count[0]):
                        found |= (labels == k + 1) & (getattr(scene, category)[0, k] == VALUES[category].index(word))
        masks += [found] if found.any() else []
    return masks


def enlarge(mask: np.ndarray) -> np.ndarray:
    at = [i * len(mask) // 224 for i in range(224)]
    return mask[at][:, at]


def test_one_image_is_in_both_sets_and_some_feature_would_have_been_scored_on_it(world: Texts) -> None:
    ids = [[row["image_id"] for row in world.read_index(which)] for which in (world.lake.shown, world.lake.scored)]
    assert [n for n, name in enumerate(ids[1]) if name in ids[0]] == [SHARED]
    rows = world.read(world.lake.scored, "sae_top_images")
    assert any(row["image_index"] == SHARED and row["rank"] < SPEC["top"] and row["feature"] < 12 for row in rows)


def test_overlap_is_that_of_pixels_counted_one_by_one(world: Texts) -> None:
    found = {(*key_of(row), row["image_index"]): row for row in world.rows("explanation_iou")}
    tops, expected = top_images(world), {}
    for said in ok_texts(world):
        for top in tops[said["feature"]]:
            masks = pixel_masks(said["text"], top["image_index"])
            active = enlarge(np.array(top["map"]).reshape(8, 8) > 0)
            named = enlarge(np.any(masks, 0)) if masks else np.zeros_like(active)
            both, either = (active & named).sum(), (active | named).sum()
            expected[(*key_of(said), top["image_index"])] = [
                both / max(either, 1), both / max(named.sum(), 1), both / max(active.sum(), 1), len(masks)
            ]  # fmt: skip
    assert found.keys() == expected.keys() and len(found) > 150
    assert sum(row[0] > 0 for row in expected.values()) > 20
    for key, row in found.items():
        assert [row["iou"], row["precision"], row["recall"], row["n_masks"]] == pytest.approx(expected[key], abs=1e-6)


def test_cosines_are_those_of_the_clip_on_images_masked_by_hand(world: Texts) -> None:
    clip, tops = load_model(ModelRef.parse(CLIP)), top_images(world)
    found = {(*key_of(row), row["image_index"]): row for row in world.rows("explanation_clip")}
    assert len(found) == sum(len(tops[said["feature"]]) for said in ok_texts(world))
    for said in ok_texts(world)[::5]:
        for top in tops[said["feature"]]:
            image = render_scenes(attributes(World(seed=1), [HELD_OUT_INDICES.start + top["image_index"]]))[0][0]
            shown = np.kron(np.array(top["map"]).reshape(8, 8) > 0, np.ones((8, 8), bool))
            masked = clip.preprocess(Image.fromarray(image * shown[:, :, None].astype(np.uint8)))
            with torch.no_grad():
                x, t = clip.embed_images(masked[None])[0], clip.embed_text([said["text"]])[0]
            row = found[(*key_of(said), top["image_index"])]
            assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(x, t, dim=0)), abs=1e-5)
            assert (row["clip"], row["is_truncated"]) == (CLIP, False)


def test_made_images_have_the_codes_of_the_sae_on_them(world: Texts) -> None:
    model, sae = load_model(ModelRef.parse(MODEL)), make_sae(SAE_SEED, LATENTS)
    rows = {(*key_of(row), row["number"]): row for row in world.rows("explanation_synthetic", "synthetic")}
    assert len(rows) == 2 * len(ok_texts(world))
    for said in ok_texts(world)[::4]:
        seeds = [image_seed(SPEC["seed"], said["feature"], number) for number in range(2)]
        images = WorldMaker().make([said["text"]] * 2, seeds)
        with torch.no_grad():
            tokens = model.run(model.normalise(images), [CANONICAL])[CANONICAL]
        for number, tokens_PD in enumerate(tokens):
            codes = sae.encode(tokens_PD).dense()[:, said["feature"]]
            row = rows[(*key_of(said), number)]
            assert row["mean"] == pytest.approx(float(codes.mean()), abs=1e-4)
            assert row["max"] == pytest.approx(float(codes.max()), abs=1e-3)
            assert (row["seed"], row["is_positive"], row["image_index"]) == (seeds[number], True, None)


def test_images_of_every_feature_have_seeds_of_their_own_whoever_explains_it(world: Texts) -> None:
    rows = world.rows("explanation_synthetic", "synthetic")
    seeds: dict[tuple[int, int], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["feature"], row["number"]), set()).add(row["seed"])
    assert all(len(some) == 1 for some in seeds.values())
    assert len(set().union(*seeds.values())) == len(seeds) < len(rows)
    assert image_seed(0, 1, 2) != image_seed(1, 1, 2) and 0 <= image_seed(0, 1, 2) < 2**31


def test_random_images_have_the_codes_that_the_sae_features_stage_stored_for_them(world: Texts) -> None:
    codes: dict[tuple[int, int], list[float]] = {}
    for row in world.read(world.lake.scored, "sae_codes"):
        codes.setdefault((row["feature"], row["image_index"]), []).append(row["value"])
    rows = world.rows("explanation_synthetic", "random")
    assert {row["feature"] for row in rows} == set(range(12)) and len(rows) == 24
    assert len({row["image_index"] for row in rows}) > 10 and SHARED not in {row["image_index"] for row in rows}
    assert any(row["mean"] > 0 for row in rows)
    for row in rows:
        active = codes.get((row["feature"], row["image_index"]), [0.0])
        assert row["mean"] == pytest.approx(sum(active) / 64, abs=1e-4)
        assert row["max"] == pytest.approx(max(active), abs=1e-3)
        assert (row["is_positive"], row["method"], row["seed"], row["sequence"]) == (False, None, None, None)
    assert all(len({r["image_index"] for r in rows if r["feature"] == feature}) == 2 for feature in range(12))


def test_naming_is_of_the_concept_that_a_feature_tells_best_if_it_tells_it_well(world: Texts) -> None:
    best: dict[int, Row] = {}
    for row in world.read(world.lake.scored, "sae_selectivity"):
        if row["level"] == "patch" and row["rank_in_feature"] == 0 and row["auroc"] >= SPEC["least_auroc"]:
            best[row["feature"]] = row
    rows = {key_of(row): row for row in world.rows("explanation_naming")}
    assert rows.keys() == {key_of(said) for said in ok_texts(world) if said["feature"] in best}
    assert sum(row["named"] for row in rows.values()) > 2
    for said in ok_texts(world):
        if (row := rows.get(key_of(said))) is not None:
            category, _, value = best[said["feature"]]["concept"].partition("=")
            words = said["text"].lower().split()
            named = [v for v in VALUES.get(category, ()) if v in words]  # no text here quotes a word or says a size
            assert (row["concept"], row["auroc"]) == (f"{category}={value}", best[said["feature"]]["auroc"])
            assert row["named"] == (value in named) and row["level"] == "patch"
            assert row["share_named"] == pytest.approx(len(named) / len(CONCEPTS[category]))


def test_refused_and_missing_texts_have_no_row_of_any_measure(world: Texts) -> None:
    bad = {key_of(row) for row in world.texts() if row["status"] != "ok"}
    assert len(bad) == 5
    for table in ("explanation_iou", "explanation_clip", "explanation_synthetic", "explanation_naming"):
        assert not bad & {key_of(row) for row in world.rows(table)}


def test_every_row_says_which_text_it_is_of(world: Texts) -> None:
    texts = {key_of(row) for row in world.texts()}
    for table in ("explanation_iou", "explanation_clip", "explanation_naming", "explanation_scores"):
        assert {key_of(row) for row in world.rows(table)} <= texts
    assert {key_of(row) for row in world.rows("explanation_synthetic", "synthetic")} <= texts


def test_of_recent_things_the_one_not_asked_for_the_longest_is_dropped() -> None:
    recent = Recent[str, int](2)
    recent.put("a", 1), recent.put("b", 2)
    assert recent.get("a") == 1 and recent.put("c", 3) == 3
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
