"""Fixtures of the interchange tests: environments, and what each library computed in its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.interchange.environments import Environment, make_environment


@pytest.fixture(scope="session")
def environment_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """library -> its environment, made once in a session."""
    folder: Path = tmp_path_factory.mktemp("environments")

    @cache
    def make(library: str) -> Environment:
        return make_environment(library, folder)

    return make
