"""Counts of a sweep against one forward pass per image, unit list and change, written with plain edits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from miclip_core.intervene.edits import Features, Neurons, UnitKind
from miclip_core.intervene.sweep import Counts, Sweep, other_class
from miclip_core.sae.codes import Codes
from miclip_core.sae.sae import Sae
from miclip_core.world.evaluate import held_out, pixels_of
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadUnits, UnknownSite
from schemas.intervene import Change
from schemas.refs import ModelRef, Site
from tests.miclip_core.intervene.test_edits import make_sae

REMOVE, DOUBLE, ONE, PLUS = Change(beta=0.0), Change(beta=2.0), Change(beta=1.0), Change(op="add", beta=1.5)
IMAGES, IDS, CLASSES = 12, [f"image-{i}" for i in range(12)], 4


@dataclass(frozen=True)
class Nearest:
    """Class scores as products of the embedding with fixed vectors [E, C]; `logits` are scores already."""

    columns_EC: Tensor | None
    site: str = "embedding"

    def scores(self, tapped_B: Tensor) -> Tensor:
        return tapped_B if self.columns_EC is None else tapped_B @ self.columns_EC


@dataclass(frozen=True)
class Case:
    model: VisionModel
    scorer: Nearest
    images: Tensor
    labels: Tensor


@cache
def make_case(name: str) -> Case:
    """Four classes that the model itself sees in most of the images: their scores decide, one label in four is another's."""
    model = load_model(ModelRef.parse(f"demo:{name}"))
    images = pixels_of(held_out(IMAGES))
    embedding_BE = model.embed_images(images)
    columns_EC = embedding_BE[:CLASSES].T / embedding_BE[:CLASSES].norm(dim=1)
    labels = (embedding_BE @ columns_EC).argmax(1)
    labels[::4] = (labels[::4] + 1) % CLASSES
    return Case(model, Nearest(columns_EC), images, labels)


def random_units(count: int, seed: int) -> Tensor:
    """Three units per class, and one class that has none."""
    draw = torch.Generator().manual_seed(seed)
    units_CK = torch.stack([torch.randperm(count, generator=draw)[:3] for _ in range(CLASSES)])
    units_CK[1], units_CK[2, 2] = -1, -1
    return units_CK


def plain_edit(site: str, units: list[int], change: Change) -> list[Edit]:
    return [Edit(Site.parse(site), change.op, change.beta, channels=units)] if units else []


def feature_edit(sae: Sae, error: str) -> Callable[[str, list[int], Change], list[Edit]]:
    def make(site: str, units: list[int], change: Change) -> list[Edit]:
        def apply(x_1TD: Tensor) -> Tensor:
            f_TU = sae.encode(x_1TD[0]).dense()
            new = f_TU.clone()
            new[:, units] = new[:, units] * change.beta if change.op == "scale" else new[:, units] + change.beta
            decoded = sae.decode(Codes.from_dense(new))
            return (decoded if error == "drop" else x_1TD[0] + decoded - sae.decode(Codes.from_dense(f_TU)))[None]

        return [Edit(Site.parse(site), "fn", apply)]

    return make


def by_hand(case: Case, site: str, units_CK: Tensor, changes: list[Change], edit: Any, seed: int) -> dict[str, Any]:
    """Every image alone: once with its own class's units, once with another's; ref is the change that changes nothing."""
    found: dict[str, Any] = {name: Counter() for name in ("n", "clean", "ref", "off_n", "off_ref", "edit", "off_edit")}

    def right(i: int, edits: list[Edit]) -> bool:
        out = case.model.run(case.images[i : i + 1], ["embedding"], edits)["embedding"]
        return int(case.scorer.scores(out).argmax()) == int(case.labels[i])

    for i, image_id in enumerate(IDS):
        label = int(case.labels[i])
        other = other_class(seed, image_id, label, CLASSES)
        found["n"][label] += 1
        found["clean"][label] += right(i, [])
        found["off_n"][other] += 1
        for prefix, c in (("", label), ("off_", other)):
            found[f"{prefix}ref"][c] += right(i, edit(site, [], ONE))
            units = [u for u in units_CK[c].tolist() if u >= 0]
            for change in changes:
                found[f"{prefix}edit"][c, change] += right(i, edit(site, units, change))
    return found


