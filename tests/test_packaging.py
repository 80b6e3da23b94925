"""What is installed and what is left lying about: package data, generated folders, the Makefile."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from cluster.cli.running import DEMO_FOLDER

ROOT = Path(__file__).parent.parent


PACKAGES = ("schemas", "miclip_core", "jobs", "cluster")
OF_EXTRAS = {"umap": ["umap-learn"]}
"""What provides a module of another name than its own, where it need not be installed."""


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_data() -> dict[str, list[str]]:
    return pyproject()["tool"]["setuptools"]["package-data"]


def imported() -> Iterator[tuple[str, str]]:
    """(top-level module, file) of every absolute import in the packages."""
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], str(file)) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0], str(file)


def same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_a_stated_dependency() -> None:
    """What another dependency happens to bring may stop coming; extras count, as their users ask for them."""
    project = pyproject()["project"]
    stated = {
        same(re.match(r"[\w.-]+", text).group())  # type: ignore[union-attr]
        for text in (*project["dependencies"], *(t for some in project["optional-dependencies"].values() for t in some))
    }
    provides = OF_EXTRAS | dict(packages_distributions())
    missing = {
        (module, file)
        for module, file in imported()
        if module not in sys.stdlib_module_names and module not in PACKAGES
        if not {same(name) for name in provides.get(module, [module])} & stated
    }
    assert missing == set()


def test_every_pattern_of_package_data_names_files() -> None:
    for package, patterns in package_data().items():
        for pattern in patterns:
            assert list((ROOT / package).glob(pattern)), f"{package}: {pattern}"


def test_every_data_file_of_a_package_is_installed_with_it() -> None:
    for package in PACKAGES:
        installed = {path for pattern in package_data().get(package, []) for path in (ROOT / package).glob(pattern)}
        there = {p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert there - installed == set()


def test_what_the_demo_writes_is_ignored_by_git_and_removed_by_clean() -> None:
    assert f"{DEMO_FOLDER}/" in (ROOT / ".gitignore").read_text().splitlines()
    assert f" {DEMO_FOLDER} " in (ROOT / "Makefile").read_text().partition("\nclean:")[2]
