"""The verb that writes a page: where it goes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from tests.published import publish_numbers


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lake")
    publish_numbers(folder)
    return str(folder)


def miclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_run_becomes_one_file_named_after_it(lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = miclip("report", "numbers-00001", "--store", lake)
    assert result.exit_code == 0 and result.stdout.startswith("numbers-00001.html  ")
    assert (tmp_path / "numbers-00001.html").read_text().startswith("<!doctype html>")


def test_without_a_run_the_newest_of_every_pipeline_is_shown(lake: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = json.loads(miclip("report", "--store", lake, "--to", page, "--json").stdout)
    assert found == {"file": str(page), "bytes": page.stat().st_size, "runs": ["numbers-00001"]}


def test_what_cannot_be_done_is_said_in_a_sentence(lake: str, tmp_path: Path) -> None:
    unknown = miclip("report", "numbers-00009", "--store", lake, "--to", tmp_path / "page.html")
    assert unknown.exit_code == 2 and "there are numbers-00001" in unknown.stderr
    nowhere = miclip("report", "--store", lake, "--to", tmp_path / "no" / "page.html")
    assert nowhere.exit_code == 2 and "name a file in a folder that is there" in nowhere.stderr
    assert not list(tmp_path.iterdir())
