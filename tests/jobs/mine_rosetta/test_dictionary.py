"""The dictionary of a zoo whose entries are made up, on real maps, against maps that are tapped image by image."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from jobs.mine_rosetta.members import Member, find_members
from jobs.mine_rosetta.plan import CHOOSE, MAPS, PEAKS, units_stage, zoo_stage
from jobs.protocol import Cell, Known
from jobs.sae_files import WEIGHTS
from miclip_core.generate.load import load_generator
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.geometry import square_view
from miclip_core.zoo.load import inspect_model, load_model
from schemas.cells import Images
from schemas.plans import Plan, Round, StageSpec
from schemas.refs import ModelRef
from schemas.rosetta_specs import MineRosettaSpec
from tests.indexing import index
from tests.lakes import export
from tests.made_up_descriptions import publish_rows, publish_sae, rows_of, run_plans

Row = dict[str, Any]
Unit = tuple[int, str, int]
"""Place of its member, site, and number there."""
VIT, CNN = "demo:clip-p8", "demo:clip-rn"
MLP, LOW, HIGH = "mlp_act.0@patch", "stage.1@map", "stage.3@map"
N, BROKEN, LATENTS = 13, 1, 6
FLAT = 1e9
"""A standard deviation of which all activations are nothing."""
NEURONS, FEATURES, CONVOLVED = 0, 1, 2
ENTRIES: tuple[tuple[Unit, ...], ...] = (
    ((NEURONS, MLP, 3), (CONVOLVED, LOW, 5), (CONVOLVED, HIGH, 1)),
    ((NEURONS, MLP, 3), (FEATURES, MLP, 2), (CONVOLVED, HIGH, 7)),
    ((NEURONS, MLP, 9), (CONVOLVED, LOW, 2)),  # of both the standard deviation is FLAT
)


def scale_of(unit: Unit) -> tuple[float, float]:
    """Mean and standard deviation, as they are said to be."""
    member, _, number = unit
    return 0.05 * (number % 7), FLAT if unit in ENTRIES[2] else 0.2 + 0.1 * (number % 5) + member


@dataclass(frozen=True)
class Made:
    """An index of images one of which is broken, two inspected models, and members: neurons of both, latents of an SAE."""

    lake: str
    members: tuple[Member, ...]

    def plan(self, store: Store, entries: Sequence[Sequence[Unit]] = ENTRIES, **changes: Any) -> Plan:
        """The plan of a dictionary over published units and entries; changes: shard_rows, cached, cache_gb, images_at_once."""
        spec = MineRosettaSpec(exemplars=3)
        members = [m.model_copy(update={"cached": changes.get("cached", False)}) for m in self.members]
        zoo = zoo_stage(spec, "made_up", members)
        for m, member in enumerate(members):
            publish_rows(store, units_stage(spec, member), {"rosetta_units": unit_rows(m, member)})
        publish_rows(store, zoo, {"rosetta_entries": [*entry_rows(entries, members)]})
        units = {name: made for name, made in zoo.inputs.items() if name.startswith("units.")}
        stage = StageSpec(
            kind="mine_rosetta", method=1, subject=zoo.subject, output="dictionary",
            params={"members": zoo.params["members"], "exemplars": 3}, inputs={"zoo": zoo.digest, **units},
        )  # fmt: skip
        rounds = (
            Round(name=PEAKS, rows=members[0].forward.rows, shard_rows=changes.get("shard_rows", N)),
            Round(name=CHOOSE, rows=1, shard_rows=1),
            Round(name=MAPS, rows=len(members), shard_rows=1),
        )
        effort: Any = {
            "members": [m.model_dump(mode="json") for m in members],
            "images_at_once": dict.fromkeys((member.model for member in members), changes.get("images_at_once", 4)),
            "cache_gb": changes.get("cache_gb", 1.0),
        }
        return Plan(stage=stage, rounds=rounds, worker="dictionary", effort=effort)


def unit_rows(m: int, member: Member) -> list[Row]:
    rows = []
    for site in member.sites:
        for number in range(site.width):
            mean, sd = scale_of((m, site.site, number))
            rows.append(
                {
                    "sae": member.sae and f"sae:{member.sae}", "unit_kind": member.unit_kind, "site": site.site, "unit": number,
                    "depth": 0.0, "grid_h": site.grid[0], "grid_w": site.grid[1], "images": N, "n": N, "mean": mean, "sd": sd,
                    "active": 0.5, "images_active": 9, "is_dead": False, "is_rare": False,
                }
            )  # fmt: skip
    return rows


def entry_rows(entries: Sequence[Sequence[Unit]], members: Sequence[Member]) -> list[Row]:
    return [
        {
            "entry": n, "origin": "clique", "models": 2, "size": len(units), "model": members[m].model,
            "sae": members[m].sae and f"sae:{members[m].sae}", "unit_kind": members[m].unit_kind, "site": site, "unit": unit,
            "mean_r": 0.5, "is_representative": i == 0, "shares_training": None,
        }
        for n, units in enumerate(entries)
        for i, (m, site, unit) in enumerate(units)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = export(tmp_path_factory.mktemp("images"), N)
    broken = sorted((folder / "images").rglob("*.*"))[BROKEN]
    broken.write_bytes(broken.read_bytes()[:100])
    uri = str(tmp_path_factory.mktemp("dictionary") / "lake")
    ((vit,), (cnn,)) = members_of_models(uri, f"folder:{folder}/images", VIT, CNN)
    decoder = torch.randn(LATENTS, vit.sites[0].width, generator=torch.Generator().manual_seed(0))
    sae = publish_sae(make_store(uri), VIT, MLP, torch.nn.functional.normalize(decoder).tolist())
    latents = vit.sites[0].model_copy(update={"width": LATENTS})
    return Made(uri, (vit, vit.model_copy(update={"sae": sae, "sites": (latents,)}), cnn))


def members_of_models(lake: str, ref: str, *models: str) -> list[tuple[Member, ...]]:
    """The neurons of each over images that are indexed now."""
    images = Images(ref=ref)
    known = Known(
        {model: inspect_model(ModelRef.parse(model)) for model in models},
        {images.key: index(Path(lake), ref).facts},
    )
    spec = MineRosettaSpec(sites=("mlp_act.0", "stage.1", "stage.3", "act.1"), batch_size=4)
    cell = Cell("shared", spec, zoo=models, images=images)
    return [find_members(cell, known, model) for model in models]


@pytest.fixture(scope="module")
def maps(made: Made) -> dict[tuple[int, Unit], np.ndarray]:
    """(image_index, unit) -> z [P] of the units of all entries."""
    inputs = StoreInputs(make_store(made.lake))
    images = list(inputs.images(made.members[0].forward.index, 0, N))
    assert [image.image_index for image in images] == [i for i in range(N) if i != BROKEN]
    found = {}
    for model in (VIT, CNN):
        loaded = load_model(ModelRef.parse(model))
        for image in images:
            with Image.open(BytesIO(image.data or b"")) as opened:
                pixels = square_view(opened.convert("RGB"), loaded.facts.geometry)
            taps = loaded.run(loaded.normalise(pixels[None]), [MLP] if model == VIT else [LOW, HIGH])
            for unit in {unit for entry in ENTRIES for unit in entry if made.members[unit[0]].model == model}:
                found[image.image_index, unit] = one_map(made, taps, unit)
    return found


def one_map(made: Made, taps: Mapping[str, torch.Tensor], unit: Unit) -> np.ndarray:
    member, site, number = unit
    mean, sd = scale_of(unit)
    values = taps[site][0] if site == MLP else taps[site][0].flatten(1).T
    if member == FEATURES:
        sae = load_sae(StoreInputs(make_store(made.lake)).published(str(made.members[1].sae), WEIGHTS))
        values = sae.encode(values).dense()
    return (values[:, number].double().numpy() - mean) / sd


@pytest.fixture
def store(made: Made, tmp_path: Path) -> Store:
    """The lake for one dictionary alone."""
    shutil.copytree(made.lake, tmp_path / "lake")
    return make_store(str(tmp_path / "lake"))


def dictionary(store: Store, plan: Plan) -> list[Row]:
    ran = run_plans(store, [plan])
    assert ran.board.finished and not ran.of("shard_failed")
    return rows_of(store, plan, "rosetta_exemplars")


@pytest.fixture(scope="module")
def rows(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Exemplars of all entries."""
    folder = tmp_path_factory.mktemp("rows") / "lake"
    shutil.copytree(made.lake, folder)
    store = make_store(str(folder))
    return dictionary(store, made.plan(store))


