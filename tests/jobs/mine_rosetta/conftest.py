"""Maps that tests of comparisons keep lie in a folder of their own, and go with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def scratch_space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No maps from an earlier run are found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICLIP_CACHE", str(tmp_path_factory.mktemp("node")))
        yield
