"""Sentence encoders: the text tower of a CLIP, a real sentence-transformers folder where the package is there, and none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miclip_core.evaluate.descriptions import compare_descriptions
from miclip_core.evaluate.sentences import TowerEncoder, embed_each, load_sentence_encoder
from schemas.errors import MissingPackage, UnknownModel
from tests.miclip_core.evaluate.tiny_sentences import make_sentence_encoder


def letters(texts: Sequence[str]) -> Tensor:
    """How often each letter is in a text: [M, 26]."""
    return torch.tensor([[text.count(chr(97 + k)) for k in range(26)] for text in texts], dtype=torch.float64)


def test_every_distinct_text_is_encoded_once_and_none_has_no_direction() -> None:
    seen: list[str] = []

    def tower(texts: Sequence[str]) -> Tensor:
        seen.extend(texts)
        return letters(texts)

    found = embed_each(TowerEncoder("letters", tower), ["ab", None, "aab", "ab"])
    assert sorted(seen) == ["aab", "ab"]
    assert found.dtype == torch.float32 and found[:, :2].tolist() == [[1, 1], [0, 0], [2, 1], [1, 1]]
    with pytest.raises(ValueError, match="2 texts, all None"):
        embed_each(TowerEncoder("letters", tower), [None, None])


def test_a_template_surrounds_every_text() -> None:
    encoder = TowerEncoder("letters", letters, "zz {}")
    assert encoder.embed(["a", "{}"])[:, [0, 25]].tolist() == [[1, 2], [0, 2]]


def test_the_tower_of_a_clip_scores_descriptions() -> None:
    from miclip_core.zoo.load import load_model
    from schemas.refs import ModelRef

    model = load_model(ModelRef.parse("demo:clip-p8"))
    encoder = TowerEncoder("clip", model.embed_text)
    predicted, truth = ["a red circle", "a red circle", None], ["a red circle", "a blue square", "a blue square"]
    rows = {encoder.name: (embed_each(encoder, predicted), embed_each(encoder, truth))}
    scores = compare_descriptions([0, 1, 2], predicted, truth, rows).similarity["clip"]
    a, b = model.embed_text(["a red circle", "a blue square"])
    assert scores[0] == pytest.approx(1) and scores[1] < 0.9
    assert scores[1] == pytest.approx(float(torch.dot(a, b) / a.norm() / b.norm()), abs=1e-6)


def test_a_folder_that_is_not_there_or_of_another_kind_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "mpnet"):
        with pytest.raises(UnknownModel, match=f"{folder}: .*modules.json; fetch a model there"):
            load_sentence_encoder(folder)


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # what an import of a missing package meets
    with pytest.raises(MissingPackage, match=r"pip install 'miclip\[sentences\]'"):
        load_sentence_encoder(tmp_path)


def test_a_folder_of_sentence_transformers_pools_and_normalises_as_it_says(tmp_path: Path) -> None:
    """The oracle averages the last states of the BERT inside over the words by hand."""
    encoder = load_sentence_encoder(make_sentence_encoder(tmp_path))
    from transformers import BertModel

    bert = BertModel.from_pretrained(tmp_path / "bert").float().eval()
    found = encoder.embed(["red circle", "blue"])
    assert encoder.name == "tiny" and found.dtype == torch.float32 and found.shape == (2, 16)
    for row, ids in zip(found, ([2, 4, 6, 3], [2, 5, 3])):
        with torch.no_grad():
            state = bert(torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert torch.allclose(row, state / state.norm(), atol=1e-5)