def models_of(entry: Sequence[Unit]) -> dict[str, list[Unit]]:
    return {m: [u for u in entry if (CNN if u[0] == CONVOLVED else VIT) == m] for m in (VIT, CNN)}


def best_images(maps: Mapping[tuple[int, Unit], np.ndarray], entry: Sequence[Unit]) -> list[tuple[int, float]]:
    images = sorted({index for index, _ in maps})
    score = {
        i: float(np.mean([max(maps[i, u].max() for u in own) for own in models_of(entry).values()])) for i in images
    }
    return sorted(score.items(), key=lambda item: (-round(item[1], 4), item[0]))[:3]


def test_exemplars_excite_the_strongest_unit_of_every_model_most_on_average(
    rows: list[Row], maps: dict[tuple[int, Unit], np.ndarray]
) -> None:
    for n, entry in enumerate(ENTRIES):
        expected = best_images(maps, entry)
        own = [row for row in rows if row["entry"] == n]
        shown = {row["rank"]: (row["image_index"], pytest.approx(row["score"], abs=1e-4)) for row in own}
        assert [shown[rank] for rank in range(3)] == expected
        assert len(own) == 3 * len(entry)
    assert {row["image_index"] for row in rows if row["entry"] == 2} == {0, 2, 3}  # the first of those that are alike
    assert len({row["image_index"] for row in rows}) > 3


