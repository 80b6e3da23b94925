"""Importing SAEs as a job: what makes a stage the same stage, what it publishes, and what stops it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.inputs import StoreInputs
from cluster.ledger import load_failures
from cluster.pipeline import RunReport
from miclip_core.sae.foreign import save_foreign
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from schemas.sae import SaeConfig
from schemas.specs import PipelineSpec
from tests.lakes import Lake, export

MODEL, SITE, WIDTH, LATENTS, K = "demo:clip-p8", "resid_post.3@patch", 96, 64, 6


def make_sae(seed: int = 0, width: int = WIDTH) -> Sae:
    make = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=make), dim=1)
    config = SaeConfig(arch="topk", d=width, latents=LATENTS, k=K)
    return Sae(config, W_dec.clone(), torch.zeros(LATENTS), W_dec, 0.1 * torch.randn(width, generator=make))


class Place:
    """Images, a lake, and folders of SAEs in the formats of other libraries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = export(folder / "images", 24)
        self.lake = Lake(folder / "lake")

    def sae(self, format: str, name: str, seed: int = 0, width: int = WIDTH) -> str:
        save_foreign(format, make_sae(seed, width), self.folder / name)
        return f"{format}:{self.folder / name}"

    def run(self, saes: list[str], read: bool = False, **fields: Any) -> RunReport:
        own = {"kind": "import_sae", "saes": saes, "sites": [SITE], "block_images": 4, "holdout": 0.3, **fields}
        stages = {"saes": own}
        if read:
            stages["acts"] = {"kind": "extract", "sites": [SITE], "outputs": ["activations"]}
            stages["saes"] = {**own, "reads": ["acts"]}
        images = {"ref": f"folder:{self.images}/images", "labels": f"file:{self.images}/labels.parquet"}
        data = {"kind": "pipeline", "name": "t", "images": images, "matrix": {"model": [MODEL]}, "stages": stages}
        return self.lake.run(PipelineSpec.model_validate(data, strict=False))

    def digests(self, report: RunReport) -> list[str]:
        return [state.digest for state in report.state.stages if state.cell.startswith("saes")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("import"))


def test_two_formats_of_one_sae_become_our_file_and_equal_rows_of_the_summary(place: Place) -> None:
    report = place.run([place.sae("saelens", "a"), place.sae("sparsify", "b")])
    assert report.exit_code == 0, report.state
    stages = place.digests(report)
    rows = place.lake.table(report, "sae_summary").to_pylist()
    assert [row["sae"] for row in rows] == [f"sae:{stage}" for stage in stages]
    first, second = rows
    assert {first["source"], second["source"]} == {"saelens", "sparsify"}
    same = (
        "model",
        "site",
        "arch",
        "d",
        "latents",
        "k",
        "images",
        "measured_tokens",
        "fvu",
        "l0",
        "cosine",
        "embedding_cosine",
    )
    assert {name: first[name] for name in same} == {name: second[name] for name in same}
    assert (first["model"], first["site"], first["d"], first["latents"], first["k"]) == (MODEL, SITE, WIDTH, LATENTS, K)
    assert (
        first["l0"] == K and first["images"] == 8 and first["measured_tokens"] == 8 * 64
    )  # 2 of 6 blocks of 4, 8x8 patches
    assert first["l1"] is None and first["steps"] is None
    for stage in stages:
        sae = load_sae(StoreInputs(place.lake.store).published(stage, "sae.safetensors"))
        assert (sae.config.model, sae.config.site) == (MODEL, SITE)
        expected = make_sae()
        assert all(torch.equal(tensor, sae.tensors()[name]) for name, tensor in expected.tensors().items())


def test_a_stage_is_its_files_wherever_they_are_and_whether_tokens_are_stored(place: Place) -> None:
    here = place.sae("dictionary_learning", "c", seed=1)
    first, files = place.run([here]), place.lake.files()
    there = place.folder / "elsewhere" / "d"
    shutil.copytree(place.folder / "c", there)
    moved = place.run([f"dictionary_learning:{there}"])
    assert place.digests(moved) == place.digests(first)
    assert place.lake.files() == files  # nothing was done twice
    stored = place.run([here], read=True)
    assert place.digests(stored) == place.digests(first)
    config = there / "config.json"
    config.write_text(config.read_text().replace('"seed": null', '"seed": 3'))
    assert place.digests(place.run([f"dictionary_learning:{there}"])) != place.digests(first)
    assert place.digests(place.run([here], evaluate_images=4)) != place.digests(first)
    assert place.digests(place.run([here], batch_size=5)) == place.digests(first)


def test_one_that_cannot_be_used_says_why_and_the_others_go_on(place: Place) -> None:
    good, narrow = place.sae("saelens", "e", seed=2), place.sae("saelens", "f", width=48)
    broken = place.sae("overcomplete", "g", seed=3)
    (place.folder / "g" / "overcomplete.json").unlink()
    torch.save(torch.nn.Linear(2, 2), place.folder / "h.pt")
    report = place.run([good, narrow, broken, f"overcomplete:{place.folder / 'h.pt'}"])
    assert report.exit_code == 1 and len(place.lake.table(report, "sae_summary")) == 1
    said = [f.message for stage in place.digests(report) for f in load_failures(place.lake.store, stage)]
    assert len(said) == 3
    assert any("expected d=96, the width of resid_post.3@patch of demo:clip-p8, got d=48" in text for text in said)
    assert any("no overcomplete.json" in text and "running_threshold" in text for text in said)
    assert any("name the folder that holds it and its settings" in text for text in said)


def test_a_place_with_nothing_is_an_error_before_anything_runs(place: Place) -> None:
    from schemas.errors import BadRef

    with pytest.raises(BadRef, match="nowhere: nothing there"):
        place.run([f"saelens:{place.folder}/nowhere"])
