"""What ships keeps its word: zero-shot accuracy and planted biases, measured again on held-out images."""

import hashlib
import json
from dataclasses import asdict

import pytest
import torch

from miclip_core.generate.files import read_config
from miclip_core.images import decode
from miclip_core.world.card import read_card, weights_digest
from miclip_core.world.evaluate import (
    ONE_OBJECT,
    accuracies,
    held_out,
    measure,
    pixels_of,
    typographic_attack,
    watermark_bias,
)
from miclip_core.world.evaluate_generator import measure_generator
from miclip_core.world.export import export_world
from miclip_core.world.recipes import GENERATOR, RECIPES, VLM
from miclip_core.world.towers import load_model
from miclip_core.zoo import load as zoo
from miclip_core.zoo.shipped import FOLDER, names
from schemas.refs import ModelRef

MEMBERS = [name for name in RECIPES if name != "quick"]
CLIPS = [name for name in MEMBERS if RECIPES[name].family == "clip"]
FLOORS = {name: {"shape": 0.95, "colour": 0.95, "texture": 0.9, "background": 0.95} for name in CLIPS}
FLOORS["clip-p16"] |= {"texture": 0.8}
FLOORS["siglip-p8"] |= {"shape": 0.9}
FLOORS |= {"resnet-sup": {"shape": 0.95, "colour": 0.95}, "resnet-sup-wm": {"shape": 0.85, "colour": 0.95}}
REPEATS = 0.005  # shipped weights in fp16 and images drawn from a seed: another machine may move a few of 1800 images


def _model(name):
    return load_model(FOLDER / name)


def _below(found, floors):
    return {name: (found[name], floor) for name, floor in floors.items() if found[name] < floor}


def test_every_member_ships_with_its_card():
    assert names() == sorted([*MEMBERS, GENERATOR.name, VLM.name])
    for other in (GENERATOR, VLM):
        assert read_card(FOLDER / other.name)["recipe"] == json.loads(json.dumps(asdict(other)))
        assert read_card(FOLDER / other.name)["weights_sha256"] == weights_digest(FOLDER / other.name)
    assert read_config(FOLDER / GENERATOR.name) == json.loads(json.dumps(GENERATOR.architecture))
    for name in MEMBERS:
        card = read_card(FOLDER / name)
        assert card["name"] == name and card["recipe"] == json.loads(json.dumps(asdict(RECIPES[name])))
        assert card["patch_targets"] == (RECIPES[name].dense is not None)
        (weights,) = (FOLDER / name).glob("*.safetensors")
        assert card["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest(), name


def test_the_zoo_stays_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 30e6


def test_the_flagship_knows_the_planted_values():
    assert _below(accuracies(_model("clip-p8"), 600), FLOORS["clip-p8"]) == {}


def test_a_rendered_word_fools_the_attackable_member_and_not_its_twin():
    attackable, robust = (typographic_attack(_model(name), 400) for name in ("clip-rn-typo", "clip-rn"))
    assert attackable["attacked"] > 0.15 and attackable["accuracy_clean"] > 0.95
    assert robust["attacked"] < 0.05 and robust["accuracy"] > attackable["accuracy"] + 0.1


def test_the_mark_makes_a_star_for_the_biased_classifier_only():
    biased, fair = (watermark_bias(_model(name), 800) for name in ("resnet-sup-wm", "resnet-sup"))
    assert biased["star_recall_with"] - biased["star_recall_without"] > 0.2
    assert biased["others_called_star_with"] > biased["others_called_star_without"] + 0.05
    assert abs(fair["star_recall_with"] - fair["star_recall_without"]) < 0.1
    assert fair["others_called_star_with"] < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_a_member_meets_its_floors_and_its_card_says_what_is_measured(name):
    found = measure(_model(name))
    assert _below(found["accuracy"], FLOORS[name]) == {}
    card = read_card(FOLDER / name)["measured"]
    assert card.keys() == found.keys()
    for group, figures in card.items():
        assert figures and found[group] == pytest.approx(figures, abs=REPEATS), group


def test_what_the_generator_draws_is_recognised_as_the_truth_is():
    found = measure_generator(FOLDER / GENERATOR.name, 150)
    assert found["psnr"]["mean"] > 33
    assert _below(found["accuracy_clear"], {name: value - 0.04 for name, value in found["truth_clear"].items()}) == {}
    assert min(found["accuracy_clear"].values()) > 0.85


@pytest.mark.slow
def test_the_card_of_the_generator_says_what_is_measured():
    card = read_card(FOLDER / GENERATOR.name)["measured"]
    found = measure_generator(FOLDER / GENERATOR.name)
    assert card.keys() == found.keys()
    for group, figures in card.items():
        assert figures and found[group] == pytest.approx(figures, abs=0.05 if group == "psnr" else REPEATS), group


@pytest.mark.slow
def test_single_patches_of_the_tower_without_names_show_their_object():
    found = measure(_model("vit-dense"))["patches"]
    assert _below(found, {"shape": 0.9, "colour": 0.95, "texture": 0.9, "background": 0.95}) == {}
    assert found == pytest.approx(read_card(FOLDER / "vit-dense")["measured"]["patches"], abs=REPEATS)


@torch.no_grad()
def test_an_exported_file_reaches_the_model_as_the_pixels_of_training(tmp_path):
    export_world(tmp_path, ONE_OBJECT, 8)
    model = zoo.load_model(ModelRef.parse("demo:clip-p8"))
    files = sorted((tmp_path / "images").iterdir())
    pixels = torch.stack([model.preprocess(decode(file.read_bytes())) for file in files])
    torch.testing.assert_close(pixels, pixels_of(held_out(8)), atol=1e-6, rtol=0)