def test_maps_are_those_of_the_units_on_their_own_grids(
    made: Made, rows: list[Row], maps: dict[tuple[int, Unit], np.ndarray]
) -> None:
    saes = {None: NEURONS, f"sae:{made.members[1].sae}": FEATURES}
    images = {row["image_index"]: row for row in index_rows(made)}
    grids = {site.site: site.grid for member in made.members for site in member.sites}
    assert len({grids[site] for site in (MLP, LOW, HIGH)}) > 1
    for row in rows:
        unit = (CONVOLVED if row["model"] == CNN else saes[row["sae"]], row["site"], row["unit"])
        assert unit in ENTRIES[row["entry"]]
        expected = maps[row["image_index"], unit]
        assert np.array(row["map"]) == pytest.approx(expected, abs=2e-4)
        assert row["peak"] == max(row["map"]) and (row["grid_h"], row["grid_w"]) == grids[row["site"]]
        assert row["unit_kind"] == ("features" if row["sae"] else "neurons")
        image = images[row["image_index"]]
        assert (row["image_id"], row["uri"]) == (image["image_id"], image["uri"])
    of_unit = [
        row["entry"] for row in rows if (row["model"], row["site"], row["unit"], row["sae"]) == (VIT, MLP, 3, None)
    ]
    assert of_unit == [0, 0, 0, 1, 1, 1]  # one unit in two entries
    for whose in {(row["model"], row["sae"]) for row in rows}:
        places = [
            (r["entry"], r["rank"], r["site"] == HIGH, r["unit"]) for r in rows if (r["model"], r["sae"]) == whose
        ]
        assert places == sorted(places)


def index_rows(made: Made) -> list[Row]:
    batches = StoreInputs(make_store(made.lake)).table(
        made.members[0].forward.index, "images", ("image_index", "image_id", "uri")
    )
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("changes", [{"shard_rows": 5}, {"cached": True}], ids=str)
def test_how_the_work_is_cut_and_where_maps_are_kept_changes_no_image(
    made: Made, rows: list[Row], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Row
) -> None:
    monkeypatch.setenv("MICLIP_CACHE", str(tmp_path / "cache"))
    again = dictionary(store, made.plan(store, **changes))
    assert (tmp_path / "cache").exists() == ("cached" in changes)
    exact = ("entry", "rank", "image_index", "image_id", "uri", "model", "sae", "site", "unit")
    assert [[row[name] for name in exact] for row in rows] == [[row[name] for name in exact] for row in again]
    for a, b in zip(rows, again, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-4) and a["map"] == pytest.approx(b["map"], abs=2e-4)


def test_a_zoo_without_entries_has_no_exemplars(made: Made, store: Store) -> None:
    assert dictionary(store, made.plan(store, entries=())) == []


def test_units_of_a_generator_are_shown_on_the_images_that_it_drew(tmp_path: Path) -> None:
    lake, drawn, site = str(tmp_path / "lake"), 6, "act.1@map"
    of_models = members_of_models(lake, f"generated:demo:generator,seed=3,n={drawn}", "demo:generator", VIT)
    made = Made(lake, tuple(member for (member,) in of_models))
    store = make_store(lake)
    rows = dictionary(store, made.plan(store, entries=[[(0, site, 5), (1, MLP, 3)]], shard_rows=4))
    generator = load_generator(ModelRef.parse("demo:generator"))
    with torch.no_grad():
        maps_BP = generator.run(generator.latents(3, range(drawn)), [site])[1][site][:, :, 5].double().numpy()
    mean, sd = scale_of((0, site, 5))
    own = [row for row in rows if row["model"] == "demo:generator"]
    assert [row["rank"] for row in own] == [0, 1, 2] and len(rows) == 6
    for row in own:
        expected = (maps_BP[row["image_index"]] - mean) / sd
        assert np.array(row["map"]) == pytest.approx(expected, abs=2e-3)
        assert (row["grid_h"], row["grid_w"]) == (16, 16)
