"""`miclip saes` and `miclip export sae`: what a store holds, taken out for other libraries and between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.cli.exports import HOW_TO_LOAD, FormatName
from miclip_core.sae.foreign import WRITTEN, load_foreign
from tests.import_lakes import LATENTS, MODEL, SITE, WIDTH, ImportLake, K, make_sae
from tests.published import publish_numbers


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(autouse=True)
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICLIP_STORE", raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ImportLake:
    place = ImportLake(tmp_path_factory.mktemp("saes"))
    assert place.run([place.sae("saelens", "a", seed=1), place.sae("sparsify", "b", seed=2)]).exit_code == 0
    return place


@pytest.fixture(scope="module")
def listed(place: ImportLake) -> list[dict[str, object]]:
    return json.loads(miclip("saes", "--store", place.lake.uri, "--json").stdout)


def test_every_sae_is_listed_with_what_is_known_of_it(place: ImportLake, listed: list[dict[str, object]]) -> None:
    assert {row["source"] for row in listed} == {"saelens", "sparsify"}
    for row in listed:
        assert (row["kind"], row["model"], row["site"]) == ("import_sae", MODEL, SITE)
        assert (row["arch"], row["d"], row["latents"], row["k"], row["l0"]) == ("topk", WIDTH, LATENTS, K, K)
        assert 0 < row["fvu"] < 10  # type: ignore[operator]
    text = miclip("saes", "--store", place.lake.uri).stdout
    for row in listed:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(str(row["sae"])[:16])]
        assert f"{row['fvu']:.4f}" in line and MODEL in line and SITE in line
        assert str(row["source"]) in line  # the one thing in which these two differ
    assert "miclip export sae SAE" in text and "seed" not in text


def test_a_store_without_saes_says_how_to_get_some(tmp_path: Path) -> None:
    publish_numbers(tmp_path / "lake")
    assert "no SAEs in" in miclip("saes", "--store", tmp_path / "lake").stdout
    assert json.loads(miclip("saes", "--store", tmp_path / "lake", "--json").stdout) == []


@pytest.mark.parametrize("format", WRITTEN)
def test_a_stage_named_by_its_first_digits_is_written_for_a_library(
    format: str, place: ImportLake, listed: list[dict[str, object]], tmp_path: Path
) -> None:
    (ref,) = [str(row["sae"]) for row in listed if row["source"] == "saelens"]
    result = miclip("export", "sae", ref[:14], "--format", format, "--to", tmp_path / "out", "--store", place.lake.uri)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out'}  topk, {LATENTS} latents of width {WIDTH}, for {format}" in result.stdout
    back, x = load_foreign(format, tmp_path / "out"), torch.randn(20, WIDTH)
    assert torch.allclose(back.encode(x).dense(), make_sae(1).encode(x).dense(), atol=1e-5)


def test_files_of_one_library_become_files_of_another_without_a_store(
    place: ImportLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    result = miclip(
        "export", "sae", "sparsify:b", "--format", "dictionary_learning", "--to", tmp_path / "out", "--json"
    )
    found = json.loads(result.stdout)
    assert (found["sae"], found["folder"]) == (f"sparsify:{place.folder / 'b'}", str(tmp_path / "out"))
    assert found["config"]["source"] == "sparsify" and found["config"]["k"] == K
    assert torch.equal(load_foreign("dictionary_learning", tmp_path / "out").W_dec, make_sae(2).W_dec)


def test_a_folder_that_is_there_is_never_touched(place: ImportLake, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = miclip("export", "sae", f"sparsify:{place.folder / 'b'}", "--format", "saelens", "--to", tmp_path)
    assert result.exit_code == 2 and "is there already; nothing was written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["sae:00000000", "--format", "saelens"], 2, "a stage is looked up in a store; give --store"),
        (["sae:00000000", "--format", "saelens", "--store", "LAKE"], 2, "no published stage begins so"),
        (["sae:123", "--format", "saelens", "--store", "LAKE"], 2, "expected 8 to 20 hex digits"),
        (["vit:x", "--format", "saelens"], 2, "expected sae:<stage> or format:location"),
        (["saelens:/no/where", "--format", "sparsify"], 2, "nothing there"),
        (["saelens:FOLDER", "--format", "sparsify"], 2, "holds no cfg.json"),
        (["sparsify:FOLDER/b", "--format", "onnx"], 2, "'onnx' is not one of"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    words: list[str], code: int, says: str, place: ImportLake, tmp_path: Path
) -> None:
    filled = [word.replace("LAKE", place.lake.uri).replace("FOLDER", str(place.folder)) for word in words]
    result = miclip("export", "sae", *filled, "--to", tmp_path / "out")
    assert result.exit_code == code and says in " ".join(result.stderr.split()), result.output
    assert "Traceback" not in result.stderr and list(tmp_path.iterdir()) == []


def test_a_stage_that_is_no_sae_is_named_as_what_it_is(
    place: ImportLake, listed: list[dict[str, object]], tmp_path: Path
) -> None:
    published = {key.split("/")[1] for key in place.lake.store.list("stages") if key.endswith("published.json")}
    index = min(published - {str(row["sae"]).removeprefix("sae:") for row in listed})
    result = miclip(
        "export", "sae", f"sae:{index}", "--format", "saelens", "--to", tmp_path / "x", "--store", place.lake.uri
    )
    assert result.exit_code == 2 and "which is no SAE; `miclip saes` lists" in result.stderr


def test_formats_of_the_command_are_those_that_are_written() -> None:
    assert {name.value for name in FormatName} == set(WRITTEN) == set(HOW_TO_LOAD)
