"""Zero-shot classifiers: unit columns, two normalisations, and no dependence on batching."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.templates import OPENAI_TEMPLATES
from miclip_core.zoo.text import zero_shot_classifier
from schemas.errors import UnsupportedBlock
from schemas.refs import ModelRef

NAMES = ["goldfish", "great white shark", "tiger", "hen", "tray"]
TEMPLATES = ["a photo of a {}.", "a sketch of the {}.", "{} in a video game."]


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(ModelRef.parse("open_clip:ViT-S-32-alt/random(0)"))


def test_columns_have_unit_length_and_equal_a_loop_over_classes(model: VisionModel) -> None:
    columns = zero_shot_classifier(model, NAMES, TEMPLATES)
    assert columns.shape == (model.facts.embed_dim, 5) and columns.dtype == torch.float32
    assert torch.allclose(columns.norm(dim=0), torch.ones(5), atol=1e-6)
    for c, name in enumerate(NAMES):
        each = [normalize(model.embed_text([t.replace("{}", name)])[0], dim=0) for t in TEMPLATES]
        assert torch.allclose(columns[:, c], normalize(torch.stack(each).mean(0), dim=0), atol=1e-6)


def test_class_batches_do_not_matter(model: VisionModel) -> None:
    one, all_at_once = (zero_shot_classifier(model, NAMES, TEMPLATES, class_batch=n) for n in (1, 5))
    assert torch.allclose(one, all_at_once, atol=1e-6)


def test_white_space_around_a_text_does_not_matter(model: VisionModel) -> None:
    a, b = model.embed_text(["a cat", " a cat\t\r\n"])
    assert torch.equal(a, b)


def test_a_text_that_is_too_long_keeps_its_end_token_last(model: VisionModel) -> None:
    """The tower reads the text at its largest token id; truncation must not lose it."""
    assert model.text is not None
    ids = model.text.tokenise(["word " * 300])
    assert ids.shape == (1, 77) and int(ids[0].argmax()) == 76


def test_texts_that_lose_their_end_are_known(model: VisionModel) -> None:
    """77 tokens hold 75 words between two marks; a text of 75 is whole but for one more, and short ones are not looked at."""
    assert model.text is not None
    whole, longer = " ".join(["cat"] * 74), " ".join(["cat"] * 77)
    assert model.text.cut(["a cat", whole, longer, f"  {longer} "]) == [longer, longer]
    assert model.text.cut([]) == model.text.cut(["", "a" * 20]) == []


def test_a_template_without_a_place_and_a_model_without_text_are_refused(model: VisionModel) -> None:
    with pytest.raises(ValueError, match=r"has no \{\}"):
        zero_shot_classifier(model, NAMES, ["a photo"])
    with pytest.raises(UnsupportedBlock, match="no classifier head"):
        model.logits(torch.zeros(1, 3, 224, 224))


def test_the_eighty_templates_are_those_that_were_published() -> None:
    ensure_torchvision()
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    assert list(OPENAI_TEMPLATES) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