def swept(
    case: Case, site: str, kind: UnitKind, units: dict[str, Tensor], changes: list[Change], **more: Any
) -> Counts:
    sweep = Sweep(case.model, site, kind, case.scorer, units, changes, **more)
    for rows in torch.arange(IMAGES).split(5):
        sweep.add(case.images[rows], case.labels[rows], [IDS[i] for i in rows])
    return sweep.counts


NEURONS = [
    ("clip-p8", "resid_post.2@all", 96), ("clip-p8", "resid_post.4@cls", 96), ("vit-dense", "mlp_act.2@patch", 384),
    ("clip-rn", "stage.3", 256), ("resnet-sup", "conv.4.0.act1", 128),
]  # fmt: skip


@pytest.mark.parametrize(("name", "site", "width"), NEURONS)
def test_counts_of_neurons_are_those_of_single_passes(name: str, site: str, width: int) -> None:
    case, changes = make_case(name), [Change(beta=-4.0), Change(op="add", beta=30.0)]
    units = {"one": random_units(width, 0), "two": random_units(width, 1)}
    counts = swept(case, site, Neurons(), units, changes, off_class_seed=7)
    assert_same(counts, "two", by_hand(case, site, units["two"], changes, plain_edit, 7), changes)
    assert 0 < int(counts.sums["clean"].sum()) < IMAGES
    assert any(not torch.equal(counts.sums["edit"][m, x], counts.sums["clean"]) for m in (0, 1) for x in (0, 1))


def test_an_sae_of_sampled_tokens_is_edited_at_all_of_them_and_a_module_is_a_site_like_any_other() -> None:
    case, units = make_case("clip-p8"), {"one": random_units(40, 0)}
    sampled, all_patches = (
        swept(case, f"resid_post.3@patch{sample}", Features(make_sae(96)), units, [PLUS, DOUBLE])
        for sample in (":sample(4,0)", "")
    )
    assert all(torch.equal(sampled.sums[name], all_patches.sums[name]) for name in sampled.sums)
    path = "module:resnet.encoder.stages.3.layers.0.shortcut"
    ref, resnet = ModelRef.parse("demo:resnet-sup"), make_case("resnet-sup")
    shortcut = Case(load_model(ref, modules=[path]), resnet.scorer, resnet.images, resnet.labels)
    units = {"one": random_units(128, 0)}
    counts = swept(shortcut, path, Neurons(), units, [Change(op="add", beta=30.0)])
    expected = by_hand(shortcut, path, units["one"], list(counts.changes), plain_edit, 0)
    assert_same(counts, "one", expected, list(counts.changes))
    assert not torch.equal(counts.sums["edit"][0, 0], counts.sums["clean"])


@pytest.mark.parametrize("error", ["keep", "drop"])
def test_counts_of_features_are_those_of_single_passes(error: str) -> None:
    case, changes, sae = make_case("clip-p8"), [DOUBLE, Change(op="add", beta=8.0)], make_sae(96)
    site, units_CK = "resid_post.3@patch", random_units(40, 0)
    counts = swept(case, site, Features(sae, error), {"one": units_CK}, changes)  # type: ignore[arg-type]
    assert_same(counts, "one", by_hand(case, site, units_CK, changes, feature_edit(sae, error), 0), changes)
    assert torch.equal(counts.sums["ref"], counts.sums["clean"]) == (error == "keep")


def assert_same(counts: Counts, method: str, expected: dict[str, Any], changes: list[Change]) -> None:
    for change in changes:
        columns = counts.columns(method, change)
        names = {
            "n": "n",
            "correct_clean": "clean",
            "correct_ref": "ref",
            "offclass_n": "off_n",
            "offclass_ref": "off_ref",
        }
        for column, name in names.items():
            assert columns[column] == [expected[name][c] for c in range(CLASSES)], column
        assert columns["correct_edit"] == [expected["edit"][c, change] for c in range(CLASSES)]
        assert columns["offclass_edit"] == [expected["off_edit"][c, change] for c in range(CLASSES)]


