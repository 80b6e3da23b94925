"""Models that do not fit the device, are not there, were swapped, or are an attack: the rest of the zoo is published."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobs import forward as forwards
from schemas.errors import UsageError
from schemas.pipeline_spec import PipelineSpec
from tests.faults.conftest import Place
from tests.lakes import Lake, export, make_extract

GOOD = "demo:clip-rn"
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("world"), 24)


def copy_model(folder: Path) -> str:
    """The ref of a copy of a shipped model that a test may spoil."""
    shutil.copytree(str(files("miclip_core") / "world" / "zoo" / "clip-p8"), folder)
    return f"open_clip:clip-p8@file:{folder}"


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def embed(lake: Lake, world: Path, *models: str):
    return lake.run(make_extract(world, models, sites=[], outputs=["embeddings"], batch_size=8))


def published_models(lake: Lake, report: Any) -> set[str]:
    return set(lake.table(report, "embeddings")["model"].to_pylist())


# -- memory of the device


def test_out_of_memory_halves_the_batch_once_says_so_and_gives_the_same_rows(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds 4 images is asked for 8: one halving for the whole run, whose shards have 16 images."""
    spec = make_extract(
        world, (GOOD,), sites=["stage.4@map:mean"], outputs=["activations", "embeddings"], batch_size=8, shard_rows=16
    )
    plenty, little = Lake(tmp_path / "plenty"), Lake(tmp_path / "little")
    expected = plenty.run(spec)
    sizes: list[int] = []
    forward = forwards.tapped

    def small_device(*arguments: Any, batch_size: int, **options: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(forwards, "tapped", small_device)
    report = little.run(spec)
    assert report.exit_code == 0, report.failures
    assert [size for size in sizes if size > 4] == [8]
    notes = [note for event in little.events for note in event.get("notes", ()) if "memory" in note]
    assert notes == ["out of memory at batch size 8, went on with 4"]
    for table, column in (("activations", "act"), ("embeddings", "embedding")):
        ours, theirs = little.table(report, table), plenty.table(expected, table)
        assert ours["image_id"].to_pylist() == theirs["image_id"].to_pylist()
        np.testing.assert_allclose(matrix(ours[column]), matrix(theirs[column]), rtol=2e-3, atol=1e-4)


def matrix(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=np.float32)


def test_a_device_that_holds_not_one_image_fails_the_shard_with_advice(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(forwards, "tapped", no_device)
    lake = Lake(tmp_path / "lake")
    report = embed(lake, world, GOOD)
    assert report.exit_code == 1
    assert "one image does not fit on cpu; use a larger device" in report.failures[0]
    assert not [key for key in lake.store.list("tables") if "/embeddings/" in key]


# -- weights


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:1000]), "damaged"),
    "a tensor missing": (
        lambda f: change_weights(f, lambda w: w.pop("visual.ln_post.weight")),
        "are missing: visual.ln_post",
    ),
    "a tensor of another shape": (
        lambda f: change_weights(f, lambda w: w.update({"visual.proj": torch.zeros(3, 6)})),
        "visual.proj (3, 6) instead of",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_model_that_cannot_be_loaded_fails_alone_and_the_others_are_published(
    how: str, world: Path, tmp_path: Path
) -> None:
    spoil, message = SPOILT[how]
    broken = copy_model(tmp_path / "broken")
    spoil(tmp_path / "broken")
    lake = Lake(tmp_path / "lake")
    report = embed(lake, world, broken, GOOD)
    assert report.exit_code == 1
    assert all(broken in failure for failure in report.failures) and message in report.failures[0]
    assert published_models(lake, report) == {GOOD}


def test_a_folder_without_weights_fails_alone_and_is_refused_before_any_work_if_there_is_no_other_model(
    world: Path, tmp_path: Path
) -> None:
    model = copy_model(tmp_path / "empty")
    (tmp_path / "empty" / WEIGHTS).unlink()
    lake, said = Lake(tmp_path / "lake"), r"empty: no checkpoint \(.safetensors"
    with pytest.raises(UsageError, match=said):
        embed(lake, world, model)
    assert not [key for key in lake.store.list("tables") if "/embeddings/" in key]
    report = embed(lake, world, model, GOOD)
    assert report.exit_code == 1 and all(re.search(said, failure) for failure in report.failures)
    assert published_models(lake, report) == {GOOD}


def test_a_folder_that_is_gone_fails_alone_and_is_refused_before_any_work_if_there_is_no_other_model(
    world: Path, tmp_path: Path
) -> None:
    """Tonight's checkpoint was not written: that is no reason to leave out all others."""
    lake, gone = Lake(tmp_path / "lake"), f"open_clip:clip-p8@file:{tmp_path}/gone"
    with pytest.raises(UsageError, match=f"nothing at {tmp_path}/gone"):
        embed(lake, world, gone)
    assert lake.store.list("tables") == []
    report = embed(lake, world, gone, GOOD)
    assert report.exit_code == 1 and [f for f in report.failures if f"nothing at {tmp_path}/gone" not in f] == []
    assert published_models(lake, report) == {GOOD}


@pytest.mark.slow
def test_of_three_models_with_all_that_is_made_of_them_a_bad_checkpoint_spoils_its_own_cells_alone(
    world: Path, tmp_path: Path
) -> None:
    """The file of the bad one is cut in half: what reads it waits, both others go through to their features."""
    bad, good = copy_model(tmp_path / "bad"), ("demo:clip-p8", "demo:siglip-p8")
    path = tmp_path / "bad" / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    few = {"latents": 16, "k": 2, "steps": 4, "batch_tokens": 64, "block_images": 4}
    stages = {
        "acts": {"kind": "extract", "sites": ["resid_post.-2@patch"], "batch_size": 8},
        "sae": {"kind": "train_sae", "reads": "acts", **few},
        "features": {"kind": "sae_features", "reads": ["sae", "acts"], "tables": ["features"]},
    }
    data = {"name": "three", "images": {"ref": f"folder:{world}/images"}, "matrix": {"model": [good[0], bad, good[1]]}}
    report = (lake := Lake(tmp_path / "lake")).run(
        PipelineSpec.model_validate({**data, "stages": stages}, strict=False)
    )
    assert report.exit_code == 1
    assert sorted({failure.split(": ")[0].split(" ")[0] for failure in report.failures}) == [
        f"{stage}/{bad}" for stage in sorted(stages)
    ]
    assert all(f.startswith(f"acts/{bad}") or "it reads" in f or bad in f for f in report.failures)
    assert set(lake.table(report, "sae_features")["model"].to_pylist()) == set(good)


def test_weights_swapped_between_inspection_and_extraction_are_noticed(
    world: Path, tmp_path: Path, place: Place
) -> None:
    """Same size, same time, other values: no listing can see it, the digest of what was loaded does."""
    model = copy_model(tmp_path / "model")
    lake = Lake(place.store("lake"))
    assert lake.run(make_extract(world, (model,), sites=[], outputs=["text_embeddings"], texts=["a"])).exit_code == 0
    path = tmp_path / "model" / WEIGHTS
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # the mantissa of the last number
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    report = embed(lake, world, model, GOOD)
    assert report.exit_code == 1
    assert "its weights, configuration or tokeniser changed since it was inspected" in report.failures[0]
    assert published_models(lake, report) == {GOOD}
    os.utime(path)  # now the listing sees it: inspected anew, and done
    assert embed(lake, world, model, GOOD).exit_code == 0


# -- an attack


class Attack:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize(("protocol", "suffix"), [("pickle", ".pt"), ("torch", ".bin"), ("torch", ".pth")])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    protocol: str, suffix: str, world: Path, tmp_path: Path
) -> None:
    model = copy_model(tmp_path / "evil")
    weights = tmp_path / "evil" / WEIGHTS
    state = {"state_dict": {**load_file(weights), "visual.extra": Attack(tmp_path / "owned")}}
    weights.unlink()
    evil = weights.with_suffix(suffix)
    if protocol == "pickle":
        evil.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, evil)
    lake = Lake(tmp_path / "lake")
    report = embed(lake, world, model, GOOD)
    assert report.exit_code == 1
    assert "UnsafeCheckpoint" in report.failures[0] and "safetensors" in report.failures[0]
    assert not (tmp_path / "owned").exists()
    assert published_models(lake, report) == {GOOD}
