"""Maps of made-up texts: which texts, that embeddings are the encoder's own, clusters and topics, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import jobs.map_explanations.work as work
from cluster.stores.base import Store, make_store
from jobs.map_explanations.plan import COPIES, TEXT_BYTES, estimate, make_plans
from jobs.protocol import Cell, Known
from miclip_core.explain.prompts import topic_prompt
from miclip_core.explain.texts import clean
from miclip_core.explain.vlm import load_vlm
from miclip_core.zoo.load import inspect_model, load_model
from schemas.errors import BadSpec, MissingPackage, NoLanguageModel, NotInspected, WeightsMissing
from schemas.explain_specs import MapExplanationsSpec
from schemas.models import ModelFacts
from schemas.plans import Plan
from schemas.refs import ModelRef
from tests.made_up_descriptions import rows_of, run_plans
from tests.made_up_explanations import MODEL, RANDOM, SAE, SITE, STEERING, TOPK, publish_summary, publish_texts
from tests.miclip_core.explain import vlms

CLIP = "demo:clip-p8-b"
SHAPES = {0: "a circle", 1: "a circle", 2: "a square", 3: "a circle", 4: "a square", 5: None}
COLOURS = {0: "a red object", 1: "a red object", 2: "a blue object", 7: "a red object"}


@cache
def facts(model: str) -> ModelFacts:
    return inspect_model(ModelRef.parse(model))


def known(*models: str) -> Known:
    return Known({model: facts(model) for model in (MODEL, CLIP, *models)}, {})


def plans(read: Sequence[Plan], facts_known: Known | None = None, **spec: Any) -> tuple[Plan, ...]:
    """The plans of a map stage that reads one stage, or several in this order."""
    reads = {f"stage{n}": (one,) for n, one in enumerate(read)}
    cell = Cell("map", MapExplanationsSpec(reads=tuple(reads), **spec), MODEL, clip=CLIP, reads=reads)
    return make_plans(cell, facts_known or known())


def run(store: Store, plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    ran = run_plans(store, [plan])
    assert not ran.board.failed, list(ran.board.failed.values())
    return rows_of(store, plan, "explanation_map"), rows_of(store, plan, "explanation_clusters")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(str(tmp_path_factory.mktemp("maps")))


@pytest.fixture(scope="module")
def explained(store: Store) -> tuple[Plan, Plan]:
    return publish_texts(store, STEERING, SHAPES), publish_texts(store, TOPK, COLOURS)


@pytest.fixture(scope="module")
def summary(store: Store, explained: tuple[Plan, Plan]) -> Plan:
    chosen = [
        (0, STEERING, "masks", "a circle", 0.5), (0, STEERING, "heatmaps", "a circle", 0.5),
        (1, STEERING, "masks", "a circle", 0.4), (1, TOPK, "heatmaps", "a red object", 0.3),
        (2, TOPK, "masks", "a blue object", None),
    ]  # fmt: skip
    return publish_summary(store, explained, chosen)


@pytest.fixture(scope="module")
def mapped(store: Store, explained: tuple[Plan, Plan]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The map of all texts, in three clusters."""
    (plan,) = plans(explained, texts="all", clusters=3)
    return run(store, plan)


