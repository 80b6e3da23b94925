"""The verb that writes the explorer's pages: what it says, where they go, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.stores.base import make_store
from tests.made_up_explorer import explorer_stage, publish_units
from tests.made_up_saes import save_run
from tests.published import publish_numbers
from tests.test_architecture import loaded_by


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lake")
    store = make_store(str(folder))
    save_run(store, "pages-00001", [publish_units(store, explorer_stage("demo:clip-p8"), 20)])
    return str(folder)


def explore(*words: object) -> Result:
    return CliRunner().invoke(app, ["explore", *map(str, words)])


def test_a_folder_is_written_and_said(lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = explore("--store", lake)
    assert result.exit_code == 0 and result.stdout.startswith("explorer  20 units in 2 parts")
    assert (tmp_path / "explorer" / "index.html").is_file()
    again = json.loads(explore("--store", lake, "--json").stdout)
    assert again["folder"] == str(tmp_path / "explorer") and (again["units"], again["copied"]) == (20, 0)


def test_what_cannot_be_done_is_said_in_a_sentence(lake: str, tmp_path: Path) -> None:
    publish_numbers(tmp_path / "numbers")
    none = explore("--store", tmp_path / "numbers", "--to", tmp_path / "pages")
    assert none.exit_code == 2 and "kind explorer" in none.stderr
    odd = explore("--store", lake, "--to", tmp_path / "pages", "--base-url", "data.example.org")
    assert odd.exit_code == 2 and "expected http:// or https://" in odd.stderr
    assert not (tmp_path / "pages").exists()


def test_it_loads_no_library_of_weight(lake: str, tmp_path: Path) -> None:
    assert loaded_by(["explore", "--store", lake, "--to", str(tmp_path / "pages")])[0] == set()
