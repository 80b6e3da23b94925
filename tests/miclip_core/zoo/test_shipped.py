"""The models that ship, by name and by folder."""

from __future__ import annotations

import pytest

from miclip_core.zoo.demo import FORMATS
from miclip_core.zoo.shipped import find_folder, names, share_targets
from schemas.errors import UnknownModel
from schemas.refs import ModelRef


def test_every_name_is_a_folder_in_a_format_that_somebody_loads() -> None:
    assert {"clip-p8", "clip-rn", "resnet-sup", "siglip-p8"} <= set(names())
    for name in names():
        folder = find_folder(ModelRef.parse(f"demo:{name}"))
        assert folder.name == name and any((folder / file).is_file() for file in FORMATS)


def test_a_name_that_does_not_ship_is_refused_with_those_that_do() -> None:
    with pytest.raises(UnknownModel, match=r"demo:clip-p9: no such demo model; there are demo:clip-p16, demo:clip-p8,"):
        find_folder(ModelRef.parse("demo:clip-p9"))


@pytest.mark.parametrize(
    ("models", "shared"),
    [
        (("demo:clip-p8", "demo:clip-rn"), True),  # both learnt what each patch shows
        (("demo:clip-p8", "demo:resnet-sup"), False),  # the classifier learnt classes of whole images
        (("demo:clip-p8", "demo:clip-rn", "demo:generator"), False),
        (("demo:clip-p8", "open_clip:RN50/openai"), None),
        (("open_clip:RN50/openai", "timm:resnet50.a1_in1k"), None),
        (("open_clip:RN50/openai", "open_clip:RN50/openai"), True),
    ],
)
def test_models_share_targets_if_their_cards_say_so(models: tuple[str, ...], shared: bool | None) -> None:
    assert share_targets(models) is shared