def test_adding_to_the_score_of_a_class_makes_it_the_answer() -> None:
    """On paper: every image of its own class is right then, and no image of another."""
    case = make_case("resnet-sup")
    case = Case(case.model, Nearest(None, "logits"), case.images, case.labels)
    own = {"own": torch.arange(64)[:, None]}
    counts = swept(case, "logits", Neurons(), own, [Change(op="add", beta=1e6), REMOVE])
    n, clean = counts.sums["n"], counts.sums["clean"]
    assert torch.equal(counts.sums["edit"][0, 0], n) and int(n.sum()) == IMAGES
    assert not counts.sums["off_edit"][0, 0].any() and int(counts.sums["off_n"].sum()) == IMAGES
    with_images = n > 0
    expected = float((100 * (1 - clean[with_images] / n[with_images])).double().mean())
    assert counts.dacc("own", counts.changes[0]) == pytest.approx(expected)
    assert counts.off_dacc("own", counts.changes[0]) <= 0


@pytest.mark.parametrize("site", ["resid_post.3@patch", "mlp_out.1@all"])
def test_a_change_that_changes_nothing_counts_as_the_reference(site: str) -> None:
    case, units = make_case("clip-p8"), {"one": random_units(40, 0), "none": torch.full((CLASSES, 2), -1)}
    for kind in (Neurons(), Features(make_sae(96)), Features(make_sae(96), "drop")):
        counts = swept(case, site, kind, units, [ONE, Change(op="add", beta=0.0), DOUBLE])
        for change in counts.changes[:2]:
            assert counts.columns("one", change)["correct_edit"] == counts.sums["ref"].tolist()
            assert counts.dacc("one", change) == counts.off_dacc("one", change) == 0
        assert counts.columns("none", DOUBLE)["offclass_edit"] == counts.sums["off_ref"].tolist()


def test_counts_of_shards_merge_to_those_of_one_pass_and_only_with_their_like() -> None:
    case, units = make_case("clip-p8"), {"one": random_units(96, 0)}
    whole = swept(case, "resid_post.3", Neurons(), units, [REMOVE, PLUS])
    parts = []
    for rows in (torch.arange(0, IMAGES, 2), torch.arange(1, IMAGES, 2)):
        sweep = Sweep(case.model, "resid_post.3", Neurons(), case.scorer, units, [REMOVE, PLUS])
        sweep.add(case.images[rows], case.labels[rows], [IDS[i] for i in rows])
        parts.append(sweep.counts)
    merged = parts[1].merge(parts[0])
    assert all(torch.equal(merged.sums[name], whole.sums[name]) for name in whole.sums)
    with pytest.raises(BadUnits, match=r"\['x0'\].*do not merge"):
        Counts.zero(["one"], [REMOVE], CLASSES).merge(whole)


def test_images_of_no_class_fill_a_batch_and_count_for_nothing() -> None:
    case, units = make_case("clip-p8"), {"one": random_units(96, 0)}
    whole = swept(case, "resid_post.3", Neurons(), units, [REMOVE, PLUS])
    sweep = Sweep(case.model, "resid_post.3", Neurons(), case.scorer, units, [REMOVE, PLUS])
    for rows in torch.arange(IMAGES).split(5):
        filled = torch.cat([rows, rows[-1:].expand(5 - len(rows) + 2)])
        labels = torch.where(torch.arange(len(filled)) < len(rows), case.labels[filled], -1)
        sweep.add(case.images[filled], labels, [IDS[i] for i in filled])
    assert all(torch.equal(sweep.counts.sums[name], whole.sums[name]) for name in whole.sums)


def test_figures_on_paper() -> None:
    """Class 0: 4 of 8 right, then 6; class 1: 1 of 2, then 0; class 2 has no image. (25 - 50) / 2 = -12.5 points."""
    counts = Counts.zero(["a"], [DOUBLE], 3)
    for name, values in {"n": [8, 2, 0], "ref": [4, 1, 0], "off_n": [0, 5, 0], "off_ref": [0, 5, 0]}.items():
        counts.sums[name].copy_(torch.tensor(values))
    counts.sums["edit"][0, 0] = torch.tensor([6, 0, 0])
    counts.sums["off_edit"][0, 0] = torch.tensor([0, 4, 0])
    assert counts.change_C("a", DOUBLE).tolist()[:2] == [25, -50] and math.isnan(counts.change_C("a", DOUBLE)[2])
    assert counts.dacc("a", DOUBLE) == -12.5
    assert counts.off_dacc("a", DOUBLE) == -20
    assert Counts.zero(["a"], [DOUBLE], 3).dacc("a", DOUBLE) is None