def test_every_text_is_one_point_of_unit_length_where_the_encoder_puts_it(mapped):
    rows, _ = mapped
    assert [(row["feature"], row["method"], row["text"]) for row in rows] == [
        (feature, method, text)
        for feature in range(8)
        for method, texts in (("steering", SHAPES), ("topk", COLOURS))
        if (text := texts.get(feature)) is not None
    ]
    assert {(row["model"], row["site"], row["sae"], row["encoder"]) for row in rows} == {
        (MODEL, SITE, f"sae:{SAE}", CLIP)
    }
    expected = load_model(ModelRef.parse(CLIP)).embed_text([row["text"] for row in rows])
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    found = np.array([row["embedding"] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    centred = found - found.mean(0)
    places = np.array([(row["x"], row["y"]) for row in rows])
    _, strength, _ = np.linalg.svd(centred)
    np.testing.assert_allclose((places**2).sum(0), strength[:2] ** 2, rtol=1e-4)


def test_equal_texts_share_a_cluster_that_its_words_name(mapped):
    rows, clusters = mapped
    members = [[row for row in rows if row["cluster"] == one["cluster"]] for one in clusters]
    assert [one["cluster"] for one in clusters] == [0, 1, 2]
    assert (
        [one["size"] for one in clusters] == [len(some) for some in members] == sorted(map(len, members), reverse=True)
    )
    cluster_of = {row["text"]: row["cluster"] for row in rows}
    assert all(row["cluster"] == cluster_of[row["text"]] for row in rows)
    for one, some in zip(clusters, members, strict=True):
        assert one["sample"] == [row["feature"] for row in some] and one["sample_texts"] == [
            row["text"] for row in some
        ]
        assert set(one["topic"].split(", ")) & {word for row in some for word in row["text"].split()}


def test_of_selected_texts_those_of_two_votes_are_one_point_if_they_are_the_same(store, summary):
    (plan,) = plans([summary], clusters=30)
    rows, clusters = run(store, plan)
    assert [(row["feature"], row["method"], row["text"]) for row in rows] == [
        (0, "steering", "a circle"), (1, "steering", "a circle"), (1, "topk", "a red object"), (2, "topk", "a blue object"),
    ]  # fmt: skip
    assert len(clusters) == 3  # as many as there are different texts


def test_what_is_mapped_and_how_decides_a_digest_and_the_order_of_reading_does_not(explained, summary):
    first, second = explained
    (plan,), (again,) = plans([first, second], texts="all"), plans([second, first], texts="all")
    assert plan.digest == again.digest
    pca = plans([first], texts="all", neighbours=5)[0]
    assert pca.digest == plans([first], texts="all")[0].digest != plan.digest
    umap = [plans([first], texts="all", layout="umap", neighbours=n)[0].digest for n in (5, 15)]
    assert len({*umap, pca.digest}) == 3
    assert plans([summary], seed=1)[0].digest != plans([summary])[0].digest


def test_every_sae_has_a_map_of_its_own_and_all_share_a_worker(store, explained):
    other = publish_texts(store, STEERING, SHAPES, sae="0" * 20, site="resid_post.1@patch")
    found = plans([*explained, other], texts="all")
    assert [(plan.stage.params["site"], plan.stage.inputs["sae"]) for plan in found] == [
        ("resid_post.1@patch", "0" * 20), (SITE, SAE),
    ]  # fmt: skip
    assert len({plan.worker for plan in found}) == 1
    largest = estimate(found[0], known()).worker_memory
    assert largest == estimate(found[1], known()).worker_memory > 4 * facts(CLIP).params
    (alone,) = plans([other], texts="all")
    of_a_text = TEXT_BYTES + COPIES * (facts(CLIP).embed_dim or 0)
    more = explained[0].rounds[0].rows + explained[1].rounds[0].rows - other.rounds[0].rows
    assert largest - estimate(alone, known()).worker_memory == more * of_a_text > 0


def test_controls_are_no_points_of_a_map(store, explained):
    control = publish_texts(store, RANDOM, {0: "a red circle"})
    assert [plan.digest for plan in plans([*explained, control], texts="all")] == [
        plan.digest for plan in plans(explained, texts="all")
    ]


def test_a_map_that_cannot_be_made_leaves_those_of_other_saes(store, explained, monkeypatch):
    other = publish_texts(store, STEERING, SHAPES, sae="1" * 20, site="resid_post.1@patch")
    found = plans([*explained, other], texts="all", clusters=2)
    read = work.read_texts

    def fail_once(plan, inputs):
        if plan.digest == found[0].digest:
            raise WeightsMissing("gone")
        return read(plan, inputs)

    monkeypatch.setattr(work, "read_texts", fail_once)
    ran = run_plans(store, found)
    assert [key.partition("/")[0] for key in ran.board.failed] == [found[0].digest]
    assert rows_of(store, found[1], "explanation_map")


def test_without_any_text_the_map_is_empty_and_says_so(store):
    silent = publish_texts(store, TOPK, {3: None}, sae="2" * 20)
    (plan,) = plans([silent], texts="all")
    ran = run_plans(store, [plan])
    assert not ran.board.failed and rows_of(store, plan, "explanation_map") == []
    assert any("has a text, so its map is empty" in str(event) for event in ran.events)


def test_a_language_model_names_the_topics_of_what_it_is_shown(store, summary, tmp_path):
    ref = vlms.save("internvl", tmp_path, seed=2)  # one that does not fall silent at once

    (plan,) = plans([summary], known(str(ref)), topics=f"vlm:{ref}")
    assert plan.digest != plans([summary])[0].digest and plan.stage.inputs["asked"]
    _, clusters = run(store, plan)
    vlm = load_vlm(ref)
    for one in clusters:
        turn = [{"role": "user", "content": [{"type": "text", "text": topic_prompt(one["sample_texts"])}]}]
        ids = vlm.processor.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=True, return_tensors="pt", return_dict=True
        )
        written = vlm.module.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
        said = vlm.processor.tokenizer.decode(written, skip_special_tokens=True)
        assert one["topic"] == clean(said) and one["topic"]
    (words,) = plans([summary])
    assert [one["topic"] for one in clusters] != [one["topic"] for one in run(store, words)[1]]


def test_what_cannot_be_mapped_is_refused(store, explained, summary, monkeypatch):
    with pytest.raises(BadSpec, match="no score_explanations stage, which selects"):
        plans(explained)
    with pytest.raises(BadSpec, match="no explain stage, whose texts"):
        plans([summary], texts="all")
    with pytest.raises(BadSpec, match="but for controls"):
        plans([publish_texts(store, RANDOM, {0: "a red circle"})], texts="all")
    with pytest.raises(NoLanguageModel, match="writes no text"):
        plans([summary], topics=f"vlm:{CLIP}")
    with pytest.raises(NotInspected):
        plans([summary], topics="vlm:demo:somebody")
    blind = facts(CLIP).model_copy(update={"has_text": False})
    with pytest.raises(BadSpec, match="has no text tower"):
        plans([summary], Known({MODEL: facts(MODEL), CLIP: blind}, {}))
    changed = facts(CLIP).model_copy(update={"files_sha256": "0" * 64})
    (plan,) = plans([summary], Known({MODEL: facts(MODEL), CLIP: changed}, {}))
    (outcome,) = run_plans(store, [plan]).board.failed.values()
    assert outcome.error == WeightsMissing.__name__


def test_a_folder_of_sentence_transformers_counts_by_its_files_and_takes_what_its_weights_do(
    store, summary, tmp_path, monkeypatch
):
    """Where it lies, or which revision of a CLIP it was, is in the rows."""
    (tmp_path / "modules.json").write_text("[]")
    where = str(tmp_path)
    here = replace(known(), files={where: "s" * 64}, weights={where: 7 << 20})
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (plan,) = plans([summary], here, sentences=f"file:{where}")
    (moved,) = plans([summary], replace(known(), files={"/elsewhere": "s" * 64}), sentences="file:/elsewhere")
    assert plan.digest == moved.digest != plans([summary])[0].digest
    assert estimate(plan, here).worker_memory - estimate(moved, known()).worker_memory == 7 << 20
    assert "sentence-transformers is not installed here" in estimate(plan, here).note
    (outcome,) = run_plans(store, [moved]).board.failed.values()
    assert outcome.error == MissingPackage.__name__ and "pip install 'miclip[sentences]'" in outcome.message


def test_rows_name_the_encoder_and_its_revision_which_no_digest_has(store, summary):
    revised = facts(CLIP).model_copy(update={"revision": "c0ffee"})
    (plan,) = plans([summary], Known({MODEL: facts(MODEL), CLIP: revised}, {}), restarts=3)
    assert plan.digest == plans([summary], restarts=3)[0].digest
    rows, _ = run(store, plan)
    assert {(row["encoder"], row["encoder_revision"]) for row in rows} == {(CLIP, "c0ffee")}


def test_umap_is_asked_for_before_any_text_is_embedded(store, summary, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # what an import of a missing package meets
    monkeypatch.setattr(work, "read_texts", None)  # which would fail in another way
    (plan,) = plans([summary], layout="umap")
    assert (
        estimate(plan, known()).note == "umap-learn is not installed here; workers need it: pip install 'miclip[map]'"
    )
    monkeypatch.setitem(sys.modules, "umap", ModuleType("umap"))
    sys.modules["umap"].__spec__ = ModuleSpec("umap", None)
    assert not estimate(plan, known()).note and not estimate(plans([summary])[0], known()).note
    monkeypatch.setitem(sys.modules, "umap", None)
    (outcome,) = run_plans(store, [plan]).board.failed.values()
    assert outcome.error == MissingPackage.__name__ and "miclip[map]" in outcome.message
