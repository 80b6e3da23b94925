"""The fixture that makes an environment for a library, once in a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.interchange.environments import Environment, make_environment


@pytest.fixture(scope="session")
def environment_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Environment]]:
    """library -> its environment; gone with the session, unless $MICLIP_TEST_ENVS says where they may stay."""
    folder = tmp_path_factory.mktemp("environments")
    yield cache(lambda library: make_environment(library, folder))
    shutil.rmtree(folder)