def test_another_class_is_drawn_evenly_from_all_others_by_the_id_of_the_image() -> None:
    drawn = Counter(other_class(0, f"{i}", 2, 5) for i in range(4000))
    assert set(drawn) == {0, 1, 3, 4} and all(900 < n < 1100 for n in drawn.values())
    assert [other_class(0, "a", 0, 1000), other_class(1, "a", 0, 1000)] == [
        other_class(0, "a", 0, 1000), other_class(1, "a", 0, 1000)
    ]  # fmt: skip
    assert other_class(0, "a", 0, 10**6) != other_class(1, "a", 0, 10**6) != other_class(1, "b", 0, 10**6)


@pytest.mark.parametrize(("off", "blocks"), [(0, 5), (None, 3)])
def test_only_the_end_of_the_pass_is_repeated_and_tokens_are_encoded_once(
    off: int | None, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes: the last block runs once clean and twice edited, twice more off class; the block before runs once."""
    case, ran = make_case("clip-p8"), Counter()
    encode = Sae.encode
    monkeypatch.setattr(Sae, "encode", lambda sae, x_ND: (ran.update(["encode"]), encode(sae, x_ND))[1])
    handles = []
    for layer, block in enumerate(case.model.module.visual.transformer.resblocks):
        handles.append(block.ln_1.register_forward_hook(lambda *_, layer=layer: ran.update([layer])))
    sweep = Sweep(
        case.model, "resid_post.3@patch", Features(make_sae(96)), case.scorer, {"one": random_units(40, 0)},
        [REMOVE, DOUBLE], off,
    )  # fmt: skip
    sweep.add(case.images, case.labels, IDS)
    for handle in handles:
        handle.remove()
    assert ran == {0: 1, 1: 1, 2: 1, 3: 1, 4: blocks, "encode": 1}


def test_of_a_convolutional_model_too_only_the_end_is_repeated() -> None:
    """Two changes, on and off class: blocks up to the site run once, those after it five times."""
    case, ran, handles = make_case("clip-rn"), Counter[int](), []
    visual: Any = case.model.module.visual
    for number, stage in enumerate((visual.layer1, visual.layer2, visual.layer3, visual.layer4), 1):
        handles.append(stage[0].conv2.register_forward_hook(lambda *_, number=number: ran.update([number])))
    sweep = Sweep(case.model, "stage.2", Neurons(), case.scorer, {"one": random_units(32, 0)}, [REMOVE, DOUBLE])
    sweep.add(case.images, case.labels, IDS)
    for handle in handles:
        handle.remove()
    assert ran == {1: 1, 2: 1, 3: 5, 4: 5}


def test_what_does_not_fit_is_refused() -> None:
    case, units = make_case("clip-p8"), random_units(96, 0)

    def make(units: dict[str, Tensor], scorer: Nearest = case.scorer, **more: Any) -> Sweep:
        return Sweep(case.model, "resid_post.3", Neurons(), scorer, units, [REMOVE], **more)

    with pytest.raises(BadUnits, match="list 0 names unit 96"):
        make({"one": torch.full((CLASSES, 1), 96)})
    with pytest.raises(BadUnits, match="'two': 3"):
        make({"one": units, "two": units[:3]})
    with pytest.raises(BadUnits, match="no other class"):
        make({"one": units[:1]})
    with pytest.raises(UnknownSite, match="has no logits"):
        make({"one": units}, Nearest(None, "logits"))
    sweep = make({"one": units})
    with pytest.raises(BadUnits, match="image image-1 has label 4"):
        sweep.add(case.images[:2], torch.tensor([0, 4]), IDS[:2])
    with pytest.raises(BadUnits, match="2 images, labels"):
        sweep.add(case.images[:2], torch.tensor([0]), IDS[:2])
    assert not sweep.counts.sums["n"].any()
