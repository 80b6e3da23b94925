"""What is installed and what is left lying about: package data, generated folders, the Makefile."""

from __future__ import annotations

import tomllib
from pathlib import Path

from cluster.cli.running import DEMO_FOLDER

ROOT = Path(__file__).parent.parent


def package_data() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]


def test_every_pattern_of_package_data_names_files() -> None:
    for package, patterns in package_data().items():
        for pattern in patterns:
            assert list((ROOT / package).glob(pattern)), f"{package}: {pattern}"


def test_every_data_file_of_a_package_is_installed_with_it() -> None:
    for package in ("schemas", "miclip_core", "jobs", "cluster"):
        installed = {path for pattern in package_data().get(package, []) for path in (ROOT / package).glob(pattern)}
        there = {p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert there - installed == set()


def test_what_the_demo_writes_is_ignored_by_git_and_removed_by_clean() -> None:
    assert f"{DEMO_FOLDER}/" in (ROOT / ".gitignore").read_text().splitlines()
    assert f" {DEMO_FOLDER} " in (ROOT / "Makefile").read_text().partition("\nclean:")[2]
