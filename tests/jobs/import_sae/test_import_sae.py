"""Importing SAEs as a job: what makes a stage the same stage, what it publishes, and what stops it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cluster.inputs import StoreInputs
from cluster.ledger import load_failures
from miclip_core.sae.foreign import save_foreign
from miclip_core.sae.weights import load_sae
from schemas.errors import BadRef
from tests.import_lakes import LATENTS, MODEL, SITE, WIDTH, ImportLake, K, make_sae


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ImportLake:
    return ImportLake(tmp_path_factory.mktemp("import"))


def test_two_formats_of_one_sae_become_our_file_and_equal_rows_of_the_summary(place: ImportLake) -> None:
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


def test_a_stage_is_its_files_wherever_they_are_and_whether_tokens_are_stored(place: ImportLake) -> None:
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
    fewer = place.run([here], evaluate_images=4)
    assert place.digests(fewer) == place.digests(first) and place.measurements(fewer) != place.measurements(first)
    assert place.digests(place.run([here], batch_size=5)) == place.digests(first)


def test_one_that_cannot_be_used_says_why_and_the_others_go_on(place: ImportLake) -> None:
    good, narrow = place.sae("saelens", "e", seed=2), place.sae("saelens", "f", width=48)
    broken = place.sae("overcomplete", "g", seed=3)
    (place.folder / "g" / "overcomplete.json").unlink()
    torch.save(torch.nn.Linear(2, 2), place.folder / "h.pt")
    report = place.run([good, narrow, broken, f"overcomplete:{place.folder / 'h.pt'}"])
    assert report.exit_code == 1 and len(place.lake.table(report, "sae_summary")) == 1
    said = [f.message for stage in place.digests(report) for f in load_failures(place.lake.store, stage)]
    assert len(said) == 3
    assert any(
        "as one of demo:clip-p8: this SAE encodes 48 channels, but resid_post.3@patch has 96" in text for text in said
    )
    assert any("no overcomplete.json" in text and "running_threshold" in text for text in said)
    assert any("name the folder that holds it and its settings" in text for text in said)


def test_a_place_with_nothing_is_an_error_before_anything_runs(place: ImportLake) -> None:
    with pytest.raises(BadRef, match="nowhere: nothing there"):
        place.run([f"saelens:{place.folder}/nowhere"])


@pytest.mark.parametrize(
    ("trained_at", "fits"),
    [
        (SITE, True),
        ("resid_post.3@patch:sample(16,0)", True),
        ("resid_post.2@patch", False),
        ("resid_post.3@cls", False),
        ("resid_post.3@patch:mean", False),
    ],
)
def test_a_file_of_ours_is_imported_at_the_site_that_it_states_alone(
    trained_at: str, fits: bool, tmp_path: Path
) -> None:
    place = ImportLake(tmp_path)
    save_foreign("miclip", make_sae().with_config(site=trained_at), tmp_path / "own")
    report = place.run([f"miclip:{tmp_path / 'own'}"])
    said = [f.message for stage in place.digests(report) for f in load_failures(place.lake.store, stage)]
    assert report.exit_code == (0 if fits else 1)
    assert not said if fits else f"this SAE was trained at {trained_at}, not at {SITE}" in said[0]
