"""What a page shows of SAEs: which features, within which bound, under which names, over which part of an image."""

from __future__ import annotations

import base64

import pytest

from cluster.report.data import ReportData, load_report
from cluster.report.numbers import percent, short_number
from cluster.report.pictures import pack_map
from cluster.report.sections.choice import PAGE_BYTES, choose, fit
from cluster.report.sections.saes import load_described, load_groups, name_apart
from cluster.stores import make_store
from jobs.shown import WHOLE, seen
from schemas.models import Geometry
from tests.made_up_saes import CONCEPTS, publish_sweep, save_run

IMAGES = [{"image_id": f"{i:032x}", "image_index": i, "uri": f"world:{i}"} for i in range(12)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    save_run(store, "saes-00001", publish_sweep(store, IMAGES, latents=40, steps=5, seeds=2))
    return load_report(store)


def test_a_third_each_is_selective_dense_and_random_without_repeats(data: ReportData) -> None:
    sae = load_described(data)[0]
    choice = choose(data, sae, 12)
    rows = data.table("sae_features", ["stage", "feature", "density", "is_dead"], {"stage": sae.stage}).to_pylist()
    best: dict[int, tuple[float, str]] = {}
    columns = ["stage", "feature", "concept", "best_f1"]
    for row in data.table("sae_selectivity", columns, {"stage": sae.stage}).to_pylist():
        best[row["feature"]] = max(best.get(row["feature"], (0.0, "")), (row["best_f1"], row["concept"]))
    alive = [row for row in rows if not row["is_dead"]]
    selective = set()
    for concept in CONCEPTS:  # of those that tell this concept best among all concepts, the best
        selective.add(max((f for f in best if best[f][1] == concept), key=lambda f: best[f][0]))
    dense = [r["feature"] for r in sorted(alive, key=lambda r: -r["density"]) if r["feature"] not in selective][:4]
    chosen = dict(zip(choice.features, choice.reasons, strict=True))
    assert sorted(f for f, why in chosen.items() if why == "selective") == sorted(selective)
    assert sorted(f for f, why in chosen.items() if why == "dense") == sorted(dense)
    assert len(chosen) == 12 and set(chosen) <= {row["feature"] for row in alive}
    assert choose(data, sae, 12) == choice
    assert choice.by == "best F1, concept by concept"


def test_all_features_that_are_alive_are_chosen_where_there_are_few(data: ReportData) -> None:
    assert len(choose(data, load_described(data)[0], 48).features) == 36


@pytest.mark.parametrize(
    ("saes", "images", "patches", "wanted"),
    [(8, 2400, 64, (8, 48, 9)), (1, 10**6, 576, (1, 48, 9)), (60, 10**6, 196, None), (2000, 10**6, 1024, None)],
)
def test_what_is_shown_fits_the_bound(saes: int, images: int, patches: int, wanted: tuple[int, ...] | None) -> None:
    amount = fit(saes, images, patches)
    tiles = amount.saes * amount.features * amount.images
    assert tiles * (patches * 4 / 3 + 300) + min(tiles, images) * 2200 < PAGE_BYTES
    assert wanted is None or amount == wanted
    assert amount.saes >= 1


def test_names_say_what_differs_and_nothing_else(data: ReportData) -> None:
    (group,) = load_groups(data)
    assert [sae.name for sae in group.saes] == [
        f"{arch} k {k} seed {seed}" for arch in ("batchtopk", "topk") for k in (8, 16) for seed in (0, 1)
    ]
    row = {"arch": "topk", "latents": 8192, "k": 32, "l1": None, "lr": 2e-4, "steps": 10, "seed": 0, "source": "miclip"}
    assert name_apart([{**row, "sae": "sae:a"}]) == ["topk"]
    assert name_apart([{**row, "sae": "sae:a"}, {**row, "sae": "sae:b"}]) == ["topk sae:a", "topk sae:b"]
    assert name_apart([{**row, "sae": "a"}, {**row, "sae": "b", "lr": 1e-3, "latents": 16384}]) == [
        "topk 8,192 latents lr 0.0002", "topk 16,384 latents lr 0.001"
    ]  # fmt: skip


def geometry(resize: str, to: int, crop: int) -> Geometry:
    return Geometry(resize=resize, resize_hw=(to, to), crop_hw=(crop, crop), interpolation="bicubic",
                    mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(
    ("how", "box"),
    [
        (geometry("squash", 224, 224), (0, 0, 1, 1)),
        (geometry("shortest", 224, 224), (0.25, 0, 0.5, 1)),
        (geometry("shortest", 256, 224), (0.28125, 0.0625, 0.4375, 0.875)),
        (geometry("longest", 224, 224), (0, -0.5, 1, 2)),
        (None, WHOLE),
    ],
)
def test_the_grid_lies_over_what_the_model_saw_of_a_wide_image(how: Geometry | None, box: tuple[float, ...]) -> None:
    assert seen(how, False, 400, 200) == pytest.approx(box)


def test_the_shared_square_is_the_centre_whatever_the_model_does() -> None:
    assert seen(geometry("squash", 224, 224), True, 200, 400) == (0, 0.25, 1, 0.5)


def test_a_map_is_packed_with_the_features_largest_as_255() -> None:
    assert list(base64.b64decode(pack_map([0, 1, 2, 4], 4))) == [0, 64, 128, 255]
    assert list(base64.b64decode(pack_map([0.0, 0.0], 0.0))) == [0, 0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (12.345, "12.3"), (1234.5, "1,234"), (3, "3"), (2.5e-7, "2.50e-7"),
     (1.2e9, "1.20e9"), (float("nan"), "–"), (None, "–"), (float("-inf"), "−∞"), (-0.5, "-0.500")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert short_number(value) == text


def test_shares_are_percents() -> None:
    assert [percent(v) for v in (0.0, 0.000616, 0.0616, 0.5, 1.0, None)] == [
        "0.0 %",
        "0.062 %",
        "6.2 %",
        "50.0 %",
        "100.0 %",
        "–",
    ]
    assert percent(float("nan")) == "–"
